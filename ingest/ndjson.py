"""A body of lines, read no faster than they are used."""

from __future__ import annotations

from ingest.ending import Ending
from ingest.exchange import HungUp, Receive

# Within so long the next whole line has to come; the same as for the body of one order.
LINE_S_MAX = 30.0


class Lines:
    """The lines of a body as they come. In memory is one read of the connection (64 KiB and what
    the socket gave with it) and the beginning of one line, however long that is.

    `line_bytes_max`: without the line's end. Of a line that is longer some bytes more are kept, so
    that it can be told, and the rest is dropped.
    """

    def __init__(self, receive: Receive, line_bytes_max: int, ending: Ending) -> None:
        self._receive = receive
        self._kept_max = line_bytes_max + 2  # a CR, and one too many
        self._ending = ending
        self._begun = b""  # the last line, of which the end is still to come
        self._more = True

    async def next(self) -> list[bytes] | None:
        """The lines that have come, without their ends; None after the last. Raises HungUp, and
        TimeoutError when none came within LINE_S_MAX or before the front ends."""
        async with self._ending.before(LINE_S_MAX):
            while self._more:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    raise HungUp
                self._more = message.get("more_body", False)
                lines = self._split(message.get("body", b""))
                if lines:
                    return lines
        begun, self._begun = self._begun, b""
        return [begun] if begun else None

    async def drop(self) -> None:
        """Reads what is left of the body and forgets it. Raises HungUp."""
        self._begun = b""
        while self._more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise HungUp
            self._more = message.get("more_body", False)

    def _split(self, data: bytes) -> list[bytes]:
        if len(self._begun) == self._kept_max:  # the rest of a line that is too long
            end = data.find(b"\n")
            if end < 0:
                return []
            data = data[end:]
        *lines, begun = (self._begun + data).split(b"\n")
        self._begun = begun[: self._kept_max]
        return lines

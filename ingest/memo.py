"""What all connections of a front know together: heads that were parsed, and how answers begin.

Clients send one head again and again, and a head that was parsed once need not be parsed again:
equal bytes from the beginning of a message mean an equal request.
"""

from __future__ import annotations

from collections.abc import Sequence

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from ingest.answers import JSON, LOCATION
from ingest.origin import Origin

# Together at most 1 MiB. Clients whose heads differ from request to request push the others out.
HEADS_MAX = 1024
HEAD_BYTES_MAX = 1024

Header = tuple[bytes, bytes]
# How many bytes of body a head announces, and whose order it brings.
Known = tuple[int, Origin]


class Memo:
    """One for each front; its connections are served by one thread.

    `requests`: by a head with its empty line. Only heads of plain requests are in it; see
    `lane.LaneProtocol`. A key that was good once is good here until this front ends.
    """

    def __init__(self) -> None:
        self.requests: dict[bytes, Known] = {}
        self._default_headers: Sequence[Header] | None = None
        self._queued_head = b""

    def learn(self, head: bytes, body_bytes: int, origin: Origin) -> None:
        """That head is a plain request's, of that origin."""
        if len(head) > HEAD_BYTES_MAX:
            return
        if len(self.requests) >= HEADS_MAX:
            self.requests.clear()
        self.requests[head] = body_bytes, origin

    def queued_head(self, default_headers: Sequence[Header], echo: Sequence[Header] = ()) -> bytes:
        """What an accepted order's answer begins with, up to its id."""
        if echo:
            return _queued_head((*default_headers, *echo))
        if default_headers is not self._default_headers:
            self._default_headers = default_headers  # a new list when the date changes
            self._queued_head = _queued_head(default_headers)
        return self._queued_head


def _queued_head(headers: Sequence[Header]) -> bytes:
    lines = [name + b": " + value + b"\r\n" for name, value in (*headers, *JSON)]
    return b"".join((STATUS_LINE[202], *lines, b": ".join(LOCATION)))

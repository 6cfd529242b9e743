"""What became of the lines of a bulk, on its way to the client.

Streamed    NDJSON, sent while lines still come. Whoever reads no results is read no further,
            and cut off when that lasts
Spooled     one JSON object after the last line: what is too much for memory lies in a file
            without a name, which is gone with its process
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable
from typing import IO, Protocol, TypeVar

from ingest.answers import CLOSE, JSON, Headers
from ingest.exchange import Send

NDJSON_TYPE = b"application/x-ndjson"
NDJSON: Headers = ((b"content-type", NDJSON_TYPE),)
# How long a client may leave lying what it is sent.
RESULTS_S_MAX = 30.0
# What is kept of the results before they go into the file, and sent of it at once.
PART_BYTES = 256 * 1024


T = TypeVar("T")


class NotRead(Exception):
    """The client does not read its results."""


class Results(Protocol):
    """`before` and `after` each result stands what is to be added with it. `add` is followed by
    `flush`, which may take as long as RESULTS_S_MAX and raises NotRead, or OSError when there is no
    room; what was added is kept all the same. In the end comes `finish` or `close`, or both."""

    before: bytes
    after: bytes

    def add(self, results: bytes) -> None: ...

    async def flush(self) -> None: ...

    async def finish(self, accepted: int, refused: int, *, closes: bool) -> None: ...

    def close(self) -> None: ...


class Streamed:
    """See the head of this module."""

    before, after = b"", b"\n"

    def __init__(self, send: Send) -> None:
        self._send = send
        self._begun = False
        self._waiting: list[bytes] = []

    def add(self, results: bytes) -> None:
        self._waiting.append(results)

    async def flush(self) -> None:
        if self._waiting:
            part, self._waiting = b"".join(self._waiting), []
            await self._write(part, more=True, closes=False)

    async def finish(self, accepted: int, refused: int, *, closes: bool) -> None:  # noqa: ARG002
        part, self._waiting = b"".join(self._waiting), []
        await self._write(part, more=False, closes=closes)

    def close(self) -> None:
        """There is nothing to be closed."""

    async def _write(self, part: bytes, *, more: bool, closes: bool) -> None:
        if not self._begun:
            self._begun = True
            headers = (*NDJSON, *CLOSE) if closes else NDJSON
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await write(self._send, part, more=more)


class Spooled:
    """`directory`: where the file lies."""

    before, after = b",\n", b""

    def __init__(self, send: Send, directory: str) -> None:
        self._send = send
        self._directory = directory
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._file: IO[bytes] | None = None
        self._file_bytes = 0
        self._work: asyncio.Future[object] | None = None

    def add(self, results: bytes) -> None:
        self._waiting.append(results)
        self._waiting_bytes += len(results)

    async def flush(self) -> None:
        if self._waiting_bytes < PART_BYTES:
            return
        part = b"".join(self._waiting)
        self._waiting = [part]  # until it is in the file
        await self._in_thread(self._append, part)
        self._waiting, self._waiting_bytes = [], 0
        self._file_bytes += len(part)

    async def finish(self, accepted: int, refused: int, *, closes: bool) -> None:
        end = b'],"accepted":%d,"refused":%d}' % (accepted, refused)
        total = self._file_bytes + self._waiting_bytes
        begin = b'{"items":['
        skip = len(self.before)  # nothing is before the first
        size = len(begin) + max(0, total - skip) + len(end)
        headers = [*JSON, (b"content-length", b"%d" % size), *(CLOSE if closes else ())]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        for offset in range(0, self._file_bytes, PART_BYTES):
            part = await self._in_thread(self._read, offset)
            await write(self._send, begin + part[skip:], more=True)
            begin, skip = b"", 0
        await write(self._send, begin + b"".join(self._waiting)[skip:] + end, more=False)

    def close(self) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        if self._work is None or self._work.done():
            file.close()
        else:  # somebody hung up; closed now, the thread would write to whatever comes next
            self._work.add_done_callback(lambda _: file.close())

    async def _in_thread(self, function: Callable[..., T], *args: object) -> T:
        work = asyncio.ensure_future(asyncio.to_thread(function, *args))
        self._work = work  # type: ignore[assignment]
        return await asyncio.shield(work)

    def _append(self, part: bytes) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115
        left, offset = memoryview(part), self._file_bytes
        while left:
            written = os.pwrite(self._file.fileno(), left, offset)
            left, offset = left[written:], offset + written

    def _read(self, offset: int) -> bytes:
        assert self._file is not None
        wanted = min(PART_BYTES, self._file_bytes - offset)
        part = os.pread(self._file.fileno(), wanted, offset)
        if len(part) != wanted:
            raise OSError(f"{len(part)} of {wanted} bytes of results could be read at {offset}")
        return part


async def write(send: Send, part: bytes, *, more: bool) -> None:
    """Raises NotRead."""
    try:
        async with asyncio.timeout(RESULTS_S_MAX):
            await send({"type": "http.response.body", "body": part, "more_body": more})
    except TimeoutError:
        raise NotRead from None

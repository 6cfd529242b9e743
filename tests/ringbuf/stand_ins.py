"""What a journal stands on, under the control of a test: the syncer, the maker's thread, the disk.

All of it writes real files; what is chosen is when, and what fails.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

from ringbuf import SegmentHeader, segment
from ringbuf._journal import Syncer


class HeldSyncer:
    """In the place of the journal's: it begins with a group when the test says so."""

    def __init__(self) -> None:
        self._real = Syncer()
        self.waiting: list[tuple[int, int, bytes]] = []
        self.groups = 0

    def submit(self, fd: int, offset: int, data: bytes) -> None:
        assert not self.waiting, "two groups at a time"
        self.waiting.append((fd, offset, data))
        self.groups += 1

    def let_go(self) -> None:
        self._real.submit(*self.waiting.pop())

    def fail(self) -> None:
        """The group meets a disk that is full."""
        _, offset, data = self.waiting.pop()
        fd = os.open("/dev/full", os.O_WRONLY)
        self._real.submit(fd, offset, data)
        os.set_blocking(self._real.fileno(), True)
        os.eventfd_write(self._real.fileno(), os.eventfd_read(self._real.fileno()))  # it is done
        os.set_blocking(self._real.fileno(), False)
        os.close(fd)

    def result(self) -> int | None:
        return self._real.result()

    def fileno(self) -> int:
        return self._real.fileno()

    def close(self) -> None:
        self._real.close()


class InlineSyncer:
    """Writes in the call; the end is heard of when the test says so. No thread."""

    def __init__(self) -> None:
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.busy = self._done = False

    def submit(self, fd: int, offset: int, data: bytes) -> None:
        assert not self.busy, "two groups at a time"
        assert os.pwrite(fd, data, offset) == len(data)
        assert offset + len(data) <= os.fstat(fd).st_size, "beyond the end of the segment"
        self.busy = True

    def let_go(self) -> None:
        if self.busy and not self._done:
            self._done = True
            os.eventfd_write(self._wake, 1)

    def result(self) -> int | None:
        if not self._done:
            return None
        os.eventfd_read(self._wake)
        self.busy = self._done = False
        return 1

    def fileno(self) -> int:
        return self._wake

    def close(self) -> None:
        os.close(self._wake)


class InlineExecutor(Executor):
    """Works in the call, so that what a loop does follows from what it is told alone."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def submit(self, call: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(call(*args, **named))
        except Exception as error:
            future.set_exception(error)
        return future


class Disk:
    """Makes segments, or not. `error`: what the next ones meet; `gate`: called before each."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.gate: Callable[[], object] = lambda: None
        self.made = self.tried = 0

    def fill(self) -> None:
        self.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def free(self) -> None:
        self.error = None

    def make_segment(
        self,
        directory: Path,
        header: SegmentHeader,
        parts: Iterable[bytes | memoryview],
        size: int = 0,
    ) -> tuple[int, Path]:
        self.tried += 1
        self.gate()
        if self.error is not None:
            raise self.error
        made = segment.make_segment(directory, header, parts, size)
        self.made += 1
        return made

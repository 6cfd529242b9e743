"""A lock for each order id, held by one front at a time: two that take one id can't both win.

Locks of the kernel on bytes of a file that need not be there, one for each id, which a front's
death lets go of. Within a front `Turns` keeps the order; between fronts whoever asks next has it.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Self

from ingest.answers import Refused, unavailable
from ingest.problems import NO_LOCK

RETRY_AFTER_S = 1
# Held only from the look-up to the publish, microseconds unless the ring is full or the database
# is slow; nothing tells when another process lets go.
ASK_AGAIN_S, ASK_AGAIN_S_MAX = 0.001, 0.05

_TAKEN = frozenset({errno.EACCES, errno.EAGAIN})
_PLACE = struct.Struct("hhqqi")  # struct flock: type, whence, start, length, pid (0)


class Claims:
    """This front's view of the locks. Not for locks within the front: they would not exclude."""

    def __init__(self, file: int) -> None:
        self._file = file

    @classmethod
    def open(cls, path: Path) -> Self:
        """On a file that all fronts share and nobody else locks in this way; made if need be."""
        return cls(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    @asynccontextmanager
    async def of(self, key: bytes) -> AsyncIterator[None]:
        """Hold the lock of an id. The caller bounds the wait. Raises Refused (503) when the kernel
        has no lock to give."""
        place = place_of(key)
        pause_s = ASK_AGAIN_S
        while not self._take(place):
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, ASK_AGAIN_S_MAX)
        try:
            yield
        finally:
            self._set(place, fcntl.F_UNLCK)

    def take(self, key: bytes) -> bool:
        """Hold it until `let_go`, unless another front does; does not wait. Raises Refused."""
        return self._take(place_of(key))

    def let_go(self, key: bytes) -> None:
        """What was taken is anybody's."""
        self._set(place_of(key), fcntl.F_UNLCK)

    def _take(self, place: int) -> bool:
        try:
            self._set(place, fcntl.F_WRLCK)
        except OSError as error:
            if error.errno in _TAKEN:
                return False
            detail = f"an order's id can't be locked: {error}"
            raise Refused(unavailable(NO_LOCK, detail, RETRY_AFTER_S)) from error
        return True

    def _set(self, place: int, kind: int) -> None:
        # Of the open file, not of the process, whose locks any close of the file would undo.
        lock = _PLACE.pack(kind, os.SEEK_SET, place, 1, 0)
        fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, lock)

    def close(self) -> None:
        """Lets go of everything."""
        os.close(self._file)


def place_of(key: bytes) -> int:
    """The byte that stands for an id, of 2^62. Two that share one only wait for each other."""
    return int.from_bytes(blake2b(key, digest_size=8).digest()) >> 2

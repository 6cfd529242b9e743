"""Shared by the tests of the ring: numbered messages, and a look at the raw file."""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ringbuf import Item, Ring

PATIENCE_S = 60.0  # for what must happen: two busy cores may be slow, but not that slow

# Offsets of kernel.h's shared words in the file, layout 2.
SHARED = 4096
SIDE = 384
WRITERS_LOCK, TAIL, WRITERS_EVENT = SHARED, SHARED + 128, SHARED + 256
READERS_LOCK, HEAD, READERS_EVENT = (
    offset + SIDE for offset in (WRITERS_LOCK, TAIL, WRITERS_EVENT)
)
CACHED_TAIL, READERS_OWNER = READERS_LOCK + 40, READERS_LOCK + 48
COMMIT_EVENT = SHARED + 2 * SIDE + 128 + 8
TID_MASK = 0x3FFF_FFFF  # of a mutex's first word: who holds it


MESSAGE_SIZES = 7


def key(number: int) -> bytes:
    return struct.pack("<QQ", 0x52494E47, number)


def number(item: Item) -> int:
    return int(struct.unpack("<QQ", item.key)[1])


def message(n: int) -> tuple[bytes, bytes]:
    """Payload and key; the payload's length and bytes follow from the number, to see tearing."""
    return struct.pack("<Q", n) * (1 + n % MESSAGE_SIZES), key(n)


def is_whole(item: Item) -> bool:
    return not item.damaged and message(number(item)) == (item.payload, item.key)


def wait_for(seen: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Polls what another process or thread does; only for what can't be awaited."""
    deadline = time.monotonic() + patience_s
    while not seen():
        assert time.monotonic() < deadline, f"{what}: not within {patience_s} s"
        time.sleep(0.001)


@contextmanager
def raw(ring: Ring) -> Iterator[mmap.mmap]:
    """The file, writable: for damage, and for words that would take days to count up."""
    with mmap.mmap(ring.fd, 0) as memory:
        yield memory


def word(ring: Ring, offset: int) -> int:
    return int.from_bytes(os.pread(ring.fd, 4, offset), "little")


def somebody_sleeps(ring: Ring, event: int) -> bool:
    return bool(word(ring, event) & 1)


def state(pid: int) -> str:
    """Of a process or thread: R running, S asleep, T stopped, Z dead and not yet reaped."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    return stat.rpartition(")")[2].split()[0]


def slot_at(ring: Ring, sequence: int) -> int:
    return ring.mapping.slots_at + sequence % ring.capacity * ring.slot_bytes


def cell_at(ring: Ring, reader: int, cell: int) -> int:
    return ring.mapping.hands_at + (reader * ring.hand + cell) * ring.mapping.cell_bytes

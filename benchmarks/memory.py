"""How much memory Rasher has, and how much its settings allow it to have."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from ingest.protocol import HEAD_BYTES_MAX, HELD_BYTES_MAX
from processors.datadir import geometry
from processors.settings import Settings
from ringbuf._kernel import Mapping

MIB = 1024 * 1024
BLOCK_BYTES = 512
# The most that uvloop reads at once; what lies behind a request is held by whole reads.
READ_BYTES_MAX = 256_000
# An allowance for what is no data: protocol, parser, transport, task, timers, and what the
# allocator makes of thousands of them.
OBJECTS_BYTES = 24 * 1024
RESIDENT = re.compile(r"^Rss(?:Anon|File):\s+(\d+) kB$", re.MULTILINE)


def resident_bytes(pids: Iterable[int]) -> int:
    """Of these processes together, without memory that they share for writing, the ring's: their
    own, and that of files, where a page of a library counts once for each of them."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            found = RESIDENT.findall(Path(f"/proc/{pid}/status").read_text())
            total += sum(map(int, found)) * 1024
    return total


def file_bytes(path: str) -> int:
    """What a file takes of its file system, which is memory where that is a tmpfs."""
    return Path(path).stat().st_blocks * BLOCK_BYTES


class Bound(Struct, frozen=True):
    """The most bytes that the program may take: `parts`, by what they are for."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def __str__(self) -> str:
        parts = [f"{name} {size / MIB:,.1f}" for name, size in self.parts.items()]
        return f"{self.total / MIB:,.1f} MiB = {' + '.join(parts)}"


def bound_of(settings: Settings, idle: int) -> Bound:
    """What the settings allow, whatever clients do. `idle`: resident_bytes before anybody came."""
    return Bound(
        {
            "idle processes": idle,
            ring_name(settings): ring_bytes(settings),
            hands_name(settings): hands_bytes(settings),
            f"{settings.http.fronts} fronts x {settings.http.max_connections} connections"
            f" x {connection_bytes(settings):,} bytes": settings.http.fronts
            * settings.http.max_connections
            * connection_bytes(settings),
        }
    )


def bound_of_requests(settings: Settings, idle: int, connections: int, request: int) -> Bound:
    """The same with so many connections on which one small request at a time is sent, of so many
    bytes: it is held as it came, and as it goes into a slot."""
    each = OBJECTS_BYTES + 2 * request
    return Bound(
        {
            "idle processes": idle,
            ring_name(settings): ring_bytes(settings),
            hands_name(settings): hands_bytes(settings),
            f"{connections} connections x {each:,} bytes": connections * each,
        }
    )


def ring_bytes(settings: Settings) -> int:
    """Of the ring's file: slots and hands, all of it."""
    sizes = geometry(settings)
    return Mapping.bytes_needed(
        sizes["capacity"], sizes["slot_bytes"], sizes["readers"], sizes["writers"], sizes["hand"]
    )


def ring_name(settings: Settings) -> str:
    """Its sizes."""
    sizes = geometry(settings)
    return (
        f"ring ({sizes['capacity']} slots + {sizes['readers']} hands of {sizes['hand']})"
        f" x {sizes['slot_bytes']:,} bytes"
    )


def hands_bytes(settings: Settings) -> int:
    """Of the copies that workers have of what is in their hands."""
    return settings.work.workers * geometry(settings)["hand"] * settings.ring.slot_bytes


def hands_name(settings: Settings) -> str:
    """Its sizes."""
    return f"{settings.work.workers} workers x {geometry(settings)['hand']} orders in hand"


def connection_bytes(settings: Settings) -> int:
    """The most that one connection may hold: the head of its request, and either the body that is
    being read, gathered and then copied once, or, while its order waits for room, the order as it
    goes into a slot and what was read behind the request."""
    reading = 2 * settings.http.max_body_bytes + READ_BYTES_MAX
    waiting = settings.ring.slot_bytes + HELD_BYTES_MAX + READ_BYTES_MAX
    return OBJECTS_BYTES + HEAD_BYTES_MAX + max(reading, waiting)

"""What can be seen of a system from outside, without changing anything: `rasher status`.

Nothing is locked either: whoever starts meanwhile would find the data dir taken.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from processors.datadir import attach_rings, count_orders, pid_path, read_link
from processors.dead_letters import count_dead_letters
from processors.delivery_list import backlog
from processors.inspector import look_at_ring
from processors.journal import journal_dir
from processors.schema import format_instant
from processors.settings import Settings
from processors.store import Store
from processors.tally import OWNER
from ringbuf import Participant, Ring
from ringbuf.participants import start_ticks
from ringbuf.segment import segment_paths

PID_BYTES_MAX = 20
TITLE = re.compile(r"rasher (front|worker|relay)(?: ([0-9]+))?")
ROLES = ("front", "worker", "relay")


class Supervisor(Struct, frozen=True):
    """Who holds the data dir; `since`: when that process began, RFC 3339 UTC."""

    pid: int
    since: str


class ProcessView(Struct, frozen=True):
    """Of a process that is in the ring, or a child of the supervisor."""

    role: str
    index: int
    pid: int
    alive: bool


class RingState(Struct, frozen=True):
    """The ring in use. `oldest_s`: age of the next order, None when none waits. `moving`: orders in
    rings of other settings, to be moved into it."""

    path: str
    capacity: int
    depth: int
    oldest_s: float | None
    closed: bool
    moving: int


class Rings(Struct, frozen=True):
    """ring: None when there is none; `missing`: what is named and is not there. `hands`: orders by
    worker, those without any left out."""

    ring: RingState | None = None
    missing: str | None = None
    hands: dict[int, int] = {}
    processes: list[ProcessView] = []


class JournalState(Struct, frozen=True):
    """Of what is on disk, whether the database knows it or not."""

    segments: int
    bytes: int


class DatabaseState(Struct, frozen=True):
    """What is in it for operators. outbox: what is still to be told to endpoints."""

    dead_letters: int
    outbox_pending: int
    outbox_oldest_s: float


def find_supervisor(settings: Settings) -> Supervisor | None:
    """Whoever is named in the pid file and has it open; a number that a killed run has left, and
    that is somebody else's by now, does not count. Raises OSError."""
    path = pid_path(settings)
    try:
        with path.open("rb") as file:
            text = file.read(PID_BYTES_MAX).strip()
    except FileNotFoundError:
        return None
    pid = int(text) if text.isdigit() else 0
    ticks = start_ticks(pid)
    if ticks is None or not _has_open(pid, path):
        return None
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    # To a tenth of a second, so that it is told in the same way twice.
    return Supervisor(pid, format_instant(round(10 * (time.time() - age_s)) * 100_000))


def _has_open(pid: int, path: Path) -> bool:
    """Another user's process, whose files can't be seen, counts."""
    wanted = path.stat()
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                if os.path.samestat(entry.stat(), wanted):
                    return True
    except PermissionError:
        return True
    except (FileNotFoundError, ProcessLookupError):
        pass
    return False


def look_at_rings(settings: Settings) -> Rings:
    """Raises RingError, OSError for what can't be read."""
    rings = attach_rings(settings)
    try:
        if rings:
            return _look_at(rings[-1], sum(map(count_orders, rings[:-1])))
    finally:
        for ring in rings:
            ring.detach()
    named = read_link(settings)
    return Rings(missing=f"{named[0]}: there is no ring of {settings.data_dir}" if named else None)


def _look_at(ring: Ring, moving: int) -> Rings:
    view = look_at_ring(ring)
    state = RingState(
        view.path, view.capacity, view.depth, view.oldest_s, closed=view.closed, moving=moving
    )
    return Rings(state, None, view.hands, [_participant(ring, one) for one in ring.participants()])


def _participant(ring: Ring, one: Participant) -> ProcessView:
    """A front's page says which front it is, a worker's index is its own."""
    if one.role == "reader":
        return ProcessView("worker", one.index, one.pid, one.alive())
    owner = ring.pages()[ring.readers + one.index][OWNER]
    return ProcessView("front", max(0, owner - 1), one.pid, one.alive())


def living_children(pid: int) -> list[ProcessView]:
    """Those that have their titles; the relay is in no ring, nor is who has just begun."""
    return [
        ProcessView(title[1], int(title[2] or 0), child, alive=True)
        for child in _children(pid)
        if (title := TITLE.fullmatch(_title(child))) is not None
    ]


def _children(pid: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_bytes()
        except OSError:
            continue  # it has ended meanwhile
        state, parent = stat.rpartition(b")")[2].split()[:2]
        if int(parent) == pid and state not in (b"Z", b"X"):
            yield int(entry.name)


def _title(pid: int) -> str:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return line.partition(b"\0")[0].decode(errors="replace").strip()


def all_processes(found: list[ProcessView], children: list[ProcessView]) -> list[ProcessView]:
    """Each once, fronts first."""
    everybody = {one.pid: one for one in (*found, *children)}
    return sorted(everybody.values(), key=lambda one: (ROLES.index(one.role), one.index, one.pid))


def look_at_journal(settings: Settings) -> JournalState:
    """How large it is; nothing of it is read. Raises OSError."""
    sizes = []
    for path in segment_paths(journal_dir(settings)):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:
            continue  # all of it was committed meanwhile
    return JournalState(len(sizes), sum(sizes))


def look_at_database(settings: Settings, patience_s: float) -> DatabaseState:
    """Raises StoreError, StoreUnavailable, and sqlalchemy's errors for tables that are not of this
    version."""
    store = Store.onlooker(settings.database, patience_s)
    try:
        # Of all endpoints that it told: its settings may be others than these here.
        untold = backlog(store)
        return DatabaseState(count_dead_letters(store), untold.events, untold.oldest_s)
    finally:
        store.close()

"""`rasher status [--json]`: how the system of this data dir is, and whether it would take an order.

Each part is looked at in a thread of its own, and what does not answer in time is told as that: a
database that is away, a disk that hangs or a damaged ring keep nobody from hearing of the others.
Nothing is changed, locked or made.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import TypeVar

import msgspec
import sqlalchemy as sa
from msgspec import Struct

from ingest import door
from processors.settings import Settings
from processors.status import (
    DatabaseState,
    JournalState,
    ProcessView,
    Rings,
    RingState,
    all_processes,
    find_supervisor,
    living_children,
    look_at_database,
    look_at_journal,
    look_at_rings,
)
from processors.usage import version

# What lies on this machine is there at once, unless a disk hangs; then whoever has to answer.
LOOK_S_MAX = 3.0
ANSWER_S_MAX = 3.0
EXIT_NOT_READY = 1

T = TypeVar("T")


class Status(Struct):
    """All of it, as JSON shows it. `reason`: why it would take nothing in; `degraded`: what is
    down although it would. `problems`: of the parts that could not be looked at, by name."""

    data_dir: str
    version: str
    running: bool = False
    ready: bool = False
    reason: str | None = None
    degraded: list[str] = []
    pid: int | None = None
    since: str | None = None
    url: str | None = None
    ring: RingState | None = None
    hands: dict[int, int] = {}
    processes: list[ProcessView] = []
    journal: JournalState | None = None
    database: DatabaseState | None = None
    problems: dict[str, str] = {}


def main(settings: Settings, args: Sequence[str]) -> int:
    """The verb. Exit 0 when it runs and would take an order in, 1 when not, 2 for wrong usage."""
    options = _parser().parse_args(args)
    status = look(settings)
    if options.json:
        sys.stdout.write(msgspec.json.encode(status).decode() + "\n")
    else:
        sys.stdout.write("".join(f"{name:<13}{value}\n" for name, value in lines(status)))
    return 0 if status.ready else EXIT_NOT_READY


def look(settings: Settings) -> Status:
    """Within LOOK_S_MAX + ANSWER_S_MAX."""
    status = Status(settings.data_dir, version())
    view = _View(status)
    database = _begin(lambda: look_at_database(settings, ANSWER_S_MAX))
    journal = _begin(lambda: look_at_journal(settings))
    rings = _begin(lambda: look_at_rings(settings))
    supervisor = view.part("supervisor", _begin(lambda: find_supervisor(settings)))
    found = view.part("ring", rings) or Rings()
    status.ring, status.hands, status.processes = found.ring, found.hands, found.processes
    if found.missing is not None:
        status.problems["ring"] = found.missing
    view.seconds_more(ANSWER_S_MAX)
    if supervisor is not None:
        status.running, status.pid, status.since = True, supervisor.pid, supervisor.since
        children = view.part("processes", _begin(lambda: living_children(supervisor.pid)))
        status.processes = all_processes(found.processes, children or [])
    status.reason = _silence(status, found)
    if status.reason is None:
        _ask(status, view, tls=bool(settings.http.ssl_certfile))
    status.journal = view.part("journal", journal)
    status.database = view.part("database", database)
    return status


class _View:
    """Until when answers are waited for, and what those say that have none."""

    def __init__(self, status: Status) -> None:
        self._problems = status.problems
        self._begun = time.monotonic()
        self._patience_s = LOOK_S_MAX

    def seconds_more(self, patience_s: float) -> None:
        self._patience_s += patience_s

    def part(self, name: str, asked: Future[T]) -> T | None:
        """What was found; None with the problem noted."""
        left_s = self._begun + self._patience_s - time.monotonic()
        try:
            return asked.result(max(0.0, left_s))
        except sa.exc.DBAPIError as error:
            self._problems[name] = _one_line(error.orig or error)
        except TimeoutError:
            self._problems[name] = f"no answer within {self._patience_s:g} s"
        except Exception as error:  # whatever it is: it is told, and the other parts are looked at
            self._problems[name] = _one_line(error)
        return None


def _begin(ask: Callable[[], T]) -> Future[T]:
    """In a thread that nobody waits for at the end, for it may hang."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(ask())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="rasher-status", daemon=True).start()
    return future


def _silence(status: Status, found: Rings) -> str | None:
    """Why nobody need be asked; a ring that can't be read from here may be a good one there."""
    if not status.running:
        return status.problems.get("supervisor", "not running")
    if found.missing is not None:
        return found.missing
    ring = found.ring
    if ring is not None and ring.closed:
        left = ring.depth + ring.moving + sum(found.hands.values())
        return f"it is stopping, {left:,} orders are still in"
    if not any(one.role == "front" and one.alive for one in status.processes):
        return "no front lives: it is starting, or its log says why"
    return None


def _ask(status: Status, view: _View, *, tls: bool) -> None:
    """Fills in what it says itself."""
    pid = status.pid
    assert pid is not None, "nobody is asked who does not run"
    answer = view.part("door", _begin(lambda: door.ask(pid, ANSWER_S_MAX, tls=tls)))
    if answer is None:
        status.reason = status.problems.pop("door")
        return
    status.url, status.reason, status.degraded = answer.url, answer.reason, answer.degraded
    status.ready = answer.reason is None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def lines(status: Status) -> Iterator[tuple[str, str]]:
    """The same as text: what, and how it is."""
    yield "rasher", f"{status.version}, data in {status.data_dir}"
    if status.running:
        yield "running", f"pid {status.pid} since {status.since}"
    yield "ready", _verdict(status)
    if status.ring is None:
        yield "ring", status.problems.get("ring", "none")
    else:
        yield "ring", _ring(status.ring)
    yield "in hands", _hands(status.hands)
    for one in status.processes:
        name = one.role if one.role == "relay" else f"{one.role} {one.index}"
        yield name, f"pid {one.pid}{'' if one.alive else ', dead'}"
    journal, database = status.journal, status.database
    if journal is None:
        yield "journal", status.problems["journal"]
    else:
        yield "journal", f"{journal.bytes:,} bytes in {journal.segments:,} files"
    if database is None:
        yield "database", status.problems["database"]
        return
    yield "database", "reachable"
    yield "dead letters", f"{database.dead_letters:,}"
    pending, age_s = database.outbox_pending, database.outbox_oldest_s
    yield "outbox", f"{pending:,} to be told{f', the oldest for {age_s:.1f} s' if pending else ''}"


def _verdict(status: Status) -> str:
    if not status.ready:
        return f"no: {status.reason}"
    degraded = f", degraded: {', '.join(status.degraded)}" if status.degraded else ""
    return f"yes, on {status.url}{degraded}"


def _ring(ring: RingState) -> str:
    parts = [f"{ring.depth:,} of {ring.capacity:,} wait"]
    if ring.oldest_s is not None:
        parts.append(f"the oldest for {ring.oldest_s:.1f} s")
    if ring.moving:
        parts.append(f"{ring.moving:,} to be moved from rings of other settings")
    if ring.closed:
        parts.append("closed")
    return ", ".join(parts)


def _hands(hands: dict[int, int]) -> str:
    return ", ".join(f"{count} in hand {index}" for index, count in hands.items()) or "none"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("rasher status", description="How the system is.")
    parser.add_argument("--json", action="store_true", help="for programs")
    return parser

"""SIGKILL at every step of the supervisor: the next start finds everything, and leaves nothing."""

from __future__ import annotations

import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from processors.audit import run_audit
from processors.schema import Line, Order, RecordHeader, body_hash, encode_header, encode_order
from processors.store import Store
from ringbuf import Misfit, Participant, Ring
from tests.crash.knife import Cut
from tests.processors.kit import until
from tests.ringbuf.nursery import Actor, Nursery

ORDERS = 3
FILES = "line:supervisor.py+processors/datadir.py+processors/parent.py+ringbuf/ring.py"

MAKING_A_RING: list[tuple[Cut, list[str]]] = [
    (Cut("supervisor:hold_data_dir", "after"), []),
    (Cut("supervisor:check_database_file", "after"), []),
    (Cut("processors.datadir:write_link", "before"), []),
    (Cut("pathlib:Path.write_text", "after"), []),
    (Cut("processors.datadir:write_link", "after"), []),
    (Cut("ringbuf.ring:_allocate", "before"), [".tmp"]),
    (Cut("ringbuf.ring:_allocate", "after"), [".tmp"]),
    (Cut("os:link", "before"), [".tmp"]),
    (Cut("os:link", "after"), [".ring", ".tmp"]),
]
STARTING = [
    Cut("processors.datadir:attach_any_layout", "after"),
    Cut("processors.datadir:end_participants", "after"),
    Cut("ringbuf.ring:Ring.reopen", "before"),
    Cut("ringbuf.ring:Ring.reopen", "after"),
    Cut("supervisor:migrated", "before"),
    Cut("processors.migrate:upgrade", "after"),
    Cut("supervisor:migrated", "after"),
    Cut("supervisor:listen", "after"),
]
SPAWNING = [
    Cut("supervisor:Tree.start", "before"),
    Cut("processors.parent:write_launch", "after"),
    Cut("subprocess:Popen", "after"),
    Cut("supervisor:Tree.start", "after"),
    Cut("subprocess:Popen", "after", 2),
    Cut("supervisor:Tree.start", "after", 2),
    Cut("supervisor:Tree.announce", "before"),
]
REPLACING = [
    Cut("processors.parent:Processes._reap", "after"),
    Cut("subprocess:Popen", "after", 3),
]
RELOADING = [
    Cut("supervisor:Tree.start", "after", 3),
    Cut("processors.parent:Processes.install", "before", 2),
]
MOVING = [
    Cut("processors.datadir:create_ring", "before"),
    Cut("processors.datadir:create_ring", "after"),
    Cut("processors.moving:in_order", "after"),
    Cut("processors.moving:Mover._put", "after"),
    Cut("ringbuf.reader:Reader.release", "after", 2),
    Cut("processors.moving:remove_ring", "before"),
    Cut("processors.moving:remove_ring", "after"),
    Cut("supervisor:Tree.move", "after"),
]
DRAINING = [
    Cut("processors.parent:Processes.signal", "after"),
    Cut("supervisor:Tree.close_ring", "before"),
    Cut("supervisor:Tree.close_ring", "after"),
    Cut("ringbuf.ring:Ring.unlink", "after"),
    Cut("supervisor:remove_ring", "after"),
]


def order() -> tuple[bytes, bytes, bytes]:
    """Payload, key and header of an order, as a front puts it."""
    payload = encode_order(Order("Funky Foods", [Line("BELLY", 1500)], None, None))
    return payload, uuid4().bytes, encode_header(RecordHeader(body_hash(payload)))


def parent(pid: int) -> int | None:
    try:
        return psutil.Process(pid).ppid()
    except psutil.NoSuchProcess:
        return None


class Premises:
    """A data dir that supervisors start on and die on."""

    def __init__(self, data_dir: Path, ring_dir: Path, nursery: Nursery) -> None:
        self.data_dir, self.ring_dir, self.nursery = data_dir, ring_dir, nursery
        data_dir.mkdir(parents=True)
        self.path = str(data_dir / "run")
        self.log = Path(f"{self.path}.cuts")
        self.promised: set[bytes] = set()
        self.capacity = 100

    @property
    def argv(self) -> list[str]:
        words = ["--data-dir", str(self.data_dir), "--ring-dir", str(self.ring_dir)]
        words += ["--port", "0", "--workers", "1", "--graceful-timeout", "20"]
        words += ["--log-level", "error"]  # it starts hundreds of times
        return [*words, "--capacity", str(self.capacity)]

    def start(self, cut: Cut | None = None) -> Actor:
        self.log.unlink(missing_ok=True)
        return self.nursery.start("supervise", self.path, self.argv, cut.text if cut else "")

    def ring(self) -> Ring:
        """The one in use."""
        return Ring.attach((self.data_dir / "ring.path").read_text().splitlines()[0])

    def put(self) -> None:
        with self.ring() as ring, ring.writer() as writer:
            for _ in range(ORDERS):
                payload, key, header = order()
                assert writer.try_put(payload, key, header) is not None
                self.promised.add(key)

    def child(self, role: str, supervisor: Actor) -> Participant:
        """Waits until its one child of that role takes part in the ring."""
        found: list[Participant] = []

        def there() -> bool:
            with suppress(FileNotFoundError, Misfit), self.ring() as ring:
                found[:] = [
                    one
                    for one in ring.participants()
                    if one.role == role and parent(one.pid) == supervisor.pid
                ]
            return bool(found)

        until(there, f"a {role} in the ring")
        return found[0]

    def in_ring(self) -> set[bytes]:
        """What lies in any ring of this data dir, looked at with the flow: the one in use last."""
        there: set[bytes] = set()
        link = self.data_dir / "ring.path"
        for path in reversed(link.read_text().splitlines() if link.exists() else []):
            with suppress(FileNotFoundError), Ring.attach(path) as ring:
                look = ring.snapshot()
                there |= {item.key for item in [*look.waiting, *(item for _, item in look.held)]}
        return there

    def stored(self) -> set[bytes]:
        path = self.data_dir / "rasher.db"
        if not path.exists():
            return set()
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            tables = database.execute("SELECT name FROM sqlite_master").fetchall()
            if ("orders",) not in tables:
                return set()
            return {key for (key,) in database.execute("SELECT id FROM orders")}

    def killed_at(self, cut: Cut, run: Callable[[Actor], None] = lambda _: None) -> None:
        """A start ends there, once `run` has brought it so far; what was promised is still there.

        Its children may live on for an instant: so the ring is looked at first, as orders flow.
        """
        supervisor = self.start(cut)
        run(supervisor)
        assert supervisor.ended()
        assert not supervisor.outcome.exists(), f"{cut} not hit: {supervisor.outcome.read_text()}"
        assert self.log.read_text().split() == [cut.place]
        assert self.promised <= self.in_ring() | self.stored(), cut

    def ends_well(self) -> None:
        """A start without a knife works off everything, once, and leaves nothing behind."""
        supervisor = self.start()
        until(lambda: self.stored() == self.promised, "every order stored")
        self.child("writer", supervisor)
        supervisor.send(signal.SIGTERM)
        assert supervisor.result() == 0
        assert list(self.ring_dir.iterdir()) == []
        assert not (self.data_dir / "ring.path").exists()
        with closing(Store.open(f"sqlite:///{self.data_dir}/rasher.db")) as store:
            report = run_audit([], store)
        assert report.ok, report.lines()


@pytest.fixture
def premises(data_dir: Path, ring_dir: Path, mains: Nursery) -> Iterator[Premises]:
    yield Premises(data_dir, ring_dir, mains)
    mains.end_all()


def has_a_child(supervisor: Actor) -> bool:
    """Waits until it has, or has ended."""

    def children() -> bool:
        with suppress(psutil.NoSuchProcess):
            return bool(psutil.Process(supervisor.pid).children())
        return False

    until(lambda: supervisor.ended(0) or children(), "dead, or with a child")
    return not supervisor.ended(0)


def remove_ring_file(premises: Premises) -> None:
    """ring.path then names a ring that is not there."""
    for path in premises.ring_dir.glob("*.ring"):
        path.unlink()


def left_in_ring_dir(premises: Premises) -> list[str]:
    """By their kind: a ring, or half of one."""
    return sorted(path.suffix for path in premises.ring_dir.iterdir())


def test_a_killed_start_is_finished_by_the_next_one(premises: Premises) -> None:
    """It dies while it makes the ring, before it listens, and while it starts its children."""
    for cut, left in MAKING_A_RING:
        premises.killed_at(cut)
        assert left_in_ring_dir(premises) == left, cut
    for cut in STARTING:
        premises.put()
        premises.killed_at(cut)
        assert premises.in_ring() == premises.promised
        assert left_in_ring_dir(premises) == [".ring"]
    for cut in SPAWNING:
        premises.put()
        premises.killed_at(cut)
    premises.ends_well()


def test_a_start_killed_while_it_moves_orders_of_other_settings_moves_them_all(
    premises: Premises,
) -> None:
    premises.killed_at(Cut("supervisor:open_rings", "after"))
    for cut in MOVING:
        premises.put()
        premises.capacity += 1
        premises.killed_at(cut)
    premises.ends_well()


@pytest.mark.timeout(300)
def test_a_supervisor_killed_while_it_replaces_reloads_or_drains_is_taken_over(
    premises: Premises,
) -> None:
    def a_worker_dies(supervisor: Actor) -> None:
        premises.child("writer", supervisor)
        worker = premises.child("reader", supervisor)
        premises.put()
        worker.kill()

    def it_is_asked_to_end(supervisor: Actor) -> None:
        premises.child("writer", supervisor)
        premises.child("reader", supervisor)
        premises.put()
        supervisor.send(signal.SIGTERM)

    def it_is_asked_to_reload(supervisor: Actor) -> None:
        premises.child("writer", supervisor)
        premises.child("reader", supervisor)
        premises.put()
        supervisor.send(signal.SIGHUP)

    for cut in REPLACING:
        premises.killed_at(cut, a_worker_dies)
    for cut in RELOADING:
        premises.killed_at(cut, it_is_asked_to_reload)
    for cut in DRAINING:
        premises.killed_at(cut, it_is_asked_to_end)
    premises.ends_well()


@pytest.mark.prove
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("anew", [True, False], ids=["a new ring", "the ring of the run before"])
def test_a_start_killed_at_every_line_until_it_has_a_child(premises: Premises, anew: bool) -> None:
    """The kill at the nth line for n = 1, 2, 3, ..., with and without a ring to go on with."""
    lines = 0
    if not anew:
        premises.killed_at(Cut("supervisor:open_rings", "after"))
        premises.put()
    while True:
        supervisor = premises.start(Cut(FILES, "", lines + 1))
        if has_a_child(supervisor):
            break
        assert not supervisor.outcome.exists(), supervisor.outcome.read_text()
        lines += 1
        assert premises.promised <= premises.in_ring() | premises.stored()
        assert left_in_ring_dir(premises).count(".tmp") <= 1
        if anew:
            remove_ring_file(premises)
    supervisor.kill()
    premises.ends_well()
    ring = "a new ring" if anew else "the ring of the run before"
    sys.stdout.write(f"\nsupervisor killed at each of {lines} lines of its start, {ring}: 0 bad\n")

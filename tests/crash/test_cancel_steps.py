"""SIGKILL at every step of a cancel, and of a worker beside it: an order is cancelled, or not, and
its stock is back once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from processors.known import Known
from ringbuf import Identity
from tests.crash.knife import Cut
from tests.crash.test_worker_steps import AFTER_COMMIT, BEFORE_COMMIT, LEFT_HAND, ORDERS, Shop
from tests.processors.kit import House
from tests.ringbuf.nursery import Actor, Nursery

PIECES = 10**9
CANCEL = "processors.cancelling:Canceller"
# A few for the suite; each line is for the proofs.
NOT_YET = [Cut(f"{CANCEL}._cancel", "after")]
DONE = [Cut(f"{CANCEL}.cancel", "after")]
WAITS = [Cut("processors.recording:Recorder.record", "after")]
ALLOCATED = [Cut("processors.cancelling:_post", "after")]


class Counter(Shop):
    """Where orders are cancelled."""

    def cancel(self, cut: Cut | None = None) -> Actor:
        """The first order."""
        self.log.unlink(missing_ok=True)
        folder, text = str(self.house.folder), cut.text if cut else ""
        return self.nursery.start("cancel", self.path, folder, self.keys[0].hex(), text)

    def cancel_killed_at(self, cut: Cut) -> None:
        actor = self.cancel(cut)
        assert actor.ended()
        assert not actor.outcome.exists(), f"{cut} not hit: {actor.outcome.read_text()}"

    def waiting(self) -> None:
        self.orders()

    def held(self) -> None:
        self.orders()
        self.left_in_hand()

    def allocated(self) -> None:
        self.orders()
        self.house.work()

    def statuses(self) -> list[str]:
        rows = dict(self.house.rows("SELECT id, status FROM orders"))
        return [rows.get(key, "none") for key in self.keys]

    def ends_cancelled(self, adopt: list[int]) -> None:
        """Whatever was killed: the order is, and takes no effect, and its record is known."""
        self.is_worked_off(adopt)
        assert self.statuses() == ["cancelled", "allocated", "allocated"]
        ((sold,),) = self.house.rows("SELECT count(*) FROM orders WHERE status = 'allocated'")
        assert self.house.rows("SELECT available FROM lots") == [(PIECES - 1000 * sold,)]
        with self.house.store.reading() as connection:
            journaled = [Identity(key, 0) for key in self.keys]
            assert len(Known().of(connection, journaled)) == ORDERS


@pytest.fixture
def counter(tmp_path: Path, mains: Nursery) -> Iterator[Counter]:
    house = House(tmp_path)
    yield Counter(house, mains)
    mains.end_all()
    house.close()


Situation = Callable[[Counter], None]
SITUATIONS = [
    pytest.param(Counter.waiting, WAITS, [], id="waiting"),
    pytest.param(Counter.held, WAITS, [LEFT_HAND], id="held"),
    pytest.param(Counter.allocated, ALLOCATED, [], id="allocated"),
]


@pytest.mark.parametrize(("situation", "cuts", "adopt"), SITUATIONS)
def test_a_cancel_that_is_killed_has_done_nothing_or_all(
    counter: Counter,
    situation: Situation,
    cuts: list[Cut],
    adopt: list[int],
) -> None:
    cases = [(cut, "cancelled") for cut in NOT_YET + cuts] + [(cut, "already") for cut in DONE]
    for cut, verdict in cases:
        situation(counter)
        before = counter.statuses()
        counter.cancel_killed_at(cut)
        assert (counter.statuses() == before) == (verdict == "cancelled"), cut
        assert counter.cancel().result() == verdict, cut
        counter.ends_cancelled(adopt)


def test_an_order_is_cancelled_that_a_killed_worker_had(counter: Counter) -> None:
    for cut in (BEFORE_COMMIT[-2], AFTER_COMMIT[0]):
        counter.orders()
        counter.killed_at(cut)
        assert counter.cancel().result() == "cancelled", cut
        counter.ends_cancelled([])


@pytest.mark.prove
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("situation", "_cuts", "adopt"), SITUATIONS)
def test_a_cancel_killed_at_every_line_that_it_runs(
    counter: Counter, situation: Situation, _cuts: object, adopt: list[int]
) -> None:
    lines, found = 0, {"cancelled": 0, "already": 0}
    while True:
        situation(counter)
        actor = counter.cancel(Cut("line", "", lines + 1))
        assert actor.ended()
        if actor.outcome.exists():
            break
        lines += 1
        found[counter.cancel().result()] += 1
        counter.ends_cancelled(adopt)
    assert actor.result() == "cancelled"
    assert min(found.values()) > 0
    sys.stdout.write(
        f"\ncancel, {situation.__name__}, killed at each of {lines} lines that it runs:"
        f" nothing done {found['cancelled']} times, all {found['already']} times, 0 bad\n"
    )

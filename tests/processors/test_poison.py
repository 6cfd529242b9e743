"""Orders that end their worker: found by being alone, tried, then dead; nobody else pays for it."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

import pytest
from sqlalchemy.engine import Connection

from processors import worker as worker_module
from processors.mortem import PostMortem
from processors.pipeline import Outcome, Work, fefo
from processors.schema import load_order
from processors.stop import Stop
from processors.store import Store, StoreBusy
from processors.worker import Rules
from ringbuf import Reader
from ringbuf.participants import own_identity
from tests.processors.kit import House, on_sqlite, settled_by

REJECTED = Outcome.rejected("tested")
CRASH, TIME_UP, KILL = -11, -14, -9


class Killed(BaseException):
    """What no worker survives; the hand stays as it is."""


class Line:
    """Workers of one index, one after the other, over whatever lies in their hand."""

    def __init__(self, house: House, returncode: int = CRASH, rules: Rules | None = None) -> None:
        self.house = house
        self.returncode = returncode
        self.rules = rules or Rules()
        self.seen: list[list[bytes]] = []  # what each of them was at, in that order
        self.fatal: set[bytes] = set()
        self.post_mortem = PostMortem(house.ring)

    def live(self) -> bool:
        """-> whether it came to its end; False: it was ended."""
        self.seen.append([])
        reader = self.house.ring.reader(0)
        with Stop() as stop:
            worker = self.house.worker(stop, settled_by(self.decide), self.rules)
            try:
                worker.work_off(reader)
            except Killed:
                self.bury(reader)
                return False
        reader.close()
        return True

    def bury(self, reader: Reader) -> None:
        """The worker of this hand has ended like that, and its supervisor has looked."""
        reader.shut()
        self.house.ring.mapping.swap_participant(reader.index, own_identity(), 1)
        words = "its traceback"
        self.post_mortem.examine(reader.index, self.returncode, "was ended", words)

    def take_and_die(self, count: int) -> None:
        """The first of them, at a batch."""
        reader = self.house.ring.reader(0)
        assert len(reader.take(count)) == count
        self.bury(reader)

    def decide(self, work: Work) -> Outcome:
        if self.seen[-1][-1:] != [work.order_id]:  # rehearsed, then worked on
            self.seen[-1].append(work.order_id)
        if work.order_id in self.fatal:
            raise Killed
        return REJECTED


@pytest.fixture
def line(house: House, monkeypatch: pytest.MonkeyPatch) -> Line:
    monkeypatch.setattr(worker_module, "CRASH_PAUSE_S", 0.01)
    return Line(house)


def test_the_one_that_ends_its_workers_is_dead_after_its_attempts_and_the_others_are_settled(
    line: Line, house: House
) -> None:
    keys = [house.put(("HAM", 1000)) for _ in range(5)]
    line.fatal = {keys[2]}
    line.take_and_die(5)
    lives = [line.live() for _ in range(4)]
    assert lives == [False, False, False, True]
    assert line.seen == [keys[:3], [*keys[3:], keys[2]], [keys[2]], []]
    assert [house.view(key).status for key in keys] == ["rejected"] * 2 + ["dead"] + [
        "rejected"
    ] * 2
    dead = house.view(keys[2])
    assert (dead.reason, dead.customer) == ("worker_crashed", "Funky Foods")
    assert dead.cause is not None
    assert dead.cause.startswith("3 workers ended by themselves over it; the last: a worker that")
    assert dead.cause.endswith("its traceback")
    assert house.audit().ok


def test_the_others_are_settled_before_it_is_tried_again(line: Line, house: House) -> None:
    keys = [house.put(("HAM", 1000)) for _ in range(6)]
    line.fatal = {keys[0], keys[3]}
    line.take_and_die(6)
    for _ in range(3):
        assert not line.live()
    # Each of the two is met once before all others are settled, and neither is tried again before.
    assert line.seen[0] == [keys[0]]
    assert line.seen[1] == [keys[1], keys[2], keys[3]]
    assert line.seen[2][:2] == [keys[4], keys[5]]


def test_what_a_batch_died_of_and_nobody_alone_is_nobody_s_fault(line: Line, house: House) -> None:
    keys = [house.put(("HAM", 1000)) for _ in range(3)]
    line.take_and_die(3)
    assert line.live()
    assert [house.view(key).status for key in keys] == ["rejected"] * 3


def test_kills_from_outside_make_no_dead_letters(house: House) -> None:
    line = Line(house, KILL)
    key = house.put(("HAM", 1000))
    line.fatal = {key}
    for _ in range(7):
        line.take_and_die(1) if not line.seen else None
        assert not line.live()
    line.fatal = set()
    assert line.live()
    assert (house.view(key).status, house.view(key).attempts) == ("rejected", 9)


def test_one_that_is_late_on_trial_goes_behind_the_others_and_has_all_its_time_then(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "CRASH_PAUSE_S", 0.01)
    line = Line(house, TIME_UP)
    keys = [house.put(("HAM", 1000)) for _ in range(3)]
    line.fatal = {keys[0]}
    line.take_and_die(3)
    lives = [line.live() for _ in range(5)]
    assert lives == [False] * 4 + [True]
    assert line.seen == [[keys[0]], [keys[1], keys[2], keys[0]], [keys[0]], [keys[0]], []]
    assert house.view(keys[0]).reason == "timed_out"


def test_a_slow_one_that_needs_more_than_its_trial_is_settled(house: House) -> None:
    line = Line(house, TIME_UP)
    keys = [house.put(("HAM", 1000)) for _ in range(2)]
    line.take_and_die(2)
    line.fatal = {keys[0]}
    assert not line.live()
    line.fatal = set()
    assert line.live()
    assert [house.view(key).status for key in keys] == ["rejected"] * 2


def test_one_attempt_is_enough_when_the_settings_say_so(line: Line, house: House) -> None:
    line.rules = Rules(attempts=1)
    key = house.put(("HAM", 1000))
    line.fatal = {key}
    line.take_and_die(1)
    assert [line.live(), line.live()] == [False, True]
    assert house.view(key).status == "dead"


def test_a_worker_that_dies_at_a_single_order_out_of_the_ring_blames_it_at_once(
    line: Line, house: House
) -> None:
    key = house.put(("HAM", 1000))
    line.fatal = {key}
    reader = house.ring.reader(0)
    line.seen.append([])
    with Stop() as stop:
        worker = house.worker(stop, settled_by(line.decide))
        with pytest.raises(Killed):
            worker.run(reader)
    line.bury(reader)
    ((_, item),) = house.ring.snapshot().held
    assert item.crashes == 1


def test_what_reading_an_order_ends_is_found_too_and_then_kept_unread(
    line: Line, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [house.put(("HAM", 1000), key=uuid4().bytes) for _ in range(2)]
    line.take_and_die(2)
    calls = []

    def reads(payload: bytes) -> object:
        calls.append(payload)
        if len(calls) != 2:  # the second one read is the good one
            raise Killed
        return load_order(payload)

    monkeypatch.setattr("processors.jobs.load_order", reads)
    lives = [line.live() for _ in range(5)]
    assert lives == [False, False, False, False, True]
    assert [house.view(key).status for key in keys] == ["dead", "rejected"]
    assert house.rows("SELECT count(*) FROM orders WHERE payload IS NOT NULL") == [(1,)]


def test_a_run_begins_with_what_was_left_in_its_hand_one_by_one(line: Line, house: House) -> None:
    keys = [house.put(("HAM", 1000)) for _ in range(4)]
    line.fatal = {keys[1]}
    line.take_and_die(3)
    reader = house.ring.reader(0)
    line.seen.append([])
    with Stop() as stop:
        worker = house.worker(stop, settled_by(line.decide))
        with pytest.raises(Killed):
            worker.run(reader)
    line.bury(reader)
    assert line.seen == [keys[:2]]
    assert [item.crashes for _, item in house.ring.snapshot().held] == [1, 0]


@on_sqlite
def test_a_suspect_is_rehearsed_without_the_write_lock(line: Line, house: House) -> None:
    """Hanging there it would hold up nobody; what it did there has no effect."""
    house.stock(house.lot("a", "HAM", 10_000))
    key = house.put(("HAM", 1000))
    line.take_and_die(1)
    inner, seen = fefo(), []

    def process(transaction: Connection, orders: Sequence[Work], moment: int) -> Sequence[Outcome]:
        other = Store.open(house.url, busy_timeout_s=0.05)
        try:
            with other.writing():
                seen.append("free")
        except StoreBusy:
            seen.append("locked")
        finally:
            other.close()
        return inner(transaction, orders, moment)

    with Stop() as stop, house.ring.reader(0) as reader:
        house.worker(stop, process).work_off(reader)
    assert seen == ["free", "locked"]
    assert house.given(key) == [("HAM", "a", "1")]
    assert house.audit().ok


def test_what_is_settled_already_is_not_rehearsed(line: Line, house: House) -> None:
    """A processor is never asked about an order that has its outcome."""
    key = house.put(("HAM", 1000))
    house.work(settled_by(lambda _: REJECTED))
    house.put(("HAM", 1000), key=key)
    line.take_and_die(1)
    assert line.live()
    assert line.seen == [[]]


def test_what_a_suspect_raises_in_its_rehearsal_counts(line: Line, house: House) -> None:
    key = house.put(("HAM", 1000))
    line.take_and_die(1)
    calls = []

    def decide(work: Work) -> Outcome:
        calls.append(work)
        raise ZeroDivisionError

    with Stop() as stop, house.ring.reader(0) as reader:
        house.worker(stop, settled_by(decide)).work_off(reader)
    assert (house.view(key).status, len(calls)) == ("dead", 1)


def test_a_note_that_was_lost_leaves_a_cause_all_the_same(line: Line, house: House) -> None:
    key = house.put(("HAM", 1000))
    line.rules = Rules(attempts=1)
    reader = house.ring.reader(0)
    reader.begin(reader.take()[0])
    reader.shut()
    house.ring.mapping.swap_participant(0, own_identity(), 1)
    assert house.ring.blame(0, "")
    assert line.live()
    assert (house.view(key).status, house.view(key).reason) == ("dead", "worker_crashed")
    assert "the last: unknown" in str(house.view(key).cause)

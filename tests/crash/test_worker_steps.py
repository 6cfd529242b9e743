"""SIGKILL at every step of a worker's commit path: each order takes effect exactly once."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.crash.knife import Cut
from tests.processors.kit import House, until
from tests.ringbuf.nursery import Actor, Nursery

ORDERS = 3
LEFT_HAND = 3  # of a worker that these settings have no place for
BROKEN = "tests.crash.work_actors:broken"

BEFORE_COMMIT = [
    Cut("ringbuf.reader:Reader.take", "after"),
    Cut("processors.worker:read_job", "after", 2),
    Cut("processors.store:Store.writing", "before"),
    Cut("processors.worker:BaconWorker._decide", "before"),
    Cut("processors.recording:Recorder.known", "after"),
    Cut("processors.recording:Recorder.record", "before"),
    Cut("processors.recording:Recorder.record", "after"),
    Cut("processors.worker:BaconWorker._decide", "after"),
]
AFTER_COMMIT = [
    Cut("processors.worker:Outage.over", "before"),
    Cut("ringbuf.ring:Ring.bump_commits", "before"),
    Cut("bump.counted"),
    Cut("ringbuf.ring:Ring.bump_commits", "after"),
    Cut("ringbuf.reader:Reader.release", "before"),
    Cut("release.begun"),
]
RELEASING = [
    Cut("release.freed"),
    Cut("release.begun", nth=2),
    Cut("release.freed", nth=2),
    Cut("release.freed", nth=3),
    Cut("ringbuf.reader:Reader.release", "after"),
]
BEFORE_TAKE = [
    Cut("processors.worker:enter", "after"),
    Cut("ringbuf.ring:Ring.reader", "before"),
    Cut("entry.swapped"),
    Cut("adopt.locked"),
    Cut("ringbuf.ring:Ring.reader", "after"),
    Cut("processors.child:Child.ready", "after"),
    Cut("ringbuf.reader:Reader.take", "before"),
    Cut("take.locked"),
    Cut("take.copied", nth=2),
    Cut("take.publishing"),
]
TAKEN = [Cut("take.published"), Cut("take.unlocked"), *BEFORE_COMMIT]
ADOPTING = [
    Cut("ringbuf.ring:Ring.reader", "before", 2),
    Cut("adopt.counted", nth=2),
    Cut("ringbuf.ring:Ring.reader", "after", 2),
    Cut("processors.worker:BaconWorker.adopt", "before"),
    *BEFORE_COMMIT,
]


NOTING = [
    Cut("processors.expiring:Expirer._note", "before"),
    Cut("processors.expiring:lock_skus", "after"),
    Cut("processors.expiring:expire", "after", 2),
    Cut("processors.expiring:post", "before"),
    Cut("processors.expiring:post", "after"),
    Cut("processors.expiring:Expirer._note", "after"),
]


class Shop:
    """A ring and a database that workers come to and die in."""

    def __init__(self, house: House, nursery: Nursery) -> None:
        self.house, self.ring, self.nursery = house, house.ring, nursery
        assert self.ring.path is not None
        self.path = self.ring.path
        self.log = Path(f"{self.path}.cuts")
        self.keys: list[bytes] = []
        house.stock(house.lot("a", "HAM", 10**9))

    def orders(self) -> None:
        self.keys = [self.house.put(("HAM", 1000)) for _ in range(ORDERS)]

    def worker(self, cut: Cut | None = None, adopt: Sequence[int] = (), made: str = "") -> Actor:
        self.log.unlink(missing_ok=True)
        folder, text = str(self.house.folder), cut.text if cut else ""
        return self.nursery.start("work", self.path, folder, list(adopt), made, text)

    def killed_at(self, cut: Cut, adopt: Sequence[int] = (), made: str = "") -> None:
        worker = self.worker(cut, adopt, made)
        assert worker.ended()
        assert not worker.outcome.exists(), f"{cut} not hit: {worker.outcome.read_text()}"
        assert self.log.read_text().split() == [cut.place]

    def left_in_hand(self) -> None:
        """A reader that died with all orders in its hand."""
        log = f"{self.path}.taken"
        holder = self.nursery.start("take_and_hold", self.path, LEFT_HAND, ORDERS, log)
        until(lambda: self.ring.held_count(LEFT_HAND) == ORDERS, "a full hand")
        holder.kill()

    def committed(self) -> int:
        return sum(key in self.keys for (key,) in self.house.rows("SELECT id FROM orders"))

    def seen(self) -> tuple[int, int, int]:
        """How many orders are committed, held and waiting, after each is found somewhere."""
        look = self.ring.snapshot()
        held = [item.key for _, item in look.held]
        there = [*held, *(item.key for item in look.waiting)]
        assert len(there) == len(set(there))
        stored = {key for (key,) in self.house.rows("SELECT id FROM orders")}
        assert set(self.keys) <= {*there, *stored}
        assert all(self.ring.find(key) for key in there)
        return self.committed(), len(held), len(look.waiting)

    def is_worked_off(self, adopt: Sequence[int] = (), made: str = "") -> None:
        """By a new worker; each order is then stored once, and the stock fits."""
        self.ring.close()
        assert self.worker(adopt=adopt, made=made).result() == 0
        assert self.ring.drained
        self.ring.reopen()
        assert self.seen() == (ORDERS, 0, 0)
        report = self.house.audit()
        assert report.ok, report.lines()


@pytest.fixture
def shop(tmp_path: Path, mains: Nursery) -> Iterator[Shop]:
    house = House(tmp_path)
    yield Shop(house, mains)
    mains.end_all()
    house.close()


def test_a_worker_killed_before_it_has_taken_leaves_all_in_the_ring(shop: Shop) -> None:
    for cut in BEFORE_TAKE:
        shop.orders()
        shop.killed_at(cut)
        held = {"take.copied": 1, "take.publishing": 3}.get(cut.place, 0)  # in doubt
        assert shop.seen() == (0, held, ORDERS - held), cut
        shop.is_worked_off()


def test_a_worker_killed_before_its_commit_has_done_nothing(shop: Shop) -> None:
    for cut in TAKEN:
        shop.orders()
        shop.killed_at(cut)
        assert shop.seen() == (0, ORDERS, 0), cut
        shop.is_worked_off()


def test_a_worker_killed_after_its_commit_has_done_it_once(shop: Shop) -> None:
    for cut in AFTER_COMMIT:
        shop.orders()
        shop.killed_at(cut)
        assert shop.seen() == (ORDERS, ORDERS, 0), cut
        shop.is_worked_off()


def test_a_worker_killed_while_it_releases_has_done_it_once(shop: Shop) -> None:
    for held, cut in zip((2, 2, 1, 0, 0), RELEASING, strict=True):
        shop.orders()
        shop.killed_at(cut)
        assert shop.seen() == (ORDERS, held, 0), cut
        shop.is_worked_off()


def test_a_worker_killed_while_it_works_off_the_hand_of_another_leaves_it_to_the_next(
    shop: Shop,
) -> None:
    """Its orders are run one by one, each in a transaction of its own."""
    second = Cut("processors.worker:read_job", "after", 2)
    cases = [(cut, 0, ORDERS) for cut in ADOPTING if cut != second] + [(second, 1, 2)]
    cases += [(cut, 1, ORDERS) for cut in AFTER_COMMIT]
    left = ((1, 2), (2, 2), (2, 1), (3, 0), (1, 2))
    cases += [(cut, *counts) for counts, cut in zip(left, RELEASING, strict=True)]
    for cut, committed, held in cases:
        shop.orders()
        shop.left_in_hand()
        shop.killed_at(cut, adopt=[LEFT_HAND])
        assert shop.seen() == (committed, held, 0), cut
        shop.is_worked_off(adopt=[LEFT_HAND])


def test_a_worker_killed_while_it_buries_an_order_buries_it_once(shop: Shop) -> None:
    """The batch fails, its orders are run one by one, each is dead in a transaction of its own."""
    blame, record = "processors.worker:BaconWorker._blame", "processors.recording:Recorder.record"
    for cut, committed, held in (
        (Cut(blame, "before"), 0, 3),
        (Cut(record, "after"), 0, 3),
        (Cut("processors.worker:Outage.over", "before"), 1, 3),
        (Cut("release.freed"), 1, 2),
        (Cut(record, "after", 2), 1, 2),
        (Cut("processors.worker:Outage.over", "before", 3), 3, 1),
    ):
        shop.orders()
        shop.killed_at(cut, made=BROKEN)
        assert shop.seen() == (committed, held, 0), cut
        shop.is_worked_off(made=BROKEN)
    assert shop.house.rows("SELECT DISTINCT status FROM orders") == [("dead",)]


def test_a_worker_killed_while_it_notes_what_expired_notes_it_once(shop: Shop) -> None:
    house = shop.house
    for cut in [*NOTING, Cut("processors.expiring:Expirer.step", "after")]:
        shop.orders()
        house.stock(*(house.lot(f"{cut} {i}", "HAM", 500, hours=-1) for i in range(2)))
        noted = len(house.rows("SELECT id FROM stock_events"))
        shop.killed_at(cut)
        done = 2 if cut not in NOTING else 0
        assert len(house.rows("SELECT id FROM stock_events")) == noted + done
        shop.orders()  # for a worker that finds nothing at all ends at once
        shop.is_worked_off()
        assert len(house.rows("SELECT id FROM stock_events")) == noted + 2
        assert house.rows("SELECT expired FROM skus") == [(500 * (noted + 2),)]


@pytest.mark.prove
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("adopt", [(), (LEFT_HAND,)], ids=["own hand", "another's hand"])
def test_a_worker_killed_at_every_line_that_it_runs(shop: Shop, adopt: Sequence[int]) -> None:
    """From its first line to its last: the kill at the nth line for n = 1, 2, 3, ... A lot has
    expired each time. What another left is committed and released one by one."""
    lines, found = 0, dict.fromkeys(("before the commit", "after it", "released"), 0)
    while True:
        shop.orders()
        shop.house.stock(shop.house.lot(f"gone {lines}", "HAM", 1, hours=-1))
        if adopt:
            shop.left_in_hand()
        shop.ring.close()
        worker = shop.worker(Cut("line", "", lines + 1), adopt)
        assert worker.ended()
        shop.ring.reopen()
        if worker.outcome.exists():
            break
        lines += 1
        committed, held, waiting = shop.seen()
        assert committed in (range(ORDERS + 1) if adopt else (0, ORDERS))
        assert ORDERS <= committed + held + waiting <= ORDERS + (1 if adopt else ORDERS)
        found["released" if committed and not held else "after it" if committed
              else "before the commit"] += 1  # fmt: skip
        shop.is_worked_off(adopt)
    assert worker.result() == 0
    assert min(found.values()) > 0
    sys.stdout.write(f"\nworker killed at each of {lines} lines that it runs ({found}): 0 bad\n")

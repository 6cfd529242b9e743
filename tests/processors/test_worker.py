from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from sqlalchemy.engine import Connection

from processors import worker as worker_module
from processors.instants import now_us
from processors.jobs import read_job
from processors.pipeline import Outcome, Retry, Work, fefo
from processors.stop import Stop
from processors.store import Store, StoreUnavailable
from processors.worker import BaconWorker, Rules
from ringbuf import Empty, Item
from tests.processors.kit import House, settled_by

REJECTED = Outcome.rejected("tested")


def statuses(house: House) -> dict[bytes, tuple[str, str | None]]:
    return {row[0]: row[1:] for row in house.rows("SELECT id, status, reason FROM orders")}


# ---- a batch --------------------------------------------------------------------------------


def test_a_batch_is_one_transaction(house: House) -> None:
    house.stock(house.lot("a", "HAM", 100_000))
    batches: list[int] = []
    inner = fefo()

    def process(transaction: Connection, orders: Sequence[Work], moment: int) -> Sequence[Outcome]:
        batches.append(len(orders))
        return inner(transaction, orders, moment)

    for _ in range(130):
        house.put(("HAM", 500))
    commits = house.ring.commits
    house.work(process, Rules(batch=64))
    assert batches == [64, 64, 2]
    assert house.ring.commits == commits + 3
    assert house.rows("SELECT count(*), sum(available) FROM orders, lots") == [(130, 130 * 35_000)]
    assert house.ring.held_count(0) == 0
    assert house.audit().ok


def test_orders_are_served_in_the_order_of_the_ring(house: House) -> None:
    house.stock(house.lot("a", "HAM", 3000))
    keys = [house.put(("HAM", 1000)) for _ in range(5)]
    house.work()
    found = [house.view(key) for key in keys]
    assert [view.status for view in found] == ["allocated"] * 3 + ["rejected"] * 2
    sequences = house.rows("SELECT id, ring_sequence FROM orders ORDER BY ring_sequence")
    assert [key for key, _ in sequences] == keys


def test_a_lot_that_expires_before_the_commit_is_not_used(house: House) -> None:
    house.stock(house.lot("old", "HAM", 1000, hours=0), house.lot("new", "HAM", 1000))
    key = house.put(("HAM", 1000))
    house.work()
    assert house.given(key) == [("HAM", "new", "1")]
    assert house.audit().ok


def test_the_moment_is_read_after_the_lock_was_had(house: House) -> None:
    waiting = threading.Event()
    moments: list[int] = []

    class Telling(Store):
        @contextmanager
        def writing(self) -> Iterator[Connection]:
            waiting.set()
            with super().writing() as connection:
                yield connection

    def process(_t: Connection, orders: Sequence[Work], moment: int) -> list[Outcome]:
        moments.append(moment)
        return [REJECTED for _ in orders]

    house.put(("HAM", 1))
    other = Store.open(house.url)
    with other.writing():
        house.store = Telling(house.store.engine, house.store.kind)
        thread = threading.Thread(target=house.work, args=(process,))
        thread.start()
        assert waiting.wait(10)
        before_release = now_us()
    thread.join()
    other.close()
    assert moments[0] >= before_release


# ---- once -----------------------------------------------------------------------------------


def test_a_redelivered_order_takes_no_effect_again(house: House) -> None:
    house.stock(house.lot("a", "HAM", 10_000))
    key = house.put(("HAM", 1000))
    house.work()
    house.put(("HAM", 1000), key=key)
    worker = house.work()
    assert worker.redelivered == 1
    assert house.ring.held_count(0) == 0
    assert house.given(key) == [("HAM", "a", "1")]
    assert house.audit().ok


def test_of_the_same_id_twice_in_a_batch_the_first_counts(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.stock(house.lot("a", "HAM", 10_000))
    key = house.put(("HAM", 1000))
    house.put(("HAM", 3000), key=key)
    other = house.put(("HAM", 1000))
    asked: list[list[bytes]] = []
    inner = fefo()

    def process(transaction: Connection, orders: Sequence[Work], moment: int) -> Sequence[Outcome]:
        asked.append([work.order_id for work in orders])
        return inner(transaction, orders, moment)

    assert house.work(process).redelivered == 1
    assert asked == [[key, other]]
    assert "came twice with different content" in caplog.text
    assert house.given(key) == [("HAM", "a", "1")]
    assert house.given(other) == [("HAM", "a", "1")]
    assert house.audit().ok


def test_a_batch_committed_and_not_released_is_only_released_by_the_next(house: House) -> None:
    class Killed(BaseException):
        pass

    class Ring:
        """Dies between commit and release."""

        epoch = house.ring.epoch

        def bump_commits(self) -> None:
            raise Killed

    house.stock(house.lot("a", "HAM", 10_000))
    keys = [house.put(("HAM", 1000)) for _ in range(3)]
    house.ring.close()
    with Stop() as stop:
        worker = house.worker(stop)
        worker._ring = Ring()  # type: ignore[assignment]
        with house.ring.reader(0) as reader, pytest.raises(Killed):
            worker.run(reader)
        assert house.ring.held_count(0) == 3
        assert house.audit().counts["in ring or hands, already committed"] == 3
    assert house.work().redelivered == 3
    assert house.ring.held_count(0) == 0
    assert [house.given(key) for key in keys] == [[("HAM", "a", "1")]] * 3
    assert house.audit().ok


def test_a_batch_lies_in_the_hand_until_its_commit_has_returned(house: House) -> None:
    held: list[tuple[str, int]] = []

    class Telling(Store):
        @contextmanager
        def writing(self) -> Iterator[Connection]:
            with super().writing() as connection:
                yield connection
                held.append(("before", house.ring.held_count(0)))
            held.append(("after", house.ring.held_count(0)))

    for _ in range(3):
        house.put(("HAM", 1000))
    house.store = Telling(house.store.engine, house.store.kind)
    house.work()
    assert held == [("before", 3), ("after", 3)]
    assert house.ring.held_count(0) == 0


def test_a_commit_that_fails_after_it_took_effect_is_recognised(house: House) -> None:
    class Ambiguous(Store):
        failed = False

        @contextmanager
        def writing(self) -> Iterator[Connection]:
            with super().writing() as connection:
                yield connection
            if not self.failed:
                self.failed = True
                raise StoreUnavailable("the answer to the commit was lost")

    house.stock(house.lot("a", "HAM", 10_000))
    key = house.put(("HAM", 1000))
    house.store = Ambiguous(house.store.engine, house.store.kind)
    assert house.work().redelivered == 1
    assert house.given(key) == [("HAM", "a", "1")]


# ---- stopping and adopting ------------------------------------------------------------------


def test_asked_to_stop_it_finishes_the_batch_and_takes_no_other(house: House) -> None:
    with Stop() as stop, house.ring.reader(0) as reader:

        def decide(work: Work) -> Outcome:
            stop.request()
            return REJECTED

        for _ in range(5):
            house.put(("HAM", 1))
        house.worker(stop, settled_by(decide), Rules(batch=2)).run(reader)
        assert reader.held() == []
    assert len(statuses(house)) == 2
    assert house.ring.depth == 3


def test_a_hand_left_behind_is_worked_off_and_nothing_new_is_taken_into_it(house: House) -> None:
    old = [house.put(("HAM", 1)) for _ in range(5)]
    with house.ring.reader(3) as dead:
        assert len(dead.take(5, 0)) == 5
    house.put(("HAM", 1))
    with Stop() as stop, house.ring.reader(3) as left:
        house.worker(stop, settled_by(lambda _: REJECTED), Rules(batch=2)).adopt(left)
        assert left.held() == []
    assert sorted(statuses(house)) == sorted(old)
    assert house.ring.depth == 1


def test_a_retry_out_of_a_hand_left_behind_is_tried_by_the_run(house: House) -> None:
    key = house.put(("HAM", 1))
    with house.ring.reader(3) as dead:
        dead.take(1, 0)

    def decide(work: Work) -> Outcome:
        if work.tries == 0:
            raise Retry(0)
        return REJECTED

    house.ring.close()
    with Stop() as stop, house.ring.reader(3) as left, house.ring.reader(0) as own:
        worker = house.worker(stop, settled_by(decide))
        worker.adopt(left)
        assert [item.key for item in left.held()] == [key]
        worker.run(own)
        assert left.held() == []
    assert statuses(house) == {key: ("rejected", "tested")}


def test_working_off_a_hand_tries_retries_to_their_end_and_takes_nothing(house: House) -> None:
    key = house.put(("HAM", 1))
    with house.ring.reader(3) as dead:
        dead.take(1, 0)
    house.put(("HAM", 1))

    def decide(work: Work) -> Outcome:
        if work.tries < 2:
            raise Retry(0)
        return REJECTED

    with Stop() as stop, house.ring.reader(3) as left:
        house.worker(stop, settled_by(decide)).work_off(left)
        assert left.held() == []
    assert statuses(house) == {key: ("rejected", "tested")}
    assert house.ring.depth == 1


def test_working_off_stops_when_asked_and_leaves_what_is_to_be_tried_later(house: House) -> None:
    house.put(("HAM", 1))
    with house.ring.reader(3) as dead:
        dead.take(1, 0)

    with Stop() as stop, house.ring.reader(3) as left:

        def decide(work: Work) -> Outcome:
            stop.request()
            raise Retry(30)

        house.worker(stop, settled_by(decide)).work_off(left)
        assert len(left.held()) == 1


def test_the_attempts_of_earlier_owners_are_told_and_kill_nobody(house: House) -> None:
    key = house.put(("HAM", 1))
    told: list[int] = []

    def decide(work: Work) -> Outcome:
        told.append(work.tries)
        return REJECTED

    with house.ring.reader(0) as reader:
        reader.take(1, 0)
        (item,) = reader.held()
        tried = Item(item.payload, item.key, item.sequence, 7, header=item.header, cell=item.cell)
        jobs = [read_job(reader, tried, 0)]
        with Stop() as stop:
            house.worker(stop, settled_by(decide), Rules(attempts=3))._settle(jobs)
    assert told == [7]
    assert house.view(key).attempts == 8
    assert house.view(key).status == "rejected"


def test_an_idle_worker_waits_in_the_ring(house: House) -> None:
    waits: list[float | None] = []

    class Counting:
        def __init__(self, stop: Stop) -> None:
            self._stop = stop

        def held(self) -> list[Item]:
            return []

        def take(self, _count: int, timeout: float | None) -> list[Item]:
            waits.append(timeout)
            if len(waits) == 3:
                self._stop.request()
            raise Empty

    with Stop() as stop:
        worker = house.worker(stop)
        BaconWorker.run(worker, Counting(stop))  # type: ignore[arg-type]
    assert waits == [worker_module.IDLE_S] * 3

"""Cancelled orders: whoever is first counts, and stock comes back once."""

from __future__ import annotations

import random
import signal
import sys
import threading
from contextlib import ExitStack

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from processors import cancelling
from processors.cancelling import Cancellation, Canceller
from processors.dead_letters import count_dead_letters, discard, revive
from processors.inventory import sku_inventory
from processors.known import Known
from processors.posting import Sku
from processors.recalling import recall_lot
from processors.stop import Stop
from processors.store import Store, StoreUnavailable
from processors.tables import orders
from ringbuf import Identity, Item
from tests.processors.kit import PATIENCE_S, House, on_postgresql, on_sqlite, until
from tests.processors.retaining import DAYS, add_newest, later, pass_over, retention
from tests.processors.test_at_once import Process
from tests.processors.test_dead_letters import die, events, replay


def cancel(house: House, key: bytes, item: Item | None = None) -> Cancellation:
    return Canceller(house.ring.epoch).cancel(house.store, key, item)


def withdraw(house: House, key: bytes) -> Cancellation:
    """While it is in the ring or in a hand."""
    found = house.ring.find(key)
    assert found is not None
    return cancel(house, key, found.item)


def available(house: House, sku: str = "HAM") -> str:
    view = sku_inventory(house.store, sku)
    assert view is not None
    return view.available


def is_sound(house: House) -> None:
    report = house.audit()
    assert report.ok, list(report.lines())


def allocated(house: House) -> bytes:
    house.stock(
        house.lot("a", "HAM", 1000, hours=1),
        house.lot("b", "HAM", 5000, hours=2),
        house.lot("c", "EGGS", 5000),
    )
    key = house.put(("HAM", 1500), ("EGGS", 250))
    house.work()
    return key


def test_an_order_that_waits_is_cancelled_and_never_worked_on(house: House) -> None:
    house.stock(house.lot("a", "HAM", 1000))
    key = house.put(("HAM", 400))
    done = withdraw(house, key)
    assert done.view is not None
    assert (done.verdict, done.view.status, done.view.reason) == ("cancelled", "cancelled", None)
    assert done.view.lines == [("HAM", 400)]
    assert house.ring.depth == 1
    assert house.work().redelivered == 1
    assert (house.ring.depth, available(house), house.given(key)) == (0, "1", [])
    assert events(house, key) == [(0, "order.cancelled")]
    assert house.view(key).status == "cancelled"
    is_sound(house)


def test_an_allocated_order_gives_back_to_the_same_lots_once(house: House) -> None:
    key = allocated(house)
    before = house.view(key)
    assert [cancel(house, key).verdict for _ in range(3)] == ["cancelled", "already", "already"]
    after = house.view(key)
    assert (after.status, after.allocations, after.lines) == ("cancelled", [], before.lines)
    assert (after.accepted_us, after.taken_us) == (before.accepted_us, before.taken_us)
    assert after.committed_us > before.committed_us
    assert house.rows("SELECT lot_id, available FROM lots ORDER BY lot_id") == [
        ("a", 1000), ("b", 5000), ("c", 5000),
    ]  # fmt: skip
    assert events(house, key) == [(0, "order.allocated"), (1, "order.cancelled")]
    is_sound(house)
    assert house.audit().counts["returns"] == 3
    again = house.put(("HAM", 1000))
    house.work()
    assert house.given(again) == [("HAM", "a", "1")]
    is_sound(house)


def test_what_comes_back_to_an_expired_or_recalled_lot_is_there_and_not_used(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = allocated(house)
    recall_lot(house.store, "b", limit=1)
    monkeypatch.setattr("processors.inventory.now_us", lambda: house.now + 2 * 3_600_000_000)
    cancel(house, key)
    view = sku_inventory(house.store, "HAM")
    assert view is not None
    assert view.available == "0"
    assert [(lot.lot_id, lot.available, lot.state) for lot in view.lots] == [
        ("a", "1", "expired"),
        ("b", "5", "recalled"),
    ]
    more = house.put(("HAM", 1500))
    house.work()
    assert house.view(more).reason == "insufficient_stock"
    is_sound(house)


def test_a_cancelled_order_that_comes_again_has_no_effect(house: House) -> None:
    key = allocated(house)
    cancel(house, key)
    house.put(("HAM", 1500), ("EGGS", 250), key=key)
    assert withdraw(house, key).verdict == "already"
    assert house.work().redelivered == 1
    assert available(house) == "6"
    is_sound(house)


def test_what_is_settled_otherwise_stays_so(house: House) -> None:
    rejected = house.put(("HAM", 400))
    house.work()
    (dead,) = die(house)
    for key, status in ((rejected, "rejected"), (dead, "dead")):
        done = cancel(house, key)
        assert done.view is not None
        assert (done.verdict, done.view.status) == ("settled", status)
    discard(house.store, dead)
    assert cancel(house, dead).verdict == "settled"
    assert cancel(house, b"nobody's id here").verdict == "unknown"
    is_sound(house)


def test_a_replay_that_waits_is_cancelled_over_the_dead_row(house: House) -> None:
    house.stock(house.lot("a", "HAM", 10_000))
    (key,) = die(house)
    replay(house, key)
    assert withdraw(house, key).verdict == "cancelled"
    assert house.work().redelivered == 1
    assert events(house, key) == [(0, "order.dead"), (1, "order.cancelled")]
    assert (count_dead_letters(house.store), available(house)) == (0, "10")
    assert revive(house.store, key) == "not_dead"
    assert cancel(house, key).verdict == "already"
    is_sound(house)


def test_a_replay_that_was_allocated_is_cancelled_too(house: House) -> None:
    house.stock(house.lot("a", "HAM", 10_000))
    (key,) = die(house)
    replay(house, key)
    house.work()
    assert cancel(house, key).verdict == "cancelled"
    assert events(house, key) == [
        (0, "order.dead"), (1, "order.allocated"), (2, "order.cancelled"),
    ]  # fmt: skip
    is_sound(house)


@pytest.mark.parametrize("payload", [b"\xc1", b""])
def test_what_can_not_be_read_is_left_to_a_worker(house: House, payload: bytes) -> None:
    key = house.put_bytes(payload)
    assert withdraw(house, key) == Cancellation("unreadable")
    house.work()
    assert house.view(key).status == "dead"


def test_one_that_ended_its_workers_can_be_cancelled(house: House) -> None:
    key = house.put(("HAM", 400))
    found = house.ring.find(key)
    assert found is not None
    item = Item(found.item.payload, key, crashes=3, header=found.item.header)
    assert cancel(house, key, item).verdict == "cancelled"
    house.work()
    is_sound(house)


def test_somebody_elses_order_is_unknown(house: House) -> None:
    key = allocated(house)
    canceller = Canceller(house.ring.epoch)
    assert canceller.cancel(house.store, key, None, "somebody").verdict == "unknown"
    waits = house.put(("HAM", 1))
    found = house.ring.find(waits)
    assert found is not None
    assert canceller.cancel(house.store, waits, found.item, "somebody").verdict == "unknown"
    assert house.view(key).status == "allocated"


# ---- what comes back, and what is forgotten ---------------------------------------------------


def test_the_database_knows_what_was_cancelled_so_nothing_puts_it_back(house: House) -> None:
    done = allocated(house)
    cancel(house, done)
    waits = house.put(("HAM", 1))
    withdraw(house, waits)
    (dead,) = die(house)
    replay(house, dead)
    withdraw(house, dead)
    journaled = [Identity(waits, 0), Identity(done, 0), Identity(dead, 0), Identity(dead, 1)]
    with house.store.reading() as connection:
        assert Known().of(connection, journaled) == set(journaled)


def test_retention_forgets_cancelled_orders_with_all_their_events(house: House) -> None:
    key = allocated(house)
    cancel(house, key)
    withdraw(house, house.put(("HAM", 1)))
    house.work()
    house.put(("HAM", 100))
    house.work()
    newest = add_newest(house)
    pass_over(retention(house, now=later(house)))
    assert house.rows("SELECT id FROM orders") == [(newest,)]
    assert house.rows("SELECT order_id FROM outbox") == [(newest,)]
    assert house.rows("SELECT count(*) FROM movements") == [(0,)]
    assert house.rows("SELECT lot_id, opening FROM lots ORDER BY lot_id") == [
        ("a", 900), ("b", 5000), ("c", 5000),
    ]  # fmt: skip
    is_sound(house)


def test_retention_that_meets_a_cancel_keeps_the_order(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = allocated(house)
    add_newest(house)
    one = retention(house, now=later(house))
    real = one._can_go

    def cancelled_meanwhile(connection: Connection, ids: list[bytes], limit_us: int) -> list[bytes]:
        found = real(connection, ids, limit_us)
        with monkeypatch.context() as patch:
            patch.setattr(cancelling, "now_us", lambda: later(house))
            assert cancel(house, key).verdict == "cancelled"
        return found

    with monkeypatch.context() as patch:
        patch.setattr(one, "_can_go", cancelled_meanwhile)
        with pytest.raises(StoreUnavailable, match="has changed"):
            pass_over(one)
    pass_over(one)
    assert house.view(key).status == "cancelled"
    assert len(events(house, key)) == 2
    is_sound(house)
    add_newest(house)
    pass_over(retention(house, now=later(house, 2 * DAYS + 4)))
    assert key not in {row[0] for row in house.rows("SELECT order_id FROM outbox")}


# ---- two at once ------------------------------------------------------------------------------


@on_postgresql
def test_of_a_cancel_and_a_commit_at_the_same_instant_the_first_counts(house: House) -> None:
    """The worker has inserted, and not committed: the cancel waits for that, and sees it."""
    house.stock(house.lot("a", "HAM", 1000))
    key = house.put(("HAM", 400))
    found = house.ring.find(key)
    assert found is not None
    done: list[str] = []
    other = Store.open(house.url, busy_timeout_s=PATIENCE_S)
    thread = threading.Thread(
        target=lambda: done.append(
            Canceller(house.ring.epoch).cancel(other, key, found.item).verdict
        )
    )
    with Stop() as stop, house.ring.reader(0) as reader:
        worker = house.worker(stop)
        real = worker._recorder.record

        def record_and_wait(*args: object) -> None:
            real(*args)  # type: ignore[arg-type]
            thread.start()
            until(lambda: waiting(house), "the cancel waits for the worker")

        worker._recorder.record = record_and_wait  # type: ignore[method-assign,assignment]
        house.ring.close()
        worker.run(reader)
    thread.join()
    other.close()
    house.ring.reopen()
    assert done == ["cancelled"]
    assert events(house, key) == [(0, "order.allocated"), (1, "order.cancelled")]
    assert available(house) == "1"
    is_sound(house)


def waiting(house: House) -> bool:
    return bool(house.rows("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' LIMIT 1"))


@on_postgresql
def test_a_worker_whose_order_is_cancelled_in_its_transaction_tries_again(house: House) -> None:
    house.stock(house.lot("a", "HAM", 1000))
    key = house.put(("HAM", 400))
    found = house.ring.find(key)
    assert found is not None
    with Stop() as stop, house.ring.reader(0) as reader:
        worker = house.worker(stop)
        real = worker._recorder.record
        tried = list[str]()

        def cancelled_before(*args: object) -> None:
            if not tried:
                tried.append(cancel(house, key, found.item).verdict)
            real(*args)  # type: ignore[arg-type]

        worker._recorder.record = cancelled_before  # type: ignore[method-assign,assignment]
        house.ring.close()
        worker.run(reader)
    house.ring.reopen()
    assert tried == ["cancelled"]
    assert (available(house), house.view(key).status) == ("1", "cancelled")
    assert worker.redelivered == 1
    is_sound(house)


def test_a_cancel_that_is_overtaken_looks_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = allocated(house)
    real, locks = cancelling._lock_skus, list[set[int]]()

    def overtaken_once(connection: Connection, ids: set[int]) -> dict[int, Sku]:
        locks.append(ids)
        if len(locks) == 1:
            connection.execute(sa.update(orders).values(round=1))
        return real(connection, ids)

    monkeypatch.setattr(cancelling, "_lock_skus", overtaken_once)
    assert cancel(house, key).verdict == "cancelled"
    assert len(locks) == 2
    is_sound(house)


def test_many_cancel_the_same_at_once_and_it_is_given_back_once(house: House) -> None:
    key = allocated(house)
    verdicts: list[str] = []
    with ExitStack() as stack:
        stores = [Store.open(house.url, busy_timeout_s=PATIENCE_S) for _ in range(4)]
        for store in stores:
            stack.callback(store.close)
        barrier = threading.Barrier(4)

        def run(store: Store) -> None:
            barrier.wait()
            verdicts.append(Canceller(house.ring.epoch).cancel(store, key, None).verdict)

        threads = [threading.Thread(target=run, args=(store,)) for store in stores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(verdicts) == ["already"] * 3 + ["cancelled"]
    assert available(house) == "6"
    is_sound(house)


def race(house: House, count: int, kills: int) -> None:
    """Each order is either cancelled and holds nothing, or counts once."""
    house.stock(*(house.lot(f"L{i}", "HAM", 200 * count, hours=1 + i) for i in range(10)))
    chance, cancelled = random.Random(), list[bytes]()
    steady, victim = Process(house, 0), Process(house, 1)
    assert steady.ready()
    for number in range(count):
        until(lambda: house.ring.depth < house.ring.capacity, "room")
        key = house.put(("HAM", 1000))
        if number % 2:
            found = house.ring.find(key)
            assert cancel(house, key, found.item if found else None).verdict == "cancelled"
            cancelled.append(key)
        elif cancelled and chance.random() < 0.3:
            assert cancel(house, chance.choice(cancelled)).verdict == "already"
        if (number + 1) % (count // kills) == 0:
            assert victim.ready()
            assert victim.end(signal.SIGKILL)[0] == -signal.SIGKILL
            victim = Process(house, 1)
    assert victim.ready()
    house.ring.close()
    assert (victim.end()[0], steady.end()[0]) == (0, 0)
    assert house.ring.drained
    statuses = dict(house.rows("SELECT status, count(*) FROM orders GROUP BY status"))
    assert statuses == {"allocated": count // 2, "cancelled": count // 2}
    assert available(house) == str(2 * count - count // 2)
    is_sound(house)
    returned = house.audit().counts["returns"]
    sys.stdout.write(
        f"\n{count} orders, {count // 2} cancelled, {returned} of them after they were allocated,"
        f" {kills} workers killed: each counts once or not at all\n"
    )


@on_sqlite
def test_workers_and_a_canceller_race_while_a_worker_is_killed(house: House) -> None:
    race(house, 60, 1)


@pytest.mark.prove
@pytest.mark.timeout(600)
def test_workers_and_a_canceller_race_for_ten_thousand_orders(house: House) -> None:
    race(house, 10_000, 20)

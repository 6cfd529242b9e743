"""Expiry noted: a movement for each lot, the sums of its sku, an event if something was left."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from processors import cancelling, expiring, inventory
from processors.cancelling import Canceller
from processors.expiring import LOTS_AT_ONCE, Expirer
from processors.inventory import adjust_lot, list_lots, sku_inventory
from processors.recalling import recall_lot
from processors.schema import Adjustment
from processors.store import Store, StoreUnavailable
from tests.processors.kit import HOUR_US, House

LATER = 2 * HOUR_US


@pytest.fixture
def stocked(house: House, monkeypatch: pytest.MonkeyPatch) -> House:
    """At a time at which one lot's time is over."""
    house.stock(house.lot("old", "HAM", 6000, hours=1), house.lot("new", "HAM", 9000, hours=9))
    for module in (expiring, inventory, cancelling):
        monkeypatch.setattr(module, "now_us", lambda: house.now + LATER)
    return house


def note_all(house: House) -> None:
    expirer = Expirer(house.store)
    while expirer.step():
        pass


def sums(house: House) -> tuple[int, int]:
    (row,) = house.rows("SELECT available, expired FROM skus")
    return row[0], row[1]


def is_sound(house: House) -> None:
    report = house.audit()
    assert report.ok, list(report.lines())


def events(house: House) -> list[tuple[object, ...]]:
    return house.rows(
        "SELECT type, lot_id, quantity, below FROM stock_events"
        " LEFT JOIN lots ON lots.id = lot ORDER BY stock_events.id"
    )


def test_a_lot_expires_once_with_what_it_has_left(stocked: House) -> None:
    for _ in range(2):
        note_all(stocked)
    assert stocked.rows("SELECT seq, delta, at_us FROM movements WHERE kind = 'expire'") == [
        (3, 0, stocked.now + LATER)
    ]
    assert events(stocked) == [("stock.expired", "old", 6000, None)]
    assert sums(stocked) == (9000, 6000)
    assert stocked.rows("SELECT available FROM lots ORDER BY lot_id") == [(9000,), (6000,)]
    is_sound(stocked)


def test_what_there_is_is_the_same_before_and_after_it_is_noted(stocked: House) -> None:
    before = sku_inventory(stocked.store, "HAM")
    note_all(stocked)
    after = sku_inventory(stocked.store, "HAM")
    assert before == after
    assert before is not None
    assert (before.available, before.expired) == ("9", "6")
    assert [(lot.lot_id, lot.state) for lot in before.lots] == [
        ("old", "expired"),
        ("new", "available"),
    ]


def test_what_expired_is_not_used_when_the_clock_is_set_back(stocked: House) -> None:
    note_all(stocked)
    key = stocked.put(("HAM", 1000))
    stocked.work()  # by its own clock, which is that of the making of the lots
    assert stocked.given(key) == [("HAM", "new", "1")]
    assert [lot.state for lot in list_lots(stocked.store, limit=9).items] == [
        "expired",
        "available",
    ]
    is_sound(stocked)


def test_what_expired_can_be_counted_away(stocked: House) -> None:
    note_all(stocked)
    assert adjust_lot(stocked.store, "old", Adjustment(-6000, "spoilage")).outcome == "adjusted"
    assert sums(stocked) == (9000, 0)
    is_sound(stocked)


def test_what_comes_back_to_an_expired_lot_is_expired(stocked: House) -> None:
    key = stocked.put(("HAM", 4000))
    stocked.work()
    assert stocked.given(key) == [("HAM", "old", "4")]
    note_all(stocked)
    assert Canceller(1).cancel(stocked.store, key, None).verdict == "cancelled"
    assert sums(stocked) == (9000, 6000)
    is_sound(stocked)


def test_a_recalled_lot_counts_for_nothing_whenever_it_expires(stocked: House) -> None:
    recall_lot(stocked.store, "old", limit=1)
    assert sums(stocked) == (9000, 0)
    note_all(stocked)
    recall_lot(stocked.store, "new", limit=1)
    assert sums(stocked) == (0, 0)
    assert events(stocked) == []
    is_sound(stocked)


def test_an_expired_lot_that_is_recalled_leaves_the_sum_of_what_expired(stocked: House) -> None:
    note_all(stocked)
    recall_lot(stocked.store, "old", limit=1)
    assert sums(stocked) == (9000, 0)
    is_sound(stocked)


def test_an_empty_lot_expires_without_an_event(stocked: House) -> None:
    adjust_lot(stocked.store, "old", Adjustment(-6000, "eaten"))
    note_all(stocked)
    assert len(stocked.rows("SELECT seq FROM movements WHERE kind = 'expire'")) == 1
    assert events(stocked) == []
    is_sound(stocked)


def test_many_that_expire_together_take_several_transactions(house: House) -> None:
    count = 2 * LOTS_AT_ONCE + 3
    house.stock(*(house.lot(f"L{i}", f"SKU-{i % 7}", 1000, hours=-1) for i in range(count)))
    expirer = Expirer(house.store)
    assert [expirer.step() for _ in range(4)] == [True, True, False, False]
    assert house.rows("SELECT sum(available), sum(expired) FROM skus") == [(0, count * 1000)]
    assert len(events(house)) == count
    is_sound(house)


def test_several_at_once_note_each_lot_once(house: House) -> None:
    house.stock(*(house.lot(f"L{i}", f"SKU-{i % 5}", 1000, hours=-1) for i in range(200)))
    stores = [Store.open(house.url) for _ in range(3)]
    threads = [threading.Thread(target=lambda s=s: [*iter(Expirer(s).step, False)]) for s in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for store in stores:
        store.close()
    assert len(events(house)) == 200
    is_sound(house)


def test_it_is_said_once_how_many_expired(stocked: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "processors.expiring")
    note_all(stocked)
    note_all(stocked)
    assert caplog.messages == ["1 lots have expired, 1 with stock left"]


def test_it_takes_no_more_than_its_share_of_the_time(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.stock(*(house.lot(f"L{i}", "HAM", 1000, hours=-1) for i in range(5 * LOTS_AT_ONCE)))
    now = 100.0
    monkeypatch.setattr("processors.expiring.time.monotonic", lambda: now)
    expirer = Expirer(house.store)
    real = expirer.step

    def slow() -> bool:
        nonlocal now
        now += 0.02
        return real()

    monkeypatch.setattr(expirer, "step", slow)
    expirer.look()
    assert len(events(house)) == 2 * LOTS_AT_ONCE  # as many as are begun in 25 ms
    now += 0.35
    expirer.look()
    assert len(events(house)) == 2 * LOTS_AT_ONCE
    now += 0.02
    expirer.look()
    assert len(events(house)) == 4 * LOTS_AT_ONCE


def test_a_database_that_is_away_is_asked_again_later(
    stocked: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    expirer = Expirer(stocked.store)
    real, tried = expirer.step, list[float]()

    def away() -> bool:
        tried.append(time.monotonic())
        if len(tried) == 1:
            raise StoreUnavailable("away")
        return real()

    now = 100.0
    monkeypatch.setattr("processors.expiring.time.monotonic", lambda: now)
    monkeypatch.setattr(expirer, "step", away)
    expirer.look()
    expirer.look()
    assert len(tried) == 1
    now += expiring.AWAY_S
    expirer.look()
    assert events(stocked) == [("stock.expired", "old", 6000, None)]


class Clocks:
    """The one that tells the time, and the one that goes on."""

    def __init__(self, house: House, patch: pytest.MonkeyPatch) -> None:
        self.now, self.monotonic = house.now, 100.0
        patch.setattr(expiring, "now_us", lambda: self.now)
        patch.setattr("processors.expiring.time.monotonic", lambda: self.monotonic)

    def go_on(self, seconds: float) -> None:
        self.monotonic += seconds
        self.now += int(seconds * 1e6)


def test_a_clock_that_jumps_forward_and_is_set_right_again_expires_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    house.stock(house.lot("a", "HAM", 1000, hours=1))
    clocks, expirer = Clocks(house, monkeypatch), Expirer(house.store)
    expirer.look()
    clocks.go_on(1)
    clocks.now += LATER
    for _ in range(10):
        expirer.look()
        clocks.go_on(2)
    clocks.now -= LATER
    clocks.go_on(expiring.BELIEVED_AFTER_S)
    expirer.look()
    assert events(house) == []
    assert caplog.messages == [
        "the clock went forward by 7200 s at once: no expiry is noted for 300 s"
    ]


def test_a_clock_that_went_forward_is_believed_after_a_while(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.stock(house.lot("a", "HAM", 1000, hours=1))
    clocks, expirer = Clocks(house, monkeypatch), Expirer(house.store)
    expirer.look()
    clocks.now += LATER
    clocks.go_on(2)
    expirer.look()
    clocks.go_on(expiring.BELIEVED_AFTER_S)
    expirer.look()
    assert len(events(house)) == 1
    is_sound(house)

"""Who takes a sku below its threshold leaves one event, whatever takes it there."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from processors import deliveries, expiring
from processors.cancelling import Canceller
from processors.deliveries import Ended, Told
from processors.events import Place
from processors.expiring import Expirer
from processors.inventory import adjust_lot, enter_lot
from processors.low_stock import set_thresholds
from processors.recalling import recall_lot
from processors.schema import Adjustment
from processors.stock_events import data_of, stock_events_behind
from processors.store import Store
from processors.thresholds import ThresholdError, read_thresholds
from processors.webhooks import Endpoint
from tests.processors.kit import HOUR_US, House, on_postgresql, until


@pytest.fixture
def watched(house: House) -> House:
    """10 HAM in two lots, the first for an hour; low below 5."""
    set_thresholds(house.store, {"HAM": 5000})
    house.stock(house.lot("a", "HAM", 6000, hours=1), house.lot("b", "HAM", 4000, hours=9))
    return house


def low(house: House) -> list[tuple[object, ...]]:
    return house.rows(
        "SELECT sku, quantity, below FROM stock_events JOIN skus ON skus.id = sku_id"
        " WHERE type = 'stock.low' ORDER BY stock_events.id"
    )


def order(house: House, thousandths: int, sku: str = "HAM") -> bytes:
    key = house.put((sku, thousandths))
    house.work()
    return key


def is_sound(house: House) -> None:
    report = house.audit()
    assert report.ok, list(report.lines())


def test_orders_that_take_it_below_leave_one_event(watched: House) -> None:
    order(watched, 5000)
    assert low(watched) == []  # 5 are not less than 5
    order(watched, 1)
    order(watched, 1000)
    assert low(watched) == [("HAM", 4999, 5000)]
    is_sound(watched)


def test_orders_of_one_batch_leave_one_event_with_what_they_leave(watched: House) -> None:
    for _ in range(8):
        watched.put(("HAM", 1000))
    watched.work()
    assert low(watched) == [("HAM", 2000, 5000)]
    is_sound(watched)


def test_it_can_be_low_again_after_it_was_not(watched: House) -> None:
    key = order(watched, 7000)
    assert Canceller(1).cancel(watched.store, key, None).verdict == "cancelled"
    order(watched, 8000)
    assert low(watched) == [("HAM", 3000, 5000), ("HAM", 2000, 5000)]
    is_sound(watched)


def test_an_adjustment_leaves_one(watched: House) -> None:
    adjust_lot(watched.store, "a", Adjustment(-6000, "stolen"))
    assert low(watched) == [("HAM", 4000, 5000)]
    is_sound(watched)


def test_a_recall_leaves_one(watched: House) -> None:
    recall_lot(watched.store, "a", limit=1)
    recall_lot(watched.store, "a", limit=1)
    assert low(watched) == [("HAM", 4000, 5000)]
    is_sound(watched)


def test_expiry_leaves_one(watched: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiring, "now_us", lambda: watched.now + 2 * HOUR_US)
    Expirer(watched.store).step()
    assert low(watched) == [("HAM", 4000, 5000)]
    is_sound(watched)


def test_a_refused_order_leaves_none(watched: House) -> None:
    order(watched, 10**9)
    assert low(watched) == []


def test_a_lot_for_a_new_sku_leaves_none_however_small(watched: House) -> None:
    set_thresholds(watched.store, {"HAM": 5000, "": 2000})
    watched.stock(watched.lot("c", "EGGS", 1000))
    assert low(watched) == []
    adjust_lot(watched.store, "c", Adjustment(1000, "found"))
    order(watched, 1, "EGGS")
    assert low(watched) == [("EGGS", 1999, 2000)]
    is_sound(watched)


def test_new_thresholds_tell_of_what_is_low_by_them_and_was_not(watched: House) -> None:
    watched.stock(watched.lot("c", "EGGS", 1000), watched.lot("d", "BACON", 9000))
    order(watched, 6000)
    assert low(watched) == [("HAM", 4000, 5000)]
    set_thresholds(watched.store, {"HAM": 4500, "": 2000})
    assert low(watched)[1:] == [("EGGS", 1000, 2000)]  # HAM was low before
    set_thresholds(watched.store, {"": 2000})
    set_thresholds(watched.store, {})
    assert watched.rows("SELECT DISTINCT low_below FROM skus") == [(0,)]
    assert len(low(watched)) == 2
    set_thresholds(watched.store, {"": 9500})
    assert len(low(watched)) == 5
    is_sound(watched)


def test_the_same_thresholds_again_write_nothing(
    watched: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched.store, "commit", None)
    set_thresholds(watched.store, {"HAM": 5000})


def test_thresholds_of_the_file_are_quantities_by_sku() -> None:
    assert read_thresholds({"A.b-1": "12.5", "B": 3, "C": 0.25}, "f") == {
        "A.b-1": 12500,
        "B": 3000,
        "C": 250,
    }


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ([], "must be a table"),
        ({"A": {"b": 1}}, "low-stock-of.A in f: must be a quantity"),
        ({"A": True}, "must be a quantity"),
        ({"A": "1.0001"}, "at most 3 decimals"),
        ({"A": 0}, "must be more than 0"),
        ({"A": 10**10}, "at most 1000000000"),
        ({"A": 16**5000}, "at most 1000000000"),
        ({"A": -(16**5000)}, "must be more than 0"),
        ({"A": float("nan")}, "at most 3 decimals"),
        ({"A B": 1}, "'A B' is no sku"),
        ({f"S{i}": 1 for i in range(10_001)}, "10001 skus: at most 10000"),
    ],
)
def test_a_threshold_that_is_none_is_refused_by_name(table: object, text: str) -> None:
    with pytest.raises(ThresholdError, match=text):
        read_thresholds(table, "f")


def test_each_time_that_it_is_low_is_an_event_of_its_own(watched: House) -> None:
    order(watched, 6000)
    set_thresholds(watched.store, {})
    set_thresholds(watched.store, {"HAM": 5000})  # low once more, and nothing has moved
    with watched.store.reading() as connection:
        told = stock_events_behind(connection, 0, 2, 9)
        data = data_of(connection, told)
    assert len(data) == len({one.id for one in told}) == 2
    shop = Endpoint("shop", "http://127.0.0.1:1/", (bytes(32),))
    watched.store.commit(deliveries.enlist, [shop], Place(0, 0))
    ended = [Ended(one, "delivered", attempts=1, first_us=5, status=200) for one in told]
    watched.store.commit(deliveries.record, [Told("shop", ended, Place(0, 2))])
    is_sound(watched)


@on_postgresql
def test_a_sku_that_is_made_beside_new_thresholds_has_the_new_one(house: House) -> None:
    other = Store.open(house.url)
    setting = threading.Thread(target=set_thresholds, args=(house.store, {"": 5000}))

    def waits() -> bool:
        return house.rows("SELECT count(*) FROM pg_locks WHERE NOT granted") != [(0,)]

    with closing(other), other.writing() as connection:
        enter_lot(connection, house.lot("a", "HAM", 9000))
        setting.start()
        until(lambda: waits() or not setting.is_alive(), "the thresholds wait, or are set")
    setting.join()
    assert house.rows("SELECT low_below FROM skus") == [(5000,)]
    order(house, 6000)
    assert low(house) == [("HAM", 3000, 5000)]

"""Why these lots: told from the movements, held against what was done to each lot."""

from __future__ import annotations

import pytest

from processors import allocation, cancelling, expiring, worker
from processors.cancelling import Canceller
from processors.expiring import Expirer
from processors.explaining import PASSED_OVER_MAX, Explanation, LineExplained, explain_order
from processors.inventory import adjust_lot
from processors.pipeline import Outcome
from processors.recalling import recall_lot
from processors.schema import Adjustment
from tests.processors.kit import HOUR_US, House, settled_by

MOMENT = 2 * HOUR_US


@pytest.fixture
def house_later(house: House, monkeypatch: pytest.MonkeyPatch) -> House:
    """Two hours after its lots came."""
    for module in (allocation, cancelling, expiring, worker):
        monkeypatch.setattr(module, "now_us", lambda: house.now + MOMENT)
    return house


def explained(house: House, key: bytes) -> Explanation:
    found = explain_order(house.store, key)
    assert found is not None
    return found[1]


def whys(line: LineExplained) -> list[tuple[str, str, str]]:
    return [(lot.lot_id, lot.used, lot.why) for lot in line.lots]


def test_each_lot_is_told_with_why_it_was_used_or_not(house_later: House) -> None:
    house = house_later
    house.stock(
        house.lot("expired", "HAM", 1000, hours=1),
        house.lot("recalled", "HAM", 1000, hours=3),
        house.lot("spent", "HAM", 1000, hours=4),
        house.lot("first", "HAM", 1000, hours=5),
        house.lot("second", "HAM", 5000, hours=6),
        house.lot("third", "HAM", 1000, hours=7),
        house.lot("recalled too", "HAM", 1000, hours=8),
        house.lot("far", "HAM", 1000, hours=9),
    )
    recall_lot(house.store, "recalled", limit=1)
    recall_lot(house.store, "recalled too", limit=1)
    adjust_lot(house.store, "spent", Adjustment(-1000, "eaten"))
    key = house.put(("HAM", 1500))
    house.work()
    adjust_lot(house.store, "spent", Adjustment(1000, "found"))
    recall_lot(house.store, "first", limit=1)  # after it was used
    house.stock(house.lot("later", "HAM", 1000, hours=3))
    (line,) = explained(house, key).lines
    assert (line.sku, line.quantity, line.more_lots) == ("HAM", "1.5", False)
    assert whys(line) == [
        ("expired", "0", "expired"),
        ("recalled", "0", "recalled"),
        ("later", "0", "received_later"),
        ("spent", "0", "nothing_left"),
        ("first", "1", "used_up"),
        ("second", "0.5", "used"),
        ("third", "0", "not_needed"),
        ("recalled too", "0", "recalled"),
    ]


def test_it_is_told_the_same_after_a_cancel(house_later: House) -> None:
    house = house_later
    house.stock(house.lot("a", "HAM", 1000, hours=5), house.lot("b", "HAM", 1000, hours=6))
    key = house.put(("HAM", 1500))
    house.work()
    before = explained(house, key)
    assert Canceller(1).cancel(house.store, key, None).verdict == "cancelled"
    assert explained(house, key) == before
    assert whys(before.lines[0]) == [("a", "1", "used_up"), ("b", "0.5", "used")]


def test_what_had_been_noted_as_expired_is_told_so_when_the_clock_went_back(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.stock(house.lot("a", "HAM", 1000, hours=5), house.lot("b", "HAM", 1000, hours=9))
    with monkeypatch.context() as patch:
        patch.setattr(expiring, "now_us", lambda: house.now + 6 * HOUR_US)
        Expirer(house.store).step()
    key = house.put(("HAM", 500))
    house.work()
    (line,) = explained(house, key).lines
    assert whys(line) == [("a", "0", "expired"), ("b", "0.5", "used")]


def test_only_the_nearest_of_many_are_told(house_later: House) -> None:
    house = house_later
    count = PASSED_OVER_MAX + 5
    house.stock(*(house.lot(f"L{i:02}", "HAM", 1000, hours=1 + i / 100) for i in range(count)))
    house.stock(house.lot("used", "HAM", 1000, hours=9))
    key = house.put(("HAM", 1000))
    house.work()
    (line,) = explained(house, key).lines
    assert line.more_lots
    assert [lot.lot_id for lot in line.lots] == [*(f"L{i:02}" for i in range(5, count)), "used"]


def test_lines_are_told_in_the_order_of_the_order(house: House) -> None:
    house.stock(house.lot("a", "HAM", 1000), house.lot("b", "EGGS", 1000))
    key = house.put(("EGGS", 1), ("HAM", 2))
    house.work()
    assert [line.sku for line in explained(house, key).lines] == ["EGGS", "HAM"]


def test_a_shortage_is_told_with_what_there_was(house_later: House) -> None:
    house = house_later
    house.stock(
        house.lot("expired", "HAM", 1000, hours=1),
        house.lot("a", "HAM", 2500, hours=5),
        house.lot("b", "HAM", 1000, hours=6),
    )
    taken, all_read, known_before, unknown = (
        house.put(("HAM", 500)),
        house.put(("HAM", 3001)),
        house.put(("HAM", 9000)),
        house.put(("HAM", 1), ("NONE", 1)),
    )
    house.work()
    assert explained(house, taken).detail is None
    assert explained(house, all_read) == Explanation("3.001 of HAM wanted, 3 available", [])
    assert explained(house, known_before).detail == "9 of HAM wanted, 3 available"
    assert explained(house, unknown).detail == "no lot of NONE was ever entered"


def test_a_processor_tells_people_why(house: House) -> None:
    key = house.put(("HAM", 1))
    house.work(settled_by(lambda _: Outcome.rejected("closed", "on Sundays we are closed")))
    assert explained(house, key) == Explanation("on Sundays we are closed", [])


def test_an_order_without_an_outcome_is_not_explained(house: House) -> None:
    assert explain_order(house.store, b"x" * 16) is None

"""The rules about expiry, sums and events of stock, each broken on purpose."""

from __future__ import annotations

import pytest

from processors import expiring
from processors.expiring import Expirer
from processors.inventory import adjust_lot
from processors.recalling import recall_lot
from processors.schema import Adjustment
from tests.processors.kit import HOUR_US, House

OF_SOUR = "lot = (SELECT id FROM lots WHERE lot_id = 'sour')"
SOUR_SEQ = f"(SELECT seq FROM movements WHERE kind = 'expire' AND {OF_SOUR})"
TAMPERED_STOCK = [
    ("sums", "its row says 9 available", "UPDATE skus SET available = 9000"),
    ("sums", "its row says 1 expired", "UPDATE skus SET expired = 1000"),
    ("fefo", "no movement says so", "UPDATE lots SET expired_seq = 99 WHERE lot_id = 'fresh'"),
    ("fefo", "its row says otherwise", "UPDATE lots SET expired_seq = NULL WHERE lot_id = 'sour'"),
    ("fefo", "before its time", f"UPDATE movements SET at_us = 5 WHERE {OF_SOUR}"),
    (
        "fefo",
        "which had expired",
        "UPDATE movements SET at_us = 5, lot = (SELECT id FROM lots WHERE lot_id = 'sour')"
        " WHERE kind = 'allocate'",
    ),
    (
        "balance",
        "of an expiry adds",
        f"UPDATE movements SET delta=1 WHERE kind='expire' AND {OF_SOUR}",
    ),
    ("balance", "says it came in", "UPDATE lots SET received_seq = 77 WHERE lot_id = 'fresh'"),
    (
        "balance",
        "expired before its receipt",
        "UPDATE skus SET folded = 1; DELETE FROM movements WHERE seq = 1;"
        " UPDATE lots SET expired_seq = 1 WHERE lot_id = 'fresh'",
    ),
    ("stock-events", "no event says so", f"DELETE FROM stock_events WHERE {OF_SOUR}"),
    (
        "stock-events",
        "6.001 have expired",
        f"UPDATE stock_events SET quantity=6001 WHERE {OF_SOUR}",
    ),
    (
        "stock-events",
        "6 have expired",
        "INSERT INTO stock_events (sku_id, seq, type, lot, quantity, created_us)"
        " SELECT sku_id, seq, type, lot, quantity, created_us FROM stock_events"
        f" WHERE {OF_SOUR}",
    ),
    ("stock-events", "were available", "UPDATE stock_events SET quantity=5 WHERE type='stock.low'"),
    ("stock-events", "were available", "UPDATE stock_events SET below=1 WHERE type='stock.low'"),
    ("stock-events", "were available", "UPDATE stock_events SET below=NULL"),
    ("stock-events", "to come yet", "UPDATE stock_events SET seq = 99 WHERE type = 'stock.low'"),
    ("stock-events", "belongs to no sku", "UPDATE stock_events SET sku_id = 99"),
]


@pytest.fixture
def sour(house: House, monkeypatch: pytest.MonkeyPatch) -> House:
    """One lot has expired with 6 left, one when it was empty, one that was recalled; 4 are left of
    the fresh one, below the threshold of 5."""
    house.stock(
        house.lot("fresh", "HAM", 8000, hours=9),
        house.lot("sour", "HAM", 6000, hours=1),
        house.lot("spent", "HAM", 1000, hours=1),
        house.lot("recalled", "HAM", 2000, hours=1),
    )
    house.tamper("UPDATE skus SET low_below = 5000")
    adjust_lot(house.store, "spent", Adjustment(-1000, "eaten"))
    recall_lot(house.store, "recalled", limit=1)
    monkeypatch.setattr(expiring, "now_us", lambda: house.now + 2 * HOUR_US)
    assert not Expirer(house.store).step()
    house.put(("HAM", 4000), key=b"A" * 16)
    house.work()
    return house


def test_a_house_in_which_lots_expired_passes_with_its_counts(sour: House) -> None:
    report = sour.audit()
    assert report.ok, list(report.lines())
    assert report.counts["lots expired"] == 3
    assert report.counts["stock events"] == 2
    assert sour.rows("SELECT available, expired FROM skus") == [(4000, 6000)]


@pytest.mark.parametrize(("rule", "detail", "statements"), TAMPERED_STOCK)
def test_a_rule_that_is_broken_is_named(
    sour: House, rule: str, detail: str, statements: str
) -> None:
    sour.tamper(*statements.split(";"))
    report = sour.audit()
    found = [one.detail for one in report.violations if one.rule == rule]
    assert any(detail in text for text in found), list(report.lines())


@pytest.mark.parametrize("order", [["a", "b", "c"], ["c", "b", "a"], ["b", "c", "a"]])
def test_recalls_without_a_movement_in_between_may_come_in_any_order(
    house: House, order: list[str]
) -> None:
    house.stock(*(house.lot(name, "HAM", at * 1000) for at, name in enumerate("abc", 1)))
    house.tamper("UPDATE skus SET low_below = 5000")
    for name in order:
        recall_lot(house.store, name, limit=1)
    report = house.audit()
    assert report.ok, list(report.lines())
    assert report.counts["stock events"] == 1
    house.tamper("UPDATE stock_events SET quantity = 6001")
    assert not house.audit().ok

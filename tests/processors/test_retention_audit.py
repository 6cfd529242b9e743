"""What the audit finds in a database of which much is forgotten."""

from __future__ import annotations

import pytest

from processors.retention import DAY_US
from tests.processors.kit import House
from tests.processors.retaining import DAYS, pass_over, retention, settle


@pytest.fixture
def settled(house: House) -> House:
    return settle(house)


@pytest.fixture
def half_way(settled: House) -> House:
    """All but the last two orders is forgotten."""
    (limit_us,) = settled.rows(f"SELECT min(at_us) FROM movements WHERE order_id = x'{'45' * 16}'")
    settled.put(("HAM", 10), key=b"F" * 16)
    settled.work()
    pass_over(retention(settled, now=limit_us[0] + DAYS * DAY_US))
    assert settled.rows("SELECT folded, seq FROM skus ORDER BY seq DESC") == [
        (6, 8),
        (2, 3),
        (1, 1),
    ]
    return settled


HAM = "sku_id = (SELECT id FROM skus WHERE sku = 'HAM')"
LAST_HAM = f"{HAM} AND seq = (SELECT max(seq) FROM movements WHERE {HAM})"
DAMAGE = [
    (
        "once",
        "does not exist",
        f"DELETE FROM orders WHERE id = x'{'45' * 16}';"
        f" DELETE FROM outbox WHERE order_id = x'{'45' * 16}'",
    ),
    ("outbox", "which is not there", "DELETE FROM orders WHERE status = 'dead'"),
    (
        "balance",
        "its movements make",
        "UPDATE lots SET opening = opening + 1 WHERE lot_id = 'idle'",
    ),
    (
        "balance",
        "its movements make",
        "UPDATE lots SET opening = opening - 1 WHERE lot_id = 'second'",
    ),
    ("balance", "begins with -0.001", "UPDATE lots SET opening = -1 WHERE lot_id = 'first'"),
    ("balance", "0 movements folded", "UPDATE skus SET folded = 0 WHERE sku = 'EGGS'"),
    ("balance", "was never received", "UPDATE lots SET opening = NULL WHERE lot_id = 'first'"),
    (
        "sequence",
        "8 follows 6",
        "DELETE FROM movements WHERE sku_id = (SELECT id FROM skus WHERE sku = 'HAM') AND seq = 7",
    ),
    ("sequence", "its row says", f"DELETE FROM movements WHERE {LAST_HAM}"),
    ("sequence", "7 follows 5", "UPDATE skus SET folded = folded - 1 WHERE sku = 'HAM'"),
    ("sequence", "its row says", "UPDATE skus SET folded = folded + 1 WHERE sku = 'EGGS'"),
    (
        "fefo",
        "lot first was the first",
        "UPDATE lots SET opening = 5, available = 5 WHERE lot_id = 'first'",
    ),
    (
        "once",
        "does not exist",
        "UPDATE meta SET value = x'0000000000000001' WHERE name = 'forgotten_before';"
        f" UPDATE movements SET order_id = x'{'47' * 16}' WHERE order_id = x'{'45' * 16}'",
    ),
]


def test_an_untouched_house_of_which_much_is_forgotten_passes(half_way: House) -> None:
    report = half_way.audit()
    assert report.ok, list(report.lines())
    assert report.counts["movements in opening balances"] > 0


@pytest.mark.parametrize(("rule", "message", "statements"), DAMAGE)
def test_what_was_damaged_around_retention_is_found(
    half_way: House, rule: str, message: str, statements: str
) -> None:
    half_way.tamper(*statements.split(";"))
    found = [one.detail for one in half_way.audit().violations if one.rule == rule]
    assert any(message in detail for detail in found), list(half_way.audit().lines())

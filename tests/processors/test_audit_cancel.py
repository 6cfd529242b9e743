"""The audit of cancelled orders and recalled lots: whole it passes, tampered with it is found."""

from __future__ import annotations

import pytest

from processors.cancelling import Canceller
from processors.recalling import recall_lot
from tests.processors.kit import House, on_sqlite
from tests.processors.test_audit import find_tampering

A, B, C, D = (f"id = x'{letter.encode().hex() * 16}'" for letter in "ABCD")
OF_A, OF_B = (f"order_{one}" for one in (A, B))


@pytest.fixture
def past(house: House) -> House:
    """Of HAM: received twice (1, 2), A 1.5 from both (3, 4), given back (5, 6), recalled, B from
    the second (7), C cancelled while it waited."""
    house.stock(house.lot("first", "HAM", 1000, hours=1), house.lot("second", "HAM", 5000, hours=2))
    house.put(("HAM", 1500), key=b"A" * 16)
    house.work()
    canceller = Canceller(house.ring.epoch)
    assert canceller.cancel(house.store, b"A" * 16, None).verdict == "cancelled"
    recall_lot(house.store, "first", limit=1)
    house.put(("HAM", 250), key=b"B" * 16)
    house.work()
    house.put(("HAM", 1), key=b"C" * 16)
    found = house.ring.find(b"C" * 16)
    assert found is not None
    assert canceller.cancel(house.store, b"C" * 16, found.item).verdict == "cancelled"
    house.work()
    return house


def test_a_past_with_cancels_and_recalls_passes_with_its_counts(past: House) -> None:
    report = past.audit()
    assert report.ok, list(report.lines())
    assert report.counts["orders cancelled"] == 2
    assert (report.counts["returns"], report.counts["lots recalled"]) == (2, 1)
    assert report.counts["outbox events"] == 4


@on_sqlite
@pytest.mark.parametrize(
    ("rule", "message", "statements"),
    [
        (
            "nothing-held",
            "is cancelled and holds 0.001 HAM",
            "UPDATE movements SET delta = delta - 1 WHERE seq = 5",
        ),
        ("nothing-held", "is cancelled and holds", "UPDATE movements SET lot = 2 WHERE seq = 5"),
        ("nothing-held", "is cancelled and holds", f"UPDATE movements SET {OF_B} WHERE seq = 5"),
        (
            "nothing-held",
            "is allocated and gave 2 times back",
            f"UPDATE orders SET status = 'allocated' WHERE {A}",
        ),
        (
            "nothing-held",
            "is cancelled and holds 0.25 HAM",
            f"UPDATE orders SET status = 'cancelled' WHERE {B}",
        ),
        ("balance", "gives back -1", "UPDATE movements SET delta = -1000 WHERE seq = 5"),
        ("balance", "its movements make", "UPDATE lots SET available = 999 WHERE lot_id = 'first'"),
        (
            "covered",
            "wants 2 HAM and held 1.5",
            f"UPDATE orders SET lines='[[\"HAM\",2000]]' WHERE {A}",
        ),
        ("outcome", "with the reason why", f"UPDATE orders SET reason = 'why' WHERE {C}"),
        ("outbox", "its events: order.allocated", f"DELETE FROM outbox WHERE {OF_A} AND round = 1"),
        ("outbox", "its events: order.cancelled", f"DELETE FROM outbox WHERE {OF_A} AND round = 0"),
        ("outbox", "order.cancelled", f"UPDATE orders SET round = 0 WHERE {A}"),
        ("outbox", "order.cancelled", f"UPDATE orders SET round = 1 WHERE {C}"),
        (
            "fefo",
            "movement 3 takes from lot first, which was recalled",
            "UPDATE lots SET recalled_seq = 2 WHERE lot_id = 'first'",
        ),
        (
            "fefo",
            "lot first was the first to use",
            "UPDATE lots SET recalled_seq = 7 WHERE lot_id = 'first'",
        ),
        (
            "fefo",
            "lot first was the first to use",
            "UPDATE lots SET recalled_seq = NULL, recalled_us = NULL WHERE lot_id = 'first'",
        ),
        ("fefo", "to come yet", "UPDATE lots SET recalled_seq = 8 WHERE lot_id = 'first'"),
        ("fefo", "not known when", "UPDATE lots SET recalled_seq = NULL WHERE lot_id = 'first'"),
        ("fefo", "not known when", "UPDATE lots SET recalled_us = NULL WHERE lot_id = 'first'"),
        ("balance", "before its receipt", "UPDATE lots SET recalled_seq = 0 WHERE lot_id='first'"),
    ],
)
def test_what_was_tampered_with_is_found(
    past: House, rule: str, message: str, statements: str
) -> None:
    find_tampering(past, rule, message, statements)

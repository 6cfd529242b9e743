"""A house with a past, and a day on which all of that is old."""

from __future__ import annotations

from typing import Any

from processors.inventory import adjust_lot
from processors.retention import DAY_US, Retention
from processors.schema import Adjustment
from tests.processors.kit import House

DAYS = 90


def later(house: House, days: float = DAYS + 2) -> int:
    return house.now + int(days * DAY_US)


def retention(house: House, *, now: int | None = None, oldest: int | None = None) -> Retention:
    """Of a day on which all that there is is old, unless told otherwise."""
    now = now or later(house)
    return Retention(house.store, DAYS, lambda: oldest or now, now=lambda: now)


def pass_over(one: Retention) -> None:
    while one.step():
        pass


def counts(house: House) -> dict[str, int]:
    return {
        table: int(house.rows(f"SELECT count(*) FROM {table}")[0][0])
        for table in ("orders", "outbox", "movements")
    }


def balances(house: House) -> list[tuple[Any, ...]]:
    return house.rows("SELECT lot_id, available FROM lots ORDER BY lot_id")


def settle(house: House) -> House:
    """Orders of every outcome, lots in use, spent and untouched, an adjustment between orders. The
    newest is a dead letter, which stays as long as it is one."""
    house.stock(
        house.lot("first", "HAM", 1000, hours=1),
        house.lot("second", "HAM", 5000, hours=2),
        house.lot("bacon", "BACON", 5000, hours=2),
        house.lot("idle", "EGGS", 700),
    )
    house.put(("HAM", 1500), ("BACON", 250), key=b"A" * 16)
    house.put(("HAM", 250), key=b"B" * 16)
    house.put(("HAM", 10**9), key=b"C" * 16)
    house.work()
    adjust_lot(house.store, "second", Adjustment(-30, "spoilage"))
    house.put(("HAM", 100), ("BACON", 4750), key=b"E" * 16)
    house.put_bytes(b"\xc1", key=b"D" * 16)
    house.work()
    return house


def settle_another(house: House) -> bytes:
    """Rejected. The newest event is its, so that it stays, and not one of those before."""
    key = house.put(("NONE", 1))
    house.work()
    return key

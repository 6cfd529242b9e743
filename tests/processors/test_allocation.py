from __future__ import annotations

import sqlite3

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import given as forall
from sqlalchemy.engine import Connection

from processors.allocation import Allocator
from processors.fefo import Portion, StockedLot
from processors.pipeline import Work
from processors.schema import Line, Order
from processors.tables import lots as lots_table
from processors.tables import movements, skus
from tests.processors.kit import House, on_sqlite, undone
from tests.processors.test_fefo import MOMENT, many_orders, model, stocks


def fill(transaction: Connection, stock: dict[str, list[StockedLot]]) -> None:
    sku_rows = [
        {"id": number, "sku": sku, "seq": 0, "available": sum(lot.available for lot in lots)}
        for number, (sku, lots) in enumerate(stock.items())
    ]
    lot_rows = [
        {
            "id": lot.number,
            # Ids are unique over all skus; the number behind keeps their order within one.
            "lot_id": f"{lot.lot_id}{lot.number // 100}",
            "sku_id": sku_id,
            "received": 6,
            "available": lot.available,
            "expires_us": lot.expires_us,
            "received_us": lot.received_us,
            "body_hash": b"",
        }
        for sku_id, lots in enumerate(stock.values())
        for lot in lots
    ]
    for table, rows in ((skus, sku_rows), (lots_table, lot_rows)):
        if rows:
            transaction.execute(sa.insert(table), rows)


def portions_of(transaction: Connection, order_id: bytes) -> list[Portion]:
    rows = transaction.execute(
        sa.select(skus.c.sku, movements.c.lot, -movements.c.delta)
        .join(skus, skus.c.id == movements.c.sku_id)
        .where(movements.c.order_id == order_id)
        .order_by(skus.c.sku, movements.c.seq)
    )
    return [Portion(*row) for row in rows]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@forall(stock=stocks(), orders=many_orders)
def test_on_the_database_it_gives_what_the_brute_force_gives(
    house: House,
    monkeypatch: pytest.MonkeyPatch,
    stock: dict[str, list[StockedLot]],
    orders: list[Order],
) -> None:
    monkeypatch.setattr("processors.allocation.now_us", lambda: MOMENT)
    works = [Work(bytes([i]) * 16, i, order, 0, 0) for i, order in enumerate(orders)]
    with undone(house.store) as transaction:
        fill(transaction, stock)
        outcomes = Allocator()(transaction, works, MOMENT)
        for work, outcome, (reason, portions) in zip(
            works, outcomes, model(stock, orders, MOMENT), strict=True
        ):
            assert outcome.reason == reason
            by_sku = sorted(portions, key=lambda portion: portion.sku)
            assert portions_of(transaction, work.order_id) == by_sku


@on_sqlite
def test_lots_are_read_through_the_index_of_those_in_stock(house: House) -> None:
    house.stock(*(house.lot(f"L{i}", "HAM", 1000, hours=1 + i) for i in range(20)))
    seen: list[str] = []
    with house.store.writing() as connection:
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        driver.set_trace_callback(seen.append)
        work = Work(b"1" * 16, 0, Order("c", [Line("HAM", 15_000)]), 0, 0)
        Allocator()(connection, [work], house.now)
        driver.set_trace_callback(None)
        reads = [text for text in seen if text.startswith("SELECT lots.")]
        assert len(reads) == 2
        for text in reads:
            (plan,) = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")
            assert plan[3].startswith("SEARCH lots USING INDEX lots_in_stock")


def steps_of_an_order(house: House) -> int:
    """How many of SQLite's own instructions one order costs."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    with undone(house.store) as connection:
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        driver.set_progress_handler(count, 1)
        work = Work(b"1" * 16, 0, Order("c", [Line("HAM", 1000)]), 0, 0)
        Allocator()(connection, [work], house.now)
        driver.set_progress_handler(None, 0)
    return steps


@on_sqlite
def test_the_cost_of_an_order_does_not_grow_with_the_lots_that_are_spent(house: House) -> None:
    house.stock(house.lot("last", "HAM", 1000, hours=999))
    before = steps_of_an_order(house)
    house.stock(*(house.lot(f"L{i}", "HAM", 1000, hours=1) for i in range(2000)))
    house.tamper("UPDATE lots SET available = 0 WHERE lot_id <> 'last'")
    assert steps_of_an_order(house) <= before + 1

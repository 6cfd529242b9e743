"""Events of stock are read and forgotten a step at a time, however many there are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from sqlalchemy import event

from processors.events import Place
from processors.outbox import bodies_of, events_behind
from processors.posting import STOCK_LOW
from processors.stock_events import forget_stock_events
from processors.store import Store
from processors.tables import metadata
from tests.processors.kit import House, on_sqlite

COUNT = 40


@pytest.fixture
def eventful(house: House) -> House:
    """COUNT events of two skus, all of one instant."""
    house.stock(house.lot("a", "HAM", 1000), house.lot("b", "EGGS", 1000))
    house.tamper(
        *(
            "INSERT INTO stock_events (sku_id, seq, type, quantity, below, created_us)"
            f" SELECT id, {number}, '{STOCK_LOW}', 1, 2, 5 FROM skus"
            for number in range(COUNT // 2)
        )
    )
    return house


@contextmanager
def traced(house: House) -> Iterator[tuple[Store, list[str]]]:
    """A store, and the statements that were run by it."""
    statements: list[str] = []
    store = Store.open(house.url, connections_max=1)
    event.listen(store.engine, "connect", lambda one, _: one.set_trace_callback(statements.append))
    with closing(store):
        yield store, statements


def scans(house: House, statements: list[str]) -> list[str]:
    plans = [
        row[3]
        for text in statements
        if text.startswith(("SELECT", "DELETE"))
        for row in house.rows(f"EXPLAIN QUERY PLAN {text}")
    ]
    assert plans
    return [
        plan for plan in plans if plan.startswith("SCAN") and plan.split()[1] in metadata.tables
    ]


@on_sqlite
def test_what_is_told_is_found_by_indexes(eventful: House) -> None:
    with traced(eventful) as (store, statements), store.reading() as connection:
        found = events_behind(connection, Place(0, 0), Place(0, COUNT), 64)
        assert len(bodies_of(connection, found)) == len(found) == 16
    assert scans(eventful, statements) == []


@on_sqlite
def test_what_is_forgotten_is_found_by_indexes(eventful: House) -> None:
    with traced(eventful) as (store, statements), store.writing() as connection:
        assert forget_stock_events(connection, 0, COUNT, 6, 16) == (16, 16)
    assert scans(eventful, statements) == []


def test_old_ones_go_step_by_step_until_younger_ones_come(eventful: House) -> None:
    steps, last = [], 0
    eventful.tamper(f"UPDATE stock_events SET created_us = 7 WHERE id > {COUNT - 3}")
    while True:
        with eventful.store.writing() as connection:
            place, gone = forget_stock_events(connection, last, None, 6, 16)
        steps.append(gone)
        if place is None:
            break
        last = place
    assert steps == [16, 16, COUNT - 3 - 32]
    assert eventful.rows("SELECT count(*) FROM stock_events") == [(3,)]

"""A house to test in: a database, a ring, and short words for what happens in them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from processors.audit import run_audit
from processors.audit_report import Report
from processors.instants import now_us
from processors.inventory import add_lots
from processors.orders import OrderView, find_order
from processors.patience import Alarm
from processors.pipeline import Outcome, Processor, Work, fefo
from processors.schema import Line, Lot, Order, RecordHeader, body_hash, encode_header, encode_order
from processors.stop import Stop
from processors.store import Store
from processors.worker import BaconWorker, Rules
from ringbuf import Ring
from tests.databases import make_database

CONSTRAINTS = (
    "SELECT conrelid::regclass, conname FROM pg_constraint"
    " WHERE conrelid > 0 AND contype IN ('c', 'f')"
)
# For tests of what only SQLite has; others run on both.
on_sqlite = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("url", ["postgresql"], indirect=True)
HOUR_US = 3_600_000_000
PATIENCE_S = 20.0


class Undo(Exception):
    """Rolls back."""


@contextmanager
def undone(store: Store) -> Iterator[Connection]:
    """A transaction that is rolled back at its end."""
    try:
        with store.writing() as connection:
            yield connection
            raise Undo
    except Undo:
        pass


class House:
    """`now` is the moment of its making; lots expire relative to it. `url`: of a database that has
    the schema, instead of a new one."""

    def __init__(
        self, folder: Path, capacity: int = 400, hand: int = 128, url: str | None = None
    ) -> None:
        self.folder = folder
        self.url = url or make_database(folder / "rasher.db")
        self.store = Store.open(self.url)
        self.ring = Ring.create(
            folder / "test.ring", capacity, slot_bytes=1024, readers=4, hand=hand, label=str(folder)
        )
        self.now = now_us()
        self.writer = self.ring.writer()

    def close(self) -> None:
        self.ring.detach()
        self.store.close()

    def lot(
        self,
        lot_id: str,
        sku: str,
        thousandths: int,
        *,
        hours: float = 24,
        received_us: int | None = None,
    ) -> Lot:
        expires_us = self.now + int(hours * HOUR_US)
        return Lot(lot_id, sku, thousandths, expires_us, received_us, None)

    def stock(self, *lots: Lot) -> None:
        assert {result.outcome for result in add_lots(self.store, lots)} == {"created"}

    def put(self, *lines: tuple[str, int], key: bytes | None = None) -> bytes:
        order = Order("Funky Foods", [Line(*line) for line in lines], None, None)
        return self.put_bytes(encode_order(order), key)

    def put_bytes(self, payload: bytes, key: bytes | None = None) -> bytes:
        key = key or uuid4().bytes
        header = encode_header(RecordHeader(body_hash(payload)))
        assert self.writer.try_put(payload, key, header) is not None
        return key

    def work(self, processor: Processor | None = None, rules: Rules | None = None) -> BaconWorker:
        """Works off all that is in the ring."""
        self.ring.close()
        with Stop() as stop, self.ring.reader(0) as reader:
            worker = self.worker(stop, processor, rules)
            worker.run(reader)
        self.ring.reopen()
        return worker

    def worker(
        self,
        stop: Stop,
        processor: Processor | None = None,
        rules: Rules | None = None,
        *,
        alarm: Alarm | None = None,
    ) -> BaconWorker:
        processor, rules = processor or fefo(), rules or Rules()
        return BaconWorker(self.ring, self.store, processor, rules, stop, alarm=alarm)

    def view(self, key: bytes) -> OrderView:
        view = find_order(self.store, key)
        assert view is not None
        return view

    def given(self, key: bytes) -> list[tuple[str, str, str]]:
        return [(one.sku, one.lot_id, one.quantity) for one in self.view(key).allocations]

    def rows(self, text: str) -> list[tuple[Any, ...]]:
        with self.store.reading() as connection:
            own = self.own_words(text)
            return [tuple(row) for row in connection.exec_driver_sql(own)]

    def own_words(self, text: str) -> str:
        """SQL for both databases, where it names bytes as SQLite does."""
        if self.on_sqlite:
            return text
        return re.sub(r"\bx'([0-9a-f]*)'", r"'\\x\1'::bytea", text).replace("AS BLOB", "AS bytea")

    @property
    def on_sqlite(self) -> bool:
        return self.url.startswith("sqlite")

    def tamper(self, *statements: str) -> None:
        """Does to the database what no code of ours may do."""
        engine = sa.create_engine(self.url)
        try:
            with engine.begin() as connection:
                if self.on_sqlite:
                    connection.exec_driver_sql("PRAGMA ignore_check_constraints=ON")
                else:
                    for table, name in connection.exec_driver_sql(CONSTRAINTS).all():
                        connection.exec_driver_sql(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
                for statement in statements:
                    assert connection.exec_driver_sql(self.own_words(statement)).rowcount != 0
        finally:
            engine.dispose()

    def audit(self, ledger: Path | None = None) -> Report:
        return run_audit([self.ring], self.store, ledger)


def settled_by(decide: Callable[[Work], Outcome]) -> Processor:
    """A processor that decides order by order; what `decide` raises goes through."""

    def process(_transaction: Connection, orders: Sequence[Work], _moment: int) -> list[Outcome]:
        return [decide(order) for order in orders]

    return process


def until(true: Callable[[], bool], what: str) -> None:
    """Waits for another process."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: {what}"
        time.sleep(0.01)

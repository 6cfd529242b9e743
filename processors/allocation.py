"""The FEFO processor: `fefo` on the tables, with few statements for a batch.

Per batch: one select that locks the skus, one per sku for its next lots, and one write each for
movements, balances and the skus' rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from processors.fefo import (
    UNKNOWN_SKU,
    Portion,
    ReadLots,
    Shelf,
    StockedLot,
    Verdict,
    allocate,
)
from processors.instants import now_us
from processors.pipeline import Outcome, Work
from processors.posting import STOCK_LOW, ran_low
from processors.quantity import format_quantity
from processors.statements import Hot, HotKeys, Row
from processors.tables import IN_STOCK, lots, movements, skus, stock_events

# Lots read at once: few at first (most orders are served from one), then more and more.
LOTS_FIRST = 4
LOTS_MAX = 512
GROWTH = 4

ALLOCATED = Outcome("allocated")

NOT_EXPIRED = lots.c.expires_us > sa.bindparam("moment")
BEHIND_LAST = sa.tuple_(lots.c.expires_us, lots.c.received_us, lots.c.lot_id) > sa.tuple_(
    sa.bindparam("expires", type_=lots.c.expires_us.type),
    sa.bindparam("received", type_=lots.c.received_us.type),
    sa.bindparam("lot", type_=lots.c.lot_id.type),
)


class Locked(NamedTuple):
    """A sku's row, as far as orders change it."""

    number: int
    sku: str
    seq: int
    available: int
    low_below: int


class Postings:
    """The rows that a batch writes: each portion a movement with the next number of its sku."""

    def __init__(self, locked: list[Locked], moment_us: int) -> None:
        self._locked = {one.sku: one for one in locked}
        self._seqs = {one.sku: one.seq for one in locked}
        self._given: dict[str, int] = {}
        self._taken: dict[int, int] = {}
        self._moment_us = moment_us
        self.movement_rows: list[Row] = []

    def add(self, order_id: bytes, portions: Sequence[Portion]) -> None:
        """Posts what one order was given."""
        for sku, lot, part in portions:
            self._seqs[sku] = seq = self._seqs[sku] + 1
            self.movement_rows.append(
                (self._locked[sku].number, seq, lot, -part, "allocate", order_id, self._moment_us)
            )
            self._taken[lot] = self._taken.get(lot, 0) + part
            self._given[sku] = self._given.get(sku, 0) + part

    def sku_rows(self) -> list[Row]:
        """(last sequence, what is available now, sku's row)"""
        return [
            (self._seqs[sku], self._locked[sku].available - given, self._locked[sku].number)
            for sku, given in self._given.items()
        ]

    def lot_rows(self) -> list[Row]:
        """(thousandths taken, lot's row)"""
        return [(part, lot) for lot, part in self._taken.items()]

    def low_rows(self) -> list[Row]:
        """An event of each sku that ran low."""
        rows: list[Row] = []
        for sku, given in self._given.items():
            number, _, _, was, below = self._locked[sku]
            if ran_low(was, was - given, below):
                seq = self._seqs[sku]
                rows.append((number, seq, STOCK_LOW, was - given, below, self._moment_us))
        return rows


class Allocator:
    """A `Processor`. Keeps nothing between batches but its compiled statements."""

    def __init__(self) -> None:
        # Locked in the order of their ids, so that two workers can't wait for each other.
        self._lock_skus = HotKeys(
            sa.select(skus.c.id, skus.c.sku, skus.c.seq, skus.c.available, skus.c.low_below)
            .order_by(skus.c.id)
            .with_for_update(),
            skus.c.sku,
        )
        # One bound each: with both, SQLite would begin every page at the moment again.
        self._first_lots = Hot(_lots(NOT_EXPIRED), "sku_id", "moment", "count")
        self._next_lots = Hot(_lots(BEHIND_LAST), "sku_id", "expires", "received", "lot", "count")
        self._set_sku = Hot(
            sa.update(skus)
            .where(skus.c.id == sa.bindparam("number"))
            .values(
                seq=sa.bindparam("last", type_=skus.c.seq.type),
                available=sa.bindparam("left", type_=skus.c.available.type),
            ),
            "last",
            "left",
            "number",
        )
        self._take_from_lot = Hot(
            sa.update(lots)
            .where(lots.c.id == sa.bindparam("number"))
            .values(available=lots.c.available - sa.bindparam("taken")),
            "taken",
            "number",
        )
        self._insert_movements = Hot(
            sa.insert(movements), "sku_id", "seq", "lot", "delta", "kind", "order_id", "at_us"
        )
        self._expired_lately = Hot(
            sa.select(sa.func.sum(lots.c.available)).where(
                lots.c.sku_id == sa.bindparam("sku_id"),
                IN_STOCK,
                lots.c.expires_us <= sa.bindparam("moment"),
            ),
            "sku_id",
            "moment",
        )
        self._insert_low = Hot(
            sa.insert(stock_events), "sku_id", "seq", "type", "quantity", "below", "created_us"
        )

    def __call__(
        self, transaction: Connection, orders: Sequence[Work], moment_us: int
    ) -> list[Outcome]:
        names = list({line.sku: None for work in orders for line in work.order.lines})
        locked = [Locked._make(row) for row in self._lock_skus.all(transaction, names)]
        if transaction.dialect.name != "sqlite":
            # The locks may have been waited for: nobody may have used a later moment before.
            moment_us = max(moment_us, now_us())
        shelves = {one.sku: self._shelf(transaction, one, moment_us) for one in locked}
        verdicts = allocate(shelves, (work.order for work in orders))
        postings = Postings(locked, moment_us)
        for work, verdict in zip(orders, verdicts, strict=True):
            postings.add(work.order_id, verdict.portions)
        self._write(transaction, postings)
        return [_outcome(verdict) for verdict in verdicts]

    def _shelf(self, transaction: Connection, one: Locked, moment_us: int) -> Shelf:
        def lately() -> int:
            """What lots have that expired since somebody noted such (processors/expiring.py)."""
            (row,) = self._expired_lately.all(transaction, (one.number, moment_us))
            return int(row[0] or 0)

        return Shelf(self._reader(transaction, one.number, moment_us), one.available, lately)

    def _write(self, transaction: Connection, postings: Postings) -> None:
        self._set_sku.many(transaction, postings.sku_rows())
        self._take_from_lot.many(transaction, postings.lot_rows())
        self._insert_movements.many(transaction, postings.movement_rows)
        self._insert_low.many(transaction, postings.low_rows())

    def _reader(self, transaction: Connection, sku_id: int, moment_us: int) -> ReadLots:
        count = LOTS_FIRST

        def read(last: StockedLot | None) -> Iterable[StockedLot]:
            nonlocal count
            if last is None:
                rows = self._first_lots.all(transaction, (sku_id, moment_us, count))
            else:
                key = last.expires_us, last.received_us, last.lot_id
                count = min(count * GROWTH, LOTS_MAX)
                rows = self._next_lots.all(transaction, (sku_id, *key, count))
            return map(StockedLot._make, rows)

        return read


def _outcome(verdict: Verdict) -> Outcome:
    lack = verdict.lack
    if verdict.reason is None or lack is None:
        return ALLOCATED
    if verdict.reason == UNKNOWN_SKU:
        return Outcome.rejected(UNKNOWN_SKU, f"no lot of {lack.sku} was ever entered")
    wanted, left = format_quantity(lack.wanted), format_quantity(lack.left)
    detail = f"{wanted} of {lack.sku} wanted, {left} available"
    return Outcome.rejected(verdict.reason, detail)


def _lots(bound: sa.ColumnElement[bool]) -> sa.Select[tuple[int, int, str, int, int]]:
    """In the order of use. Columns as in StockedLot."""
    return (
        sa.select(lots.c.expires_us, lots.c.received_us, lots.c.lot_id, lots.c.id, lots.c.available)
        .where(
            lots.c.sku_id == sa.bindparam("sku_id"),
            # As text: with a parameter SQLite can't tell that the partial index applies.
            IN_STOCK,
            bound,
        )
        .order_by(lots.c.expires_us, lots.c.received_us, lots.c.lot_id)
        .limit(sa.bindparam("count", type_=sa.Integer))
        # SQLite's dialect writes an offset with every limit; spelled out it is no parameter.
        .offset(sa.literal_column("0"))
    )

"""A sku's row: it is locked before its stock is read or changed, numbers its movements, and keeps
the sums of its stock, so that nobody has to add up its lots.

Who takes `available` below the sku's `low_below` leaves one event `stock.low` in the same
transaction; it can be low again only after it was not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from processors.tables import low_stock, movements, skus, stock_events
from processors.thresholds import ALL_OTHERS

STOCK_LOW, STOCK_EXPIRED = "stock.low", "stock.expired"
COLUMNS = (skus.c.id, skus.c.seq, skus.c.available, skus.c.expired, skus.c.low_below)


class Sku(Struct):
    """Its row, locked until the transaction ends; quantities in thousandths. `was`: what was
    available when it was locked."""

    id: int
    seq: int
    available: int
    expired: int
    low_below: int
    was: int

    def moves(self) -> int:
        """The number of its next movement."""
        self.seq += 1
        return self.seq

    def changes(self, lot: Any, delta: int) -> None:
        """A lot of it, with its row of before, has that much more; what was recalled counts for
        nothing."""
        if lot.recalled_us is not None:
            return
        if lot.expired_seq is None:
            self.available += delta
        else:
            self.expired += delta


def lock_skus(connection: Connection, which: sa.ColumnElement[bool]) -> list[Sku]:
    """In the order of their ids, so that no two can wait for each other.

    On SQLite the transaction has locked everything; elsewhere FOR UPDATE locks the rows.
    """
    rows = connection.execute(
        sa.select(*COLUMNS).where(which).order_by(skus.c.id).with_for_update()
    ).all()
    return [Sku(*row, was=row.available) for row in rows]


def make_skus(connection: Connection, names: Iterable[str]) -> None:
    """Those that are not there yet."""
    rows = [{"sku": name, "seq": 0, "low_below": below(name)} for name in names]
    on = sqlite if connection.dialect.name == "sqlite" else postgresql
    connection.execute(on.insert(skus).values(rows).on_conflict_do_nothing())


def below(name: str | sa.ColumnElement[str]) -> sa.ColumnElement[int]:
    """Below what a sku is low; its own threshold, else the one of all others, else 0."""
    own, others = (
        sa.select(low_stock.c.below).where(low_stock.c.sku == sku).scalar_subquery()
        for sku in (name, ALL_OTHERS)
    )
    return sa.func.coalesce(own, others, sa.literal_column("0", low_stock.c.below.type))


def ran_low(was: int, available: int, low_below: int) -> bool:
    """Whether that is an event."""
    return available < low_below <= was


def post(
    connection: Connection, changed: Sequence[Sku], posted: list[dict[str, Any]], now: int
) -> None:
    """Writes movements (rows without `at_us`), the skus' rows, and what is to be told of them."""
    if posted:
        connection.execute(sa.insert(movements), [{"at_us": now, **one} for one in posted])
    for sku in changed:
        values = {"seq": sku.seq, "available": sku.available, "expired": sku.expired}
        connection.execute(sa.update(skus).where(skus.c.id == sku.id).values(values))
    low = [
        {
            "sku_id": sku.id,
            "seq": sku.seq,
            "type": STOCK_LOW,
            "quantity": sku.available,
            "below": sku.low_below,
            "created_us": now,
        }
        for sku in changed
        if ran_low(sku.was, sku.available, sku.low_below)
    ]
    if low:
        connection.execute(sa.insert(stock_events), low)

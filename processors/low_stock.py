"""Puts the thresholds of the settings into the database, where all who change stock have them.

In one transaction, at a start, before any worker; when nothing has changed it writes nothing. A sku
that is low by the new thresholds, and was not by the old ones, is told of in the same transaction.
"""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from processors.instants import now_us
from processors.posting import STOCK_LOW, below
from processors.store import Store
from processors.tables import low_stock, skus, stock_events


def set_thresholds(store: Store, thresholds: Mapping[str, int]) -> None:
    """Thousandths by sku. Raises StoreUnavailable, StoreBroken."""
    with store.reading() as connection:
        if _stored(connection) == thresholds:
            return
    store.commit(_set, thresholds)


def _stored(connection: Connection) -> dict[str, int]:
    rows = connection.execute(sa.select(low_stock.c.sku, low_stock.c.below))
    return {row.sku: row.below for row in rows}


def _set(connection: Connection, thresholds: Mapping[str, int]) -> None:
    if connection.dialect.name != "sqlite":
        # Waits for all who are changing stock, and lets nobody begin: locks on the rows would miss
        # a sku that somebody is just making, by the thresholds of before.
        connection.execute(sa.text("LOCK TABLE skus IN EXCLUSIVE MODE"))
    connection.execute(sa.delete(low_stock))
    if thresholds:
        rows = [{"sku": sku, "below": least} for sku, least in thresholds.items()]
        connection.execute(sa.insert(low_stock), rows)
    wanted = below(skus.c.sku)
    newly_low = sa.and_(
        skus.c.available < wanted,
        sa.or_(skus.c.low_below == 0, skus.c.available >= skus.c.low_below),
    )
    connection.execute(
        sa.insert(stock_events).from_select(
            ["sku_id", "seq", "type", "quantity", "below", "created_us"],
            sa.select(
                skus.c.id, skus.c.seq, sa.literal(STOCK_LOW), skus.c.available, wanted,
                sa.literal(now_us(), skus.c.seq.type),
            ).where(newly_low).order_by(skus.c.id),
        )
    )  # fmt: skip
    connection.execute(sa.update(skus).where(skus.c.low_below != wanted).values(low_below=wanted))

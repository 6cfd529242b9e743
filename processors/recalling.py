"""Recalls: a lot that must not be used again, and who holds stock of it.

From the recall on the lot is out of the index that allocations read; what there is of it stays in
its balance, and so does what comes back to it. `recalled_seq` is the sku's last movement at that
moment, under the sku's lock: the audit lets no later one allocate from it.

No index leads from a lot to its movements, for it would cost every order. Whoever asks who holds
it pays instead: the movements of its sku are looked through, the newest first, SCAN_MAX at once.
These functions block on the database: call them in threads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.engine import Connection

from processors.instants import now_us
from processors.inventory import LotView, find_lot, lot_view
from processors.paging import Int64, Page, bounded, decode_cursor, encode_cursor
from processors.posting import lock_skus, post
from processors.quantity import format_quantity
from processors.schema import format_uuid
from processors.store import Store
from processors.tables import NAMESAKE_US, lots, movements, orders, skus

# Movements that one page looks through.
SCAN_MAX = 10_000


class Holder(Struct, frozen=True):
    """An order that is allocated, and how much of the lot it holds."""

    order_id: str
    customer: str | None
    reference: str | None
    quantity: str


class Recall(NamedTuple):
    """The lot as it is now, and a first page of the orders that hold stock of it."""

    lot: LotView
    holders: Page[Holder]


def recall_lot(store: Store, lot_id: str, *, limit: int) -> Recall | None:
    """Recalls it; again, nothing more happens. None for an unknown one. Raises StoreUnavailable."""
    if not store.commit(_recall, lot_id):
        return None
    # Not under the lock: others may go on while this reads.
    with store.reading() as connection:
        row = find_lot(connection, lot_id)
        assert row is not None
        return Recall(lot_view(row, now_us()), _holders(connection, row, None, limit))


def list_holders(
    store: Store, lot_id: str, *, limit: int, cursor: str | None = None
) -> Page[Holder] | None:
    """The orders that hold stock of a lot, the last allocated first; at most min(limit,
    paging.LIMIT_MAX). A page may have few or none and still a next one. None for an unknown lot.
    Raises CursorError, StoreUnavailable."""
    before = None if cursor is None else decode_cursor(cursor, tuple[Int64])[0]
    with store.reading() as connection:
        row = find_lot(connection, lot_id)
        return None if row is None else _holders(connection, row, before, limit)


def _recall(connection: Connection, lot_id: str) -> bool:
    sku_id = connection.scalar(sa.select(lots.c.sku_id).where(lots.c.lot_id == lot_id))
    if sku_id is None:
        return False
    (sku,) = lock_skus(connection, skus.c.id == sku_id)
    row = connection.execute(sa.select(lots).where(lots.c.lot_id == lot_id)).one()
    if row.recalled_us is None:
        now = now_us()
        connection.execute(
            sa.update(lots).where(lots.c.id == row.id).values(recalled_us=now, recalled_seq=sku.seq)
        )
        sku.changes(row, -row.available)
        post(connection, [sku], [], now)
    return True


def _holders(connection: Connection, lot: Any, before: int | None, limit: int) -> Page[Holder]:
    seq, folded = connection.execute(
        sa.select(skus.c.seq, skus.c.folded).where(skus.c.id == lot.sku_id)
    ).one()
    before = min(seq + 1, seq + 1 if before is None else before)
    begin = max(before - SCAN_MAX, folded + 1)
    rows = connection.execute(_changes(lot, begin, before).limit(bounded(limit) + 1)).all()
    first = begin == folded + 1
    if rows and rows[-1].kind == "receive":  # nothing was before that
        rows, first = rows[:-1], True
    shown = rows[: bounded(limit)]
    last = shown[-1].seq if len(rows) > len(shown) else None if first else begin
    more = None if last is None else encode_cursor((last,))
    return Page([_holder(row) for row in shown], more)


def _changes(lot: Any, begin: int, before: int) -> sa.Select[Any]:
    """The lot's receipt, and what orders hold of it, among those movements of its sku."""
    columns = movements.c.seq, movements.c.kind, movements.c.delta
    holds = sa.and_(
        movements.c.kind == "allocate",
        orders.c.status == "allocated",
        orders.c.accepted_us <= movements.c.at_us + NAMESAKE_US,
    )
    return (
        sa.select(*columns, orders.c.id, orders.c.customer, orders.c.reference)
        .outerjoin(orders, orders.c.id == movements.c.order_id)
        .where(
            movements.c.sku_id == lot.sku_id,
            movements.c.seq >= begin,
            movements.c.seq < before,
            movements.c.lot == lot.id,
            sa.or_(movements.c.kind == "receive", holds),
        )
        .order_by(movements.c.seq.desc())
    )


def _holder(row: Any) -> Holder:
    return Holder(format_uuid(row.id), row.customer, row.reference, format_quantity(-row.delta))

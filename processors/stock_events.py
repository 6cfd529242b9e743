"""Reading the events of stock, as the outbox is read, and forgetting old ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from processors.events import Event
from processors.posting import STOCK_LOW
from processors.quantity import format_quantity
from processors.schema import format_instant
from processors.tables import deliveries, lots, skus, stock_events
from processors.webhooks import event_id


def stock_events_behind(connection: Connection, place: int, end: int, count: int) -> list[Event]:
    """At most `count` behind that place and up to that end, in their order."""
    rows = connection.execute(
        _select()
        .where(stock_events.c.id > place, stock_events.c.id <= end)
        .order_by(stock_events.c.id)
        .limit(count)
    )
    return [_event(row) for row in rows]


def data_of(connection: Connection, events: Sequence[Event]) -> dict[bytes, dict[str, Any]]:
    """What is told of them, by their ids; without those that are not kept any more."""
    wanted = {(one.subject.decode(), one.number) for one in events}
    if not wanted:
        return {}
    rows = connection.execute(
        _select().where(sa.tuple_(skus.c.sku, stock_events.c.seq).in_(sorted(wanted)))
    )
    return {_event(row).id: _data(row) for row in rows}


def forget_stock_events(
    connection: Connection, told: int | None, before_us: int, count: int
) -> int:
    """Removes at most so many that are older and that everybody was told of, `told` being up to
    where (None: there is nobody) -> how many."""
    # Those that still wait for somebody, whose subject is the sku.
    sku: sa.ColumnElement[Any] = sa.cast(skus.c.sku, sa.LargeBinary)
    if connection.dialect.name == "postgresql":
        sku = sa.func.convert_to(skus.c.sku, "UTF8")
    waits = sa.exists().where(
        deliveries.c.subject == sku,
        deliveries.c.number == stock_events.c.seq,
        sa.text("deliveries.state = 'waiting'"),
    )
    query = (
        sa.select(stock_events.c.id)
        .join(skus, skus.c.id == stock_events.c.sku_id)
        .where(stock_events.c.created_us < before_us, ~waits)
        .order_by(stock_events.c.id)
        .limit(count)
    )
    if told is not None:
        query = query.where(stock_events.c.id <= told)
    ids = list(connection.scalars(query))
    if ids:
        connection.execute(sa.delete(stock_events).where(stock_events.c.id.in_(ids)))
    return len(ids)


def _select() -> sa.Select[Any]:
    return (
        sa.select(stock_events, skus.c.sku, lots.c.lot_id, lots.c.expires_us)
        .join(skus, skus.c.id == stock_events.c.sku_id)
        .outerjoin(lots, lots.c.id == stock_events.c.lot)
    )


def _event(row: Any) -> Event:
    subject = row.sku.encode()
    # Its instant, too: other thresholds may make a sku low again without a movement in between.
    made = event_id(subject, row.seq, f"{row.type} {row.created_us}")
    return Event(row.id, made, subject, row.seq, row.type, row.created_us)


def _data(row: Any) -> dict[str, Any]:
    if row.type == STOCK_LOW:
        return {
            "sku": row.sku,
            "available": format_quantity(row.quantity),
            "below": format_quantity(row.below),
        }
    return {
        "sku": row.sku,
        "lot_id": row.lot_id,
        "quantity": format_quantity(row.quantity),
        "expires_at": format_instant(row.expires_us),
    }

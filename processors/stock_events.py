"""Reading the events of stock, as the outbox is read, and forgetting old ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from processors.deliveries import waiting_events
from processors.events import Event
from processors.posting import STOCK_LOW
from processors.quantity import format_quantity
from processors.schema import format_instant
from processors.tables import lots, skus, stock_events
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
    if not events:
        return {}
    # Not by pairs of both, for which SQLite would read every event that there is.
    rows = connection.execute(
        _select().where(
            skus.c.sku.in_({one.subject.decode() for one in events}),
            stock_events.c.seq.in_({one.number for one in events}),
        )
    )
    found = {_event(row).id: _data(row) for row in rows}
    return {one.id: found[one.id] for one in events if one.id in found}


def forget_stock_events(
    connection: Connection, behind: int, told: int | None, before_us: int, count: int
) -> tuple[int | None, int]:
    """Removes of the next so many, up to where everybody was told (None: there is nobody), those
    that are older and that nobody waits for; the newest stays, see `newest_order` of retention ->
    the last one (None: those that follow are younger), and how many are gone."""
    query = (
        sa.select(stock_events, skus.c.sku)
        .join(skus, skus.c.id == stock_events.c.sku_id)
        .where(stock_events.c.id > behind)
        .order_by(stock_events.c.id)
        .limit(count)
    )
    if told is not None:
        query = query.where(stock_events.c.id <= told)
    rows = connection.execute(query).all()
    newest = connection.scalar(sa.select(sa.func.max(stock_events.c.id)))
    old = [_event(row) for row in rows if row.created_us < before_us and row.id != newest]
    waiting = waiting_events(connection, [one.id for one in old])
    places = [one.place for one in old if one.id not in waiting]
    if places:
        connection.execute(sa.delete(stock_events).where(stock_events.c.id.in_(places)))
    return rows[-1].id if old and len(rows) == count else None, len(places)


def _select() -> sa.Select[Any]:
    return (
        sa.select(stock_events, skus.c.sku, lots.c.lot_id, lots.c.expires_us)
        .join(skus, skus.c.id == stock_events.c.sku_id)
        .outerjoin(lots, lots.c.id == stock_events.c.lot)
    )


def stock_event_id(sku: bytes, number: int, event_type: str, created_us: int) -> bytes:
    """The same for ever. Its instant, too: other thresholds may make a sku low again without a
    movement in between."""
    return event_id(sku, number, f"{event_type} {created_us}")


def _event(row: Any) -> Event:
    subject = row.sku.encode()
    made = stock_event_id(subject, row.seq, row.type, row.created_us)
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

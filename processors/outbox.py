"""Reading what is to be told: the events behind a place, in the order in which they may be told."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from processors.events import Event, Place
from processors.orders import view_orders
from processors.schema import format_instant
from processors.stock_events import data_of, stock_events_behind
from processors.tables import outbox
from processors.webhooks import event_id


def events_behind(connection: Connection, place: Place, end: Place, count: int) -> list[Event]:
    """At most `count` events behind that place and up to that end, in their order. Those of stock,
    which are few, go first, in a quarter of the places."""
    if count <= 0:
        return []
    of_stock = stock_events_behind(
        connection, place.stock_event, end.stock_event, max(1, count // 4)
    )
    rows = connection.execute(
        sa.select(outbox)
        .where(outbox.c.id > place.event, outbox.c.id <= end.event)
        .order_by(outbox.c.id)
        .limit(count - len(of_stock))
    )
    return of_stock + [
        Event(
            row.id,
            event_id(row.order_id, row.round),
            row.order_id,
            row.round,
            row.type,
            row.created_us,
        )
        for row in rows
    ]


def bodies_of(connection: Connection, events: Sequence[Event]) -> dict[bytes, bytes]:
    """What is sent, by the events' ids: an order is shown as it is now. Without those that are not
    kept any more; 256 at most are asked for."""
    data = data_of(connection, [one for one in events if one.of_stock])
    of_orders = [one for one in events if not one.of_stock]
    views = view_orders(connection, list({one.subject for one in of_orders}))
    data |= {one.id: views[one.subject].to_json_dict() for one in of_orders if one.subject in views}
    return {
        one.id: msgspec.json.encode(
            {
                "type": one.type,
                "timestamp": format_instant(one.created_us),
                "data": data[one.id],
            }
        )
        for one in events
        if one.id in data
    }

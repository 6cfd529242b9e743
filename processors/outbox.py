"""Reading what is to be told: the events behind a place, in the order in which they may be told.

On SQLite ids are in the order of commits. On PostgreSQL they are not: a transaction may commit
behind one with a later id, and whoever went on from there would never see its event. A lock that
waits for all who are writing events shows an end that nobody can come in front of any more.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from processors.events import Event, Place
from processors.orders import view_orders
from processors.schema import format_instant
from processors.stock_events import data_of, stock_events_behind
from processors.store import Store, StoreBusy
from processors.tables import outbox, stock_events
from processors.webhooks import event_id

# Workers that come meanwhile wait behind the one who asks, so he asks shortly, and again later.
LOCK_S_MAX = 0.05


def end_of(store: Store) -> Place | None:
    """The last places; all up to them is committed, or never will be. None: others are writing, ask
    again. Raises StoreUnavailable."""
    if store.engine.dialect.name == "sqlite":
        with store.reading() as connection:
            return last_place(connection)
    try:
        with store.writing() as connection:
            connection.execute(sa.text(f"SET LOCAL lock_timeout = '{LOCK_S_MAX * 1000:.0f}ms'"))
            # In the order in which workers write to them.
            connection.execute(sa.text("LOCK TABLE stock_events, outbox IN SHARE MODE"))
            return last_place(connection)
    except StoreBusy:
        return None


def last_place(connection: Connection) -> Place:
    """Of what the connection sees."""
    lasts = (
        sa.select(sa.func.coalesce(sa.func.max(table.c.id), 0)).scalar_subquery()
        for table in (outbox, stock_events)
    )
    return Place(*connection.execute(sa.select(*lasts)).one())


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

"""Reading the outbox: the events behind a place, in the order in which they may be told.

On SQLite ids are in the order of commits. On PostgreSQL they are not: a transaction may commit
behind one with a later id, and whoever went on from there would never see its event. A lock that
waits for all who are writing to the outbox shows an end that nobody can come in front of any more.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from processors.events import Event
from processors.orders import view_orders
from processors.schema import format_instant
from processors.store import Store, StoreBusy
from processors.tables import outbox
from processors.webhooks import event_id

# Workers that come meanwhile wait behind the one who asks, so he asks shortly, and again later.
LOCK_S_MAX = 0.05


def end_of(store: Store) -> int | None:
    """The last place of the outbox; all up to it is committed, or never will be. None: others are
    writing, ask again. Raises StoreUnavailable."""
    last = sa.select(sa.func.coalesce(sa.func.max(outbox.c.id), 0))
    if store.engine.dialect.name == "sqlite":
        with store.reading() as connection:
            return int(connection.execute(last).scalar_one())
    try:
        with store.writing() as connection:
            connection.execute(sa.text(f"SET LOCAL lock_timeout = '{LOCK_S_MAX * 1000:.0f}ms'"))
            connection.execute(sa.text("LOCK TABLE outbox IN SHARE MODE"))
            return int(connection.execute(last).scalar_one())
    except StoreBusy:
        return None


def events_behind(connection: Connection, place: int, end: int, count: int) -> list[Event]:
    """At most `count` events behind that place and up to that end, in their order."""
    rows = connection.execute(
        sa.select(outbox).where(outbox.c.id > place, outbox.c.id <= end)
        .order_by(outbox.c.id).limit(count)
    )  # fmt: skip
    return [
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
    """What is sent, by the events' ids: the order is shown as it is now. Without those whose order
    is gone; 256 at most are asked for."""
    views = view_orders(connection, list({one.subject for one in events}))
    return {
        one.id: msgspec.json.encode(
            {
                "type": one.type,
                "timestamp": format_instant(one.created_us),
                "data": views[one.subject].to_json_dict(),
            }
        )
        for one in events
        if one.subject in views
    }

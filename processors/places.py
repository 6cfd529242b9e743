"""How far there are events to be told.

On SQLite ids are in the order of commits. On PostgreSQL they are not: a transaction may commit
behind one with a later id, and whoever went on from there would never see its event. A lock that
waits for all who are writing events shows an end that nobody can come in front of any more.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from processors.events import Place
from processors.store import Store, StoreBusy
from processors.tables import outbox, stock_events

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

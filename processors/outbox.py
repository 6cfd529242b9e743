"""Reading the outbox: the events behind a place, in the order in which they may be told.

On SQLite ids are in the order of commits. On PostgreSQL they are not: a transaction may commit
behind one with a later id, and whoever went on from there would never see its event. So an id is
only told up to when everybody has ended who was writing to the outbox when it was the last one: who
writes has a lock on the table from before his first id until his end, and locks can be looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from processors.events import Event
from processors.orders import view_orders
from processors.schema import format_instant
from processors.store import Store
from processors.tables import outbox
from processors.webhooks import event_id

LAST = sa.select(sa.func.coalesce(sa.func.max(outbox.c.id), 0))
# Not by locking them out: that would keep workers waiting, and wait for a vacuum itself.
WRITING = sa.text(
    "SELECT virtualtransaction FROM pg_locks WHERE relation = 'outbox'::regclass"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock',"
    " 'AccessExclusiveLock')"
)


class End:
    """The last place of the outbox up to which all is committed, or never will be.

    `_next`: a later one, and who was writing when it was the last: it is next when they have ended.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: int | None = None
        self._next: tuple[int, set[str]] | None = None

    @property
    def sure(self) -> bool:
        """Whether nobody was writing when it was asked for: nothing more can be known."""
        return self._next is None

    def ask(self) -> int | None:
        """What is known by now; None: nothing yet. For one thread. Raises StoreUnavailable."""
        with self._store.reading() as connection:
            last = int(connection.execute(LAST).scalar_one())
            # Only now: who has the last id's predecessors and is not seen here has ended.
            writing = _writing(connection)
        place, before = self._next or (last, writing)
        before &= writing
        if not writing:
            self._known, self._next = last, None
        elif not before:
            self._known, self._next = place, (last, writing)
        else:
            self._next = place, before
        return self._known


def _writing(connection: Connection) -> set[str]:
    if connection.dialect.name == "sqlite":
        return set()
    return set(connection.scalars(WRITING))


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

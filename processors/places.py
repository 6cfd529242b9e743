"""How far there are events to be told.

On SQLite ids are in the order of commits. On PostgreSQL they are not: a transaction may commit
behind one with a later id, and whoever went on from there would never see its event. So ids are
only told up to when everybody has ended who was writing events when they were the last ones: who
writes has a lock on the table from before his first id until his end, and locks can be looked at.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from processors.events import Place
from processors.store import Store
from processors.tables import outbox, stock_events

# Not by locking them out: that would keep workers waiting, and wait for a vacuum itself.
WRITING = sa.text(
    "SELECT virtualtransaction FROM pg_locks"
    " WHERE relation IN ('outbox'::regclass, 'stock_events'::regclass)"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock',"
    " 'AccessExclusiveLock')"
)


class End:
    """The last places up to which all is committed, or never will be.

    `_next`: later ones, and who was writing when they were the last: they are next when those have
    ended.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: Place | None = None
        self._next: tuple[Place, set[str]] | None = None

    @property
    def sure(self) -> bool:
        """Whether nobody was writing when it was asked for: nothing more can be known."""
        return self._next is None

    def ask(self) -> Place | None:
        """What is known by now; None: nothing yet. For one thread. Raises StoreUnavailable."""
        with self._store.reading() as connection:
            last = last_place(connection)
            # Only now: who has the last ids' predecessors and is not seen here has ended.
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


def last_place(connection: Connection) -> Place:
    """Of what the connection sees."""
    lasts = (
        sa.select(sa.func.coalesce(sa.func.max(table.c.id), 0)).scalar_subquery()
        for table in (outbox, stock_events)
    )
    return Place(*connection.execute(sa.select(*lasts)).one())


def _writing(connection: Connection) -> set[str]:
    if connection.dialect.name == "sqlite":
        return set()
    return set(connection.scalars(WRITING))

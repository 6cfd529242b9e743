"""What the database knows of the journal: its own name, and which items are settled."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from processors.instants import now_us
from processors.statements import HotKeys
from processors.store import Store
from processors.tables import meta, orders
from ringbuf import Identity

FORGOTTEN_BEFORE = "forgotten_before"


def database_id(store: Store) -> bytes:
    """The 16 bytes that name this database. Raises StoreUnavailable."""
    with store.reading() as connection:
        value: bytes = connection.execute(
            sa.select(meta.c.value).where(meta.c.name == "database_id")
        ).scalar_one()
    return value


def commit_something(store: Store) -> None:
    """Returns when a commit of our own did: what was visible before it is on disk now, also what a
    killed process had written and not synced. Raises StoreUnavailable, StoreBroken."""
    with store.writing() as connection:
        connection.execute(
            sa.update(meta)
            .where(meta.c.name == "touched")
            .values(value=now_us().to_bytes(8, "big"))
        )


def forgotten_before(connection: Connection) -> int:
    """The instant before which orders may be gone, in microseconds since 1970; 0: none are."""
    query = sa.select(meta.c.value).where(meta.c.name == FORGOTTEN_BEFORE)
    return int.from_bytes(connection.scalars(query).one(), "big")


def forget_before(connection: Connection, moment_us: int) -> None:
    """Moves that instant, never back. In the transaction that removes such an order, or before."""
    moment_us = max(moment_us, forgotten_before(connection))
    connection.execute(
        sa.update(meta)
        .where(meta.c.name == FORGOTTEN_BEFORE)
        .values(value=moment_us.to_bytes(8, "big"))
    )


class Known:
    """Which items the database knows: those with a row of their round, or of a later one."""

    def __init__(self) -> None:
        self._rounds = HotKeys(sa.select(orders.c.id, orders.c.round), orders.c.id)

    def of(self, connection: Connection, identities: Sequence[Identity]) -> set[Identity]:
        """Those of them that it knows."""
        rows = self._rounds.all(connection, [one.key for one in identities])
        rounds = {row[0]: row[1] for row in rows}
        return {one for one in identities if rounds.get(one.key, -1) >= one.round}

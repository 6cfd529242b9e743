"""Cancelling an order, while it waits or when it was allocated.

    waits, or is worked on     whoever inserts the id first wins: a row that is cancelled makes the
                               worker drop the item, as one that comes a second time
    a replay of a dead letter  the same, over the row that is dead with the round before
    allocated                  the stock goes back to the same lots, as movements of kind `return`;
                               being cancelled is the next round, as being let go is
    cancelled                  nothing more happens
    rejected, dead             there is nothing to give back

Each in one transaction, so killed before its commit nothing has happened, and after it the same
request finds that it is done. What comes back to a lot that is expired or recalled by now is in its
balance, and used by nobody. These functions block on the database: call them in threads.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.engine import Connection

from processors.instants import now_us
from processors.jobs import Reading
from processors.orders import OrderView, view_order
from processors.pipeline import Outcome, Work
from processors.posting import Sku, lock_skus, post
from processors.recording import Recorder
from processors.schema import hash_of, load_header, load_order
from processors.store import Store, StoreContended
from processors.tables import NAMESAKE_US, lots, movements, orders, outbox, skus
from ringbuf import Item

CANCELLED = Outcome("cancelled")

Verdict = Literal["cancelled", "already", "settled", "unreadable", "unknown"]


class Cancellation(Struct, frozen=True):
    """`settled`: it has another outcome, which stays. `unreadable`: it waits, and can't be read.
    `view` is the order as it is now, None for the last two."""

    verdict: Verdict
    view: OrderView | None = None


class Canceller:
    """`epoch`: of the ring in which orders wait. Any thread may use it."""

    def __init__(self, epoch: int) -> None:
        self._recorder = Recorder(epoch)

    def cancel(
        self, store: Store, order_id: bytes, item: Item | None, owner: str | None = None
    ) -> Cancellation:
        """`item`: as it was seen in the ring or in a hand, if it was, before this. `owner`: another
        one's is unknown. Raises StoreUnavailable."""
        return store.commit(self._cancel, order_id, item, owner)

    def _cancel(
        self, connection: Connection, order_id: bytes, item: Item | None, owner: str | None
    ) -> Cancellation:
        row = connection.execute(
            sa.select(orders.c.status, orders.c.round, orders.c.accepted_us, orders.c.owner).where(
                orders.c.id == order_id
            )
        ).one_or_none()
        if row is not None and owner is not None and row.owner != owner:
            return Cancellation("unknown")
        verdict = self._decide(connection, order_id, row, item, owner)
        view = None if verdict in ("unknown", "unreadable") else view_order(connection, order_id)
        return Cancellation(verdict, view)

    def _decide(
        self,
        connection: Connection,
        order_id: bytes,
        row: Any,
        item: Item | None,
        owner: str | None,
    ) -> Verdict:
        if row is None:
            # The replay of one that was let go, and forgotten: no worker will settle it either.
            here = item is not None and not item.round
            return self._withdraw(connection, item, owner) if item and here else "unknown"
        if row.status == "allocated":
            _give_back(connection, order_id, row)
            return "cancelled"
        if row.status == "dead" and item is not None and item.round == row.round + 1:
            return self._withdraw(connection, item, owner)
        return "already" if row.status == "cancelled" else "settled"

    def _withdraw(self, connection: Connection, item: Item, owner: str | None) -> Verdict:
        """Raises StoreContended when a worker was faster: then its outcome is there."""
        now = now_us()
        reading = _read(item, now)
        if reading is None:
            return "unreadable"
        if owner is not None and reading.header.owner != owner:
            return "unknown"
        self._recorder.record(connection, [(reading, CANCELLED)])
        return "cancelled"


def _read(item: Item, now: int) -> Reading | None:
    """The item as a worker would have it that took it now."""
    if item.damaged:
        return None
    try:
        order, header = load_order(item.payload), load_header(item.header)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    work = Work(item.key, item.sequence, order, item.accepted_ns // 1000, item.attempts)
    return Reading(item, now, work, hash_of(header, item.payload), header)


def _give_back(connection: Connection, order_id: bytes, row: Any) -> None:
    """Everything that the order holds, once. Raises StoreContended when it has just changed."""
    given = connection.execute(
        sa.select(movements.c.sku_id, movements.c.lot, -movements.c.delta)
        .where(
            movements.c.order_id == order_id,
            movements.c.kind == "allocate",
            movements.c.at_us >= row.accepted_us - NAMESAKE_US,
        )
        .order_by(movements.c.sku_id, movements.c.seq)
    ).all()
    # First the skus, in the order of their ids, then the order: as workers do.
    locked = _lock_skus(connection, {sku_id for sku_id, _, _ in given})
    now = now_us()
    changed = connection.execute(
        sa.update(orders)
        .where(orders.c.id == order_id, orders.c.status == "allocated", orders.c.round == row.round)
        .values(status="cancelled", round=row.round + 1, committed_us=now)
    ).rowcount
    if not changed:
        raise StoreContended("the order was changed by somebody else")
    returns = []
    for sku_id, lot, part in given:
        one = {"sku_id": sku_id, "seq": locked[sku_id].moves(), "lot": lot, "delta": part}
        returns.append({**one, "kind": "return", "order_id": order_id})
    _post(connection, locked, returns, now)
    connection.execute(
        sa.insert(outbox).values(
            order_id=order_id, round=row.round + 1, type="order.cancelled", created_us=now
        )
    )


def _lock_skus(connection: Connection, ids: set[int]) -> dict[int, Sku]:
    return {sku.id: sku for sku in lock_skus(connection, skus.c.id.in_(ids))}


def _post(
    connection: Connection, locked: dict[int, Sku], returns: list[dict[str, Any]], now: int
) -> None:
    if not returns:
        return
    columns = lots.c.id, lots.c.recalled_us, lots.c.expired_seq
    ids = {one["lot"] for one in returns}
    rows = {
        row.id: row for row in connection.execute(sa.select(*columns).where(lots.c.id.in_(ids)))
    }
    for one in returns:
        locked[one["sku_id"]].changes(rows[one["lot"]], one["delta"])
    connection.execute(
        sa.update(lots)
        .where(lots.c.id == sa.bindparam("number"))
        .values(available=lots.c.available + sa.bindparam("part")),
        [{"number": one["lot"], "part": one["delta"]} for one in returns],
    )
    post(connection, list(locked.values()), returns, now)

"""Lists of orders with an outcome, the newest first, page by page.

An order's place is that of its first event: events are numbered as outcomes are committed, and
neither a replay nor a cancel moves an order. So no index is paid for by every order, and a page's
cursor, the number of an event, survives whatever is committed or changed meanwhile. Filters are
looked for among SCAN_MAX events at once: a page may have few orders or none, and still a next one.
"""

from __future__ import annotations

from typing import Any, Literal

import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.engine import Connection

from processors.orders import OrderView, order_view, with_notified
from processors.paging import Int64, Page, bounded, decode_cursor, encode_cursor
from processors.store import Store
from processors.tables import orders, outbox

# Events that one page looks through.
SCAN_MAX = 5_000
OUTCOMES = ("allocated", "rejected", "dead", "cancelled")
EVENT = Literal["event"]


class Wanted(Struct, frozen=True):
    """Which orders; None: any. `owner`: the name of the API key that posted them."""

    status: str | None = None
    customer: str | None = None
    reference: str | None = None
    owner: str | None = None

    def conditions(self) -> list[sa.ColumnElement[bool]]:
        """On the rows of orders."""
        columns = orders.c
        asked = {
            columns.status: self.status,
            columns.customer: self.customer,
            columns.reference: self.reference,
            columns.owner: self.owner,
        }
        return [column == value for column, value in asked.items() if value is not None]


def list_orders(
    store: Store, wanted: Wanted, *, limit: int, cursor: str | None = None
) -> Page[OrderView]:
    """The newest first, at most min(limit, paging.LIMIT_MAX); without their allocations, which may
    be many. Raises CursorError, StoreUnavailable."""
    before = None if cursor is None else decode_cursor(cursor, tuple[EVENT, Int64])[1]
    with store.reading() as connection:
        first, last = connection.execute(
            sa.select(sa.func.min(outbox.c.id), sa.func.max(outbox.c.id))
        ).one()
        if first is None:
            return Page([], None)
        before = last + 1 if before is None else min(before, last + 1)
        begin = _begin(connection, before, first)
        rows = _rows(connection, wanted, begin, before, bounded(limit) + 1)
        shown = rows[: bounded(limit)]
        views = with_notified(connection, {row.id: order_view(row, []) for row in shown})
    place = shown[-1].event if len(rows) > len(shown) else begin if begin > first else None
    more = None if place is None else encode_cursor(("event", place))
    return Page(list(views.values()), more)


def _begin(connection: Connection, before: int, first: int) -> int:
    """The last event that a page looks at: counted, for what is forgotten leaves long gaps."""
    query = sa.select(outbox.c.id).where(outbox.c.id < before).order_by(outbox.c.id.desc())
    found = connection.scalar(query.limit(1).offset(SCAN_MAX - 1))
    return first if found is None else int(found)


def _rows(connection: Connection, wanted: Wanted, begin: int, before: int, count: int) -> list[Any]:
    query = (
        sa.select(orders, outbox.c.id.label("event"))
        .join(orders, orders.c.id == outbox.c.order_id)
        .where(
            outbox.c.id >= begin,
            outbox.c.id < before,
            outbox.c.round == 0,
            *wanted.conditions(),
        )
        .order_by(outbox.c.id.desc())
        .limit(count)
    )
    return list(connection.execute(query))

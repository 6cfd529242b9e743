"""Deliveries as operators see them: looked through, and sent once more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.engine import Connection

from processors.deliveries import give_time, set_turn
from processors.events import OF_STOCK, Place
from processors.instants import now_us
from processors.outbox import events_behind
from processors.paging import Int64, Page, bounded, decode_cursor, encode_cursor
from processors.places import last_place
from processors.schema import format_instant, format_uuid
from processors.store import Store
from processors.tables import deliveries, endpoints
from processors.webhooks import shown_id, shown_url

STATES = ("waiting", "delivered", "failed")
# A page looks through so many rows, so it may be short and still lead on.
SCAN_MAX = 5000


class Delivery(Struct, frozen=True):
    """What became of telling an endpoint of an event, of an order or of a sku; instants are RFC
    3339 UTC."""

    delivery_id: str
    endpoint: str
    event_id: str
    type: str
    order_id: str | None
    sku: str | None
    state: str
    attempts: int
    created_at: str
    next_attempt_at: str | None
    ended_at: str | None
    status: int | None
    error: str | None


Resent = tuple[Literal["waiting", "unknown", "removed"], Delivery | None]


class EndpointView(Struct, frozen=True):
    """An endpoint and how it stands; the url without what may be secret."""

    name: str
    url: str
    told_up_to: int
    waiting: int
    failed: int
    disabled_at: str | None
    why: str | None


def list_deliveries(
    store: Store,
    *,
    state: str | None = None,
    endpoint: str | None = None,
    limit: int,
    cursor: str | None = None,
) -> Page[Delivery]:
    """The newest first, at most min(limit, paging.LIMIT_MAX). Raises CursorError,
    StoreUnavailable."""
    columns = deliveries.c
    with store.reading() as connection:
        last = connection.scalar(sa.select(sa.func.max(columns.id))) or 0
        before = last + 1
        if cursor is not None:
            before = min(before, decode_cursor(cursor, tuple[Int64])[0])
        begin = max(1, before - SCAN_MAX)
        query = sa.select(deliveries).where(columns.id >= begin, columns.id < before)
        if state is not None:
            query = query.where(columns.state == state)
        if endpoint is not None:
            query = query.where(columns.endpoint == endpoint)
        rows = connection.execute(query.order_by(columns.id.desc()).limit(bounded(limit) + 1)).all()
    shown = rows[: bounded(limit)]
    place = shown[-1].id if len(rows) > len(shown) else begin if begin > 1 else None
    more = None if place is None else encode_cursor((place,))
    return Page([_view(row) for row in shown], more)


def resend(connection: Connection, delivery_id: int) -> Resent:
    """It is to be tried now, and for its whole time again; unless its endpoint is gone from the
    settings. While earlier ones of its order wait it goes behind them, and later ones behind it.
    The delivery as it is then."""
    row = _find(connection, delivery_id)
    if row is None:
        return "unknown", None
    there = sa.select(endpoints.c.name).where(endpoints.c.name == row.endpoint).with_for_update()
    if connection.scalar(there) is None:
        return "removed", _view(row)
    now = now_us()
    again = {"state": "waiting", "next_us": now, "first_us": None, "ended_us": None}
    connection.execute(sa.update(deliveries).where(deliveries.c.id == delivery_id).values(again))
    set_turn(connection, row.endpoint, row.subject, now)
    row = _find(connection, delivery_id)
    return ("unknown", None) if row is None else ("waiting", _view(row))


def list_endpoints(store: Store) -> list[EndpointView]:
    """All that were told of anything since they are in the settings. Raises StoreUnavailable."""
    columns = deliveries.c
    counts = (
        sa.select(columns.endpoint, columns.state, sa.func.count().label("number"))
        .where(columns.state != "delivered")
        .group_by(columns.endpoint, columns.state)
    )
    with store.reading() as connection:
        found = {(row.endpoint, row.state): row.number for row in connection.execute(counts)}
        rows = connection.execute(sa.select(endpoints).order_by(endpoints.c.name)).all()
    return [
        EndpointView(
            row.name,
            shown_url(row.url),
            row.event,
            found.get((row.name, "waiting"), 0),
            found.get((row.name, "failed"), 0),
            _instant(row.disabled_us),
            row.why,
        )
        for row in rows
    ]


class Backlog(NamedTuple):
    """What is still to be told: `events` to endpoints that nothing disables, those that they do not
    want included as long as nobody has looked at them; the age of the oldest."""

    events: int
    oldest_s: float


def backlog(store: Store, told: Sequence[str] | None = None) -> Backlog:
    """`told`: the endpoints that the settings have and do not disable, if they are known. Raises
    StoreUnavailable."""
    columns = deliveries.c
    enabled = sa.select(endpoints).where(endpoints.c.disabled_us.is_(None))
    if told is not None:
        enabled = enabled.where(endpoints.c.name.in_(told))
    with store.reading() as connection:
        rows = connection.execute(enabled).all()
        if not rows:
            return Backlog(0, 0.0)
        last = last_place(connection)
        waiting, oldest = connection.execute(
            sa.select(sa.func.count(), sa.func.min(columns.created_us)).where(
                sa.text("state = 'waiting'"), columns.endpoint.in_([row.name for row in rows])
            )
        ).one()
        first = Place(*(min(places) for places in zip(*map(_place, rows), strict=True)))
        behind = events_behind(connection, first, last, 2)
    since = min([one.created_us for one in behind] + [oldest] * (oldest is not None), default=None)
    events = waiting + sum(max(0, last.past(_place(row))) for row in rows)
    return Backlog(events, 0.0 if since is None else max(0.0, (now_us() - since) / 1e6))


def _place(row: Any) -> Place:
    return Place(row.event, row.stock_event)


def enable(connection: Connection, name: str) -> bool:
    """Whether there is such an endpoint; it is told again."""
    found = connection.execute(
        sa.update(endpoints)
        .where(endpoints.c.name == name)
        .values(disabled_us=None, why=None, failing_us=0)
    )
    give_time(connection, name)
    return bool(found.rowcount)


def _find(connection: Connection, delivery_id: int) -> Any:
    return connection.execute(
        sa.select(deliveries).where(deliveries.c.id == delivery_id)
    ).one_or_none()


def _view(row: Any) -> Delivery:
    of_stock = row.type.startswith(OF_STOCK)
    return Delivery(
        str(row.id),
        row.endpoint,
        shown_id(row.event_id),
        row.type,
        None if of_stock else format_uuid(row.subject),
        row.subject.decode() if of_stock else None,
        row.state,
        row.attempts,
        format_instant(row.created_us),
        _instant(row.next_us),
        _instant(row.ended_us),
        row.status,
        row.error,
    )


def _instant(at_us: int | None) -> str | None:
    return None if at_us is None else format_instant(at_us)

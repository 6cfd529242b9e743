"""What endpoints were told, in the database: a row for each event whose attempt has ended.

    (behind the cursor) ──attempt──► delivered
                          │
                          └──► waiting (next_us) ──attempt──► delivered | waiting | failed
    (behind an earlier one of its subject) ──► waiting (no next_us) ──its turn──► next_us = now
    delivered | failed ──resend──► waiting

Of the rows of one subject that wait for one endpoint, the first has the next_us and no other, also
while somebody sends an earlier or a later one once more: whoever writes a row that waits locks the
endpoint's row before.

The cursor moves in the transaction that writes the rows of what it passes: whoever is killed before
it has told some endpoints something that will be told again, under the same id, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal

import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.engine import Connection

from processors.events import Event, Place
from processors.instants import now_us
from processors.statements import Hot, Row
from processors.tables import deliveries, endpoints
from processors.webhooks import Endpoint

COLUMNS = (
    *("endpoint", "event_id", "subject", "number", "type", "created_us"),
    *("state", "attempts", "first_us", "next_us", "ended_us", "status", "error"),
)
State = Literal["waiting", "delivered", "failed"]
ERROR_CHARACTERS_MAX = 200
REMOVED = "the endpoint is gone from the settings"


class Standing(Struct, frozen=True):
    """Where an endpoint is: it was told of all up to `place`, and has taken nothing for so long."""

    place: Place
    failing_us: int
    disabled_us: int | None
    why: str | None


class Due(Struct, frozen=True):
    """A row that is to be tried now."""

    row: int
    event: Event
    attempts: int
    first_us: int | None


class Ended(Struct, frozen=True):
    """What became of an event. row: its row, None when it has none yet; `next_us`: None for one
    that waits for another of its subject. `status`: of the answer, None without one."""

    event: Event
    state: State
    row: int | None = None
    attempts: int = 0
    first_us: int | None = None
    next_us: int | None = None
    status: int | None = None
    error: str | None = None


class Told(Struct, frozen=True):
    """To be written together: what became of events, the endpoint's new place (None: the same),
    and why it is disabled from now on (None: it is not). `failing_us`, with a place: for how long
    it has taken nothing, though it was tried."""

    endpoint: str
    ended: Sequence[Ended]
    place: Place | None = None
    disabled: str | None = None
    failing_us: int = 0


def enlist(connection: Connection, wanted: Sequence[Endpoint], end: Place) -> dict[str, Standing]:
    """Where the endpoints of the settings are. A new one begins at that end, in front of which
    nothing can be committed any more; one whose url has changed is enabled again; what waits for
    one that is gone has failed."""
    there = {row.name: row for row in connection.execute(sa.select(endpoints))}
    now = now_us()
    for name in there.keys() - {one.name for one in wanted}:
        connection.execute(sa.delete(endpoints).where(endpoints.c.name == name))
        _fail_waiting(connection, name, now)
    for one in wanted:
        row = there.get(one.name)
        if row is None:
            new = {"name": one.name, "url": one.url, **end._asdict()}
            connection.execute(sa.insert(endpoints).values(new))
        elif row.url != one.url:
            changed = {"url": one.url, "failing_us": 0, "disabled_us": None, "why": None}
            connection.execute(
                sa.update(endpoints).where(endpoints.c.name == one.name).values(changed)
            )
            give_time(connection, one.name)
    return standings(connection)


def give_time(connection: Connection, name: str) -> None:
    """What waits for an endpoint that is enabled again has its whole time from then on."""
    connection.execute(
        sa.update(deliveries)
        .where(deliveries.c.endpoint == name, sa.text("state = 'waiting'"))
        .values(first_us=None)
    )


def _fail_waiting(connection: Connection, name: str, now: int) -> None:
    connection.execute(
        sa.update(deliveries)
        .where(deliveries.c.endpoint == name, deliveries.c.state == "waiting")
        .values(state="failed", next_us=None, ended_us=now, error=REMOVED)
    )


def standings(connection: Connection) -> dict[str, Standing]:
    """Where all known endpoints are, by name."""
    return {
        row.name: Standing(
            Place(row.event, row.stock_event), row.failing_us, row.disabled_us, row.why
        )
        for row in connection.execute(sa.select(endpoints))
    }


def due_of(connection: Connection, endpoint: str, now: int, count: int) -> list[Due]:
    """What is to be tried by now, the oldest first."""
    rows = connection.execute(
        sa.select(deliveries)
        .where(
            deliveries.c.endpoint == endpoint,
            sa.text("state = 'waiting'"),
            deliveries.c.next_us <= now,
        )
        .order_by(deliveries.c.next_us, deliveries.c.id)
        .limit(count)
    )
    return [
        Due(
            row.id,
            Event(0, row.event_id, row.subject, row.number, row.type, row.created_us),
            row.attempts,
            row.first_us,
        )
        for row in rows
    ]


def next_due_us(connection: Connection, endpoint: str) -> int | None:
    """When something is to be tried next; None: nothing waits."""
    found: int | None = connection.execute(
        sa.select(sa.func.min(deliveries.c.next_us)).where(
            deliveries.c.endpoint == endpoint, sa.text("state = 'waiting'")
        )
    ).scalar_one()
    return found


def not_told(connection: Connection, endpoint: str, events: Sequence[Event]) -> list[Event]:
    """Those that have no row yet: who was stopped in the middle may have told later ones."""
    ids = [one.id for one in events]
    there = set(
        connection.scalars(
            sa.select(deliveries.c.event_id).where(
                deliveries.c.event_id.in_(ids), deliveries.c.endpoint == endpoint
            )
        )
    )
    return [one for one in events if one.id not in there]


def subjects_waiting(
    connection: Connection, endpoint: str, subjects: Sequence[bytes], but: Sequence[int] = ()
) -> set[bytes]:
    """Those of which something waits, beside these rows."""
    return set(
        connection.scalars(
            sa.select(deliveries.c.subject).where(
                deliveries.c.endpoint == endpoint,
                deliveries.c.subject.in_(subjects),
                sa.text("state = 'waiting'"),
                deliveries.c.id.not_in(but),
            )
        )
    )


def told_up_to(connection: Connection, names: Sequence[str]) -> Place | None:
    """Up to where all of those endpoints were told, those that are disabled left out; None: there
    are none."""
    if not names:
        return None
    lasts = sa.func.min(endpoints.c.event), sa.func.min(endpoints.c.stock_event)
    event, stock_event = connection.execute(
        sa.select(*lasts).where(endpoints.c.name.in_(names), endpoints.c.disabled_us.is_(None))
    ).one()
    return None if event is None else Place(event, stock_event)


def subjects_waiting_for(
    connection: Connection, names: Sequence[str], subjects: Sequence[bytes]
) -> set[bytes]:
    """Those of which something waits for one of the endpoints, those that are disabled left out."""
    if not subjects or not names:
        return set()
    enabled = connection.scalars(
        sa.select(endpoints.c.name).where(
            endpoints.c.name.in_(names), endpoints.c.disabled_us.is_(None)
        )
    )
    return set().union(*(subjects_waiting(connection, name, subjects) for name in enabled.all()))


def waiting_events(connection: Connection, event_ids: Sequence[bytes]) -> set[bytes]:
    """Those that wait for any endpoint."""
    if not event_ids:
        return set()
    return set(
        connection.scalars(
            sa.select(deliveries.c.event_id).where(
                deliveries.c.event_id.in_(event_ids), deliveries.c.state == "waiting"
            )
        )
    )


def forget_deliveries(
    connection: Connection, behind: int, before_us: int, count: int
) -> int | None:
    """Removes what has ended of the next so many rows -> the last one; None: those that follow are
    younger."""
    rows = connection.execute(
        sa.select(deliveries.c.id, deliveries.c.state, deliveries.c.created_us)
        .where(deliveries.c.id > behind)
        .order_by(deliveries.c.id)
        .limit(count)
    ).all()
    old = [row for row in rows if row.created_us < before_us]
    ended = [row.id for row in old if row.state != "waiting"]
    if ended:
        # Somebody may have it sent once more at this instant.
        connection.execute(
            sa.delete(deliveries).where(deliveries.c.id.in_(ended), sa.text("state <> 'waiting'"))
        )
    return rows[-1].id if old and len(rows) == count else None


def notified_us(connection: Connection, event_ids: Sequence[bytes]) -> dict[bytes, int]:
    """When the last endpoint had each of these events; without those that still wait for one."""
    if not event_ids:
        return {}
    rows = connection.execute(
        sa.select(
            deliveries.c.event_id,
            sa.func.max(deliveries.c.ended_us).label("at_us"),
            sa.func.sum(sa.case((sa.text("state = 'waiting'"), 1), else_=0)).label("waiting"),
        )
        .where(deliveries.c.event_id.in_(event_ids), sa.text("state <> 'failed'"))
        .group_by(deliveries.c.event_id)
    )
    return {row.event_id: row.at_us for row in rows if not row.waiting}


def record(connection: Connection, told: Sequence[Told]) -> None:
    """Writes what became of events of several endpoints."""
    now, kind = now_us(), connection.dialect.name
    # First, for it locks the endpoints.
    moved = [(*one.place, one.failing_us, one.endpoint) for one in told if one.place is not None]
    _move(kind).many(connection, sorted(moved, key=lambda row: row[-1]))
    for one in told:
        if one.place is None or one.disabled is not None:
            _disable(connection, one, now)
    behind = [(one.endpoint, subject) for one in told for subject in _behind(connection, one)]
    rows = [_row(one.endpoint, ended, now) for one in told for ended in one.ended]
    _insert(kind).many(connection, [row for row in rows if row is not None])
    for endpoint, subject in behind:
        set_turn(connection, endpoint, subject, now)
    for one in told:
        for ended in one.ended:
            if ended.row is not None:
                _update(connection, one.endpoint, ended, now)


@cache
def _insert(_kind: str) -> Hot:
    """Compiled once for each kind of database."""
    return Hot(sa.insert(deliveries), *COLUMNS)


@cache
def _move(_kind: str) -> Hot:
    values = {
        name: sa.bindparam(f"at_{name}", type_=endpoints.c[name].type)
        for name in (*Place._fields, "failing_us")
    }
    name = sa.bindparam("who", type_=endpoints.c.name.type)
    binds = [bind.key for bind in values.values()]
    return Hot(sa.update(endpoints).where(endpoints.c.name == name).values(values), *binds, "who")


def _disable(connection: Connection, told: Told, now: int) -> None:
    values: dict[str, object] = {"event": endpoints.c.event}  # the row is to be locked anyway
    if told.disabled is not None:
        values |= {"disabled_us": now, "why": told.disabled[:ERROR_CHARACTERS_MAX]}
    connection.execute(sa.update(endpoints).where(endpoints.c.name == told.endpoint).values(values))


def _behind(connection: Connection, told: Told) -> set[bytes]:
    """Subjects of which something waits already, and something new does with a time."""
    tried = [one.event.subject for one in told.ended if one.row is None and one.next_us is not None]
    return subjects_waiting(connection, told.endpoint, tried) if tried else set()


def _row(endpoint: str, ended: Ended, now: int) -> Row | None:
    """A new one; None for what has one."""
    if ended.row is not None:
        return None
    event = ended.event
    known = endpoint, event.id, event.subject, event.number, event.type, event.created_us
    return *known, *_values(ended, now).values()


def _update(connection: Connection, endpoint: str, ended: Ended, now: int) -> None:
    connection.execute(
        sa.update(deliveries).where(deliveries.c.id == ended.row).values(_values(ended, now))
    )
    set_turn(connection, endpoint, ended.event.subject, now)


def set_turn(connection: Connection, endpoint: str, subject: bytes, now: int) -> None:
    """Of what waits of that subject the first is tried when it was to be, else now, and the others
    when it has ended. After each change to one of them."""
    waiting = sa.and_(
        deliveries.c.endpoint == endpoint,
        deliveries.c.subject == subject,
        sa.text("state = 'waiting'"),
    )
    first = sa.select(sa.func.min(deliveries.c.id)).where(waiting).scalar_subquery()
    connection.execute(
        sa.update(deliveries)
        .where(deliveries.c.id == first, deliveries.c.next_us.is_(None))
        .values(next_us=now)
    )
    connection.execute(
        sa.update(deliveries)
        .where(waiting, deliveries.c.id > first, deliveries.c.next_us.is_not(None))
        .values(next_us=None)
    )


def _values(ended: Ended, now: int) -> dict[str, object]:
    return {
        "state": ended.state,
        "attempts": ended.attempts,
        "first_us": ended.first_us,
        "next_us": ended.next_us,
        "ended_us": None if ended.state == "waiting" else now,
        "status": ended.status,
        "error": ended.error and ended.error[:ERROR_CHARACTERS_MAX],
    }

"""Dead letters: orders that could not be worked on, kept with the cause until somebody replays them
or lets them go. These functions block on the database: call them in threads.

A replay is the order once more, with the next round: it goes through the ring like any other, and
the worker that gets it settles it only over the row that is dead with the round before. Letting go
takes that round, too, without an outcome: the row stays as a tombstone that knows the id and the
body's hash. So of a replay and a discard, of two replays, and of one that comes back from the
journal, whoever commits first is the only one.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import sqlalchemy as sa
from msgspec import Struct

from processors.instants import now_us
from processors.jobs import DAMAGED, DISCARDED
from processors.orders import decode_lines
from processors.paging import Int64, Page, bounded, decode_cursor, encode_cursor
from processors.quantity import format_quantity
from processors.schema import (
    Line,
    Order,
    RecordHeader,
    encode_header,
    encode_order,
    format_instant,
    format_uuid,
)
from processors.store import Store
from processors.tables import IS_DEAD_LETTER, orders

# Counting goes through the index of dead letters; more of them are told as so many.
COUNT_MAX = 100_000
NO_CONTENT = dict.fromkeys(
    ("customer", "reference", "metadata", "lines", "payload", "cause"), sa.null()
)


class DeadLetter(Struct, frozen=True):
    """`round` counts its replays; lines are (sku, thousandths), none if it can't be read; instants
    are microseconds. `whole`: all of it is there, so it can be replayed."""

    order_id: bytes
    round: int
    reason: str
    cause: str | None
    customer: str | None
    reference: str | None
    lines: list[tuple[str, int]]
    attempts: int
    accepted_us: int
    died_us: int
    whole: bool

    def to_json_dict(self) -> dict[str, Any]:
        """The dead letter as operators see it."""
        return {
            "order_id": format_uuid(self.order_id),
            "round": self.round,
            "reason": self.reason,
            "cause": self.cause,
            "customer": self.customer,
            "reference": self.reference,
            "lines": [
                {"sku": sku, "quantity": format_quantity(number)} for sku, number in self.lines
            ],
            "attempts": self.attempts,
            "accepted_at": format_instant(self.accepted_us),
            "died_at": format_instant(self.died_us),
            "replayable": self.whole,
        }


class Revival(Struct, frozen=True):
    """What to put into the ring for a replay: bytes, record header and round."""

    payload: bytes
    header: bytes
    round: int


Refusal = Literal["unknown", "not_dead", "not_whole"]


def list_dead_letters(
    store: Store, *, limit: int, cursor: str | None = None, reason: str | None = None
) -> Page[DeadLetter]:
    """In the order in which they died; at most min(limit, paging.LIMIT_MAX).

    Raises CursorError, StoreUnavailable.
    """
    place = (orders.c.committed_us, orders.c.id)
    query = sa.select(orders).where(IS_DEAD_LETTER).order_by(*place).limit(bounded(limit) + 1)
    if reason is not None:
        query = query.where(orders.c.reason == reason)
    if cursor is not None:
        died_us, order_id = decode_cursor(cursor, tuple[Int64, bytes])
        bound = (
            sa.literal(died_us, orders.c.committed_us.type),
            sa.literal(order_id, orders.c.id.type),
        )
        query = query.where(sa.tuple_(*place) > sa.tuple_(*bound))
    with store.reading() as connection:
        rows = connection.execute(query).all()
    shown = [_dead_letter(row) for row in rows[: bounded(limit)]]
    more = len(rows) > len(shown)
    return Page(shown, encode_cursor((shown[-1].died_us, shown[-1].order_id)) if more else None)


def find_dead_letter(store: Store, order_id: bytes) -> DeadLetter | None:
    """None for an order that is no dead letter, or not any more. Raises StoreUnavailable."""
    row = _row(store, order_id)
    return _dead_letter(row) if row is not None and _is_dead_letter(row) else None


def count_dead_letters(store: Store) -> int:
    """How many there are, COUNT_MAX at most. Raises StoreUnavailable."""
    some = sa.select(orders.c.id).where(IS_DEAD_LETTER).limit(COUNT_MAX).subquery()
    with store.reading() as connection:
        return int(connection.scalar(sa.select(sa.func.count()).select_from(some)) or 0)


def revive(store: Store, order_id: bytes) -> Revival | Refusal:
    """The order as it was posted, or why it can't be replayed. Raises StoreUnavailable."""
    row = _row(store, order_id)
    if row is None:
        return "unknown"
    if not _is_dead_letter(row):
        return "unknown" if row.reason == DISCARDED else "not_dead"
    if not _is_whole(row):
        return "not_whole"
    # With the hash that it was posted with, which repeats of the order are compared with.
    header = RecordHeader(row.body_hash or b"", row.owner, row.request_id, row.traceparent)
    return Revival(row.payload or _encoded(row), encode_header(header), row.round + 1)


def discard(store: Store, order_id: bytes) -> Literal["discarded", "unknown", "not_dead"]:
    """Lets it go: what it held of the order is erased. Raises StoreUnavailable."""
    with store.writing() as connection:
        gone = connection.execute(
            sa.update(orders)
            .where(orders.c.id == order_id, IS_DEAD_LETTER)
            .values(round=orders.c.round + 1, reason=DISCARDED, committed_us=now_us(), **NO_CONTENT)
        ).rowcount
        if gone:
            return "discarded"
        row = connection.execute(
            sa.select(orders.c.reason).where(orders.c.id == order_id)
        ).one_or_none()
    return "unknown" if row is None or row.reason == DISCARDED else "not_dead"


def _row(store: Store, order_id: bytes) -> Any:
    with store.reading() as connection:
        return connection.execute(sa.select(orders).where(orders.c.id == order_id)).one_or_none()


def _is_dead_letter(row: Any) -> bool:
    return bool(row.status == "dead" and row.reason != DISCARDED)


def _is_whole(row: Any) -> bool:
    return bool(row.lines is not None or (row.payload is not None and row.reason != DAMAGED))


def _dead_letter(row: Any) -> DeadLetter:
    return DeadLetter(
        order_id=row.id,
        round=row.round,
        reason=row.reason,
        cause=row.cause,
        customer=row.customer,
        reference=row.reference,
        lines=decode_lines(row.lines),
        attempts=row.attempts,
        accepted_us=row.accepted_us,
        died_us=row.committed_us,
        whole=_is_whole(row),
    )


def _encoded(row: Any) -> bytes:
    lines = [Line(sku, thousandths) for sku, thousandths in decode_lines(row.lines)]
    metadata = msgspec.json.decode(row.metadata, type=dict[str, str]) if row.metadata else None
    return encode_order(Order(row.customer, lines, row.reference, metadata))

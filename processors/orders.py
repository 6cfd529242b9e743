"""Orders with an outcome, as the database has them. These block: call them in threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy.engine import Connection

from processors.deliveries import notified_us
from processors.quantity import format_quantity
from processors.schema import format_instant, format_uuid
from processors.statements import HotKeys
from processors.store import Store
from processors.tables import NAMESAKE_US, lots, movements, orders, skus
from processors.webhooks import event_id

# A repeat of an order whose commit is older than this is answered without a record of its own in
# the journal: that commit is on disk, for a worker checkpoints what was committed every second.
# Retention counts on it (processors/retention.py).
REPEAT_JOURNALED_US = 3_600_000_000


class Allocation(Struct, frozen=True):
    """What an order was given from one lot."""

    sku: str
    lot_id: str
    quantity: str
    expires_at: str


class OrderView(Struct, frozen=True):
    """An order with its outcome; of one that can't be read (`dead`), customer is None and lines
    is empty. Lines are (sku, thousandths), instants microseconds. `cause` is for operators;
    `owner`: the name of the key that posted it."""

    order_id: bytes
    round: int
    status: str
    reason: str | None
    customer: str | None
    reference: str | None
    metadata: dict[str, str] | None
    lines: list[tuple[str, int]]
    allocations: list[Allocation]
    accepted_us: int
    taken_us: int
    committed_us: int
    attempts: int
    body_hash: bytes | None
    cause: str | None
    owner: str | None
    notified_us: int | None = None

    def to_json_dict(self) -> dict[str, Any]:
        """The order as clients see it."""
        return {
            "order_id": format_uuid(self.order_id),
            "status": self.status,
            "reason": self.reason,
            "customer": self.customer,
            "reference": self.reference,
            "metadata": self.metadata,
            "lines": [
                {"sku": sku, "quantity": format_quantity(number)} for sku, number in self.lines
            ],
            "allocations": [msgspec.structs.asdict(one) for one in self.allocations],
            "timings": {
                "accepted": format_instant(self.accepted_us),
                "taken": format_instant(self.taken_us),
                "committed": format_instant(self.committed_us),
                "notified": self.notified_us and format_instant(self.notified_us),
            },
        }


def find_order(store: Store, order_id: bytes) -> OrderView | None:
    """The order, if it has an outcome. Raises StoreUnavailable."""
    with store.reading() as connection:
        return view_order(connection, order_id)


def view_order(connection: Connection, order_id: bytes) -> OrderView | None:
    """The same within the caller's transaction."""
    return view_orders(connection, [order_id]).get(order_id)


def view_orders(connection: Connection, order_ids: Sequence[bytes]) -> dict[bytes, OrderView]:
    """Those of the ids that have an outcome; 256 at most are asked for."""
    rows = connection.execute(sa.select(orders).where(orders.c.id.in_(order_ids))).all()
    given = _allocations(connection, [row for row in rows if row.status == "allocated"])
    views = {}
    for row in rows:
        place = {sku: number for number, (sku, _) in enumerate(decode_lines(row.lines))}
        own = sorted(given.get(row.id, []), key=lambda one: place.get(one.sku, len(place)))
        views[row.id] = order_view(row, own)
    return with_notified(connection, views)


def with_notified(connection: Connection, views: dict[bytes, OrderView]) -> dict[bytes, OrderView]:
    """With when the last endpoint was told of each outcome."""
    events = {event_id(key, view.round): key for key, view in views.items()}
    for event, at_us in notified_us(connection, list(events)).items():
        key = events[event]
        views[key] = replace(views[key], notified_us=at_us)
    return views


def order_view(row: sa.Row[Any], allocations: list[Allocation]) -> OrderView:
    """Of a row of orders."""
    return OrderView(
        order_id=row.id,
        round=row.round,
        status=row.status,
        reason=row.reason,
        customer=row.customer,
        reference=row.reference,
        metadata=msgspec.json.decode(row.metadata) if row.metadata else None,
        lines=decode_lines(row.lines),
        allocations=allocations,
        accepted_us=row.accepted_us,
        taken_us=row.taken_us,
        committed_us=row.committed_us,
        attempts=row.attempts,
        body_hash=row.body_hash,
        cause=row.cause,
        owner=row.owner,
    )


class KnownOrder(NamedTuple):
    """What a repeat is compared with. `digest`: of the body, b"" (which equals no other) where it
    could not be read; `committed_us`: since 1970."""

    digest: bytes
    status: str
    committed_us: int


class KnownOrders:
    """Looks up many ids at once, to compare repeats; the hot read of a front."""

    def __init__(self) -> None:
        columns = orders.c.id, orders.c.body_hash, orders.c.status, orders.c.committed_us
        self._select = HotKeys(sa.select(*columns), orders.c.id)

    def find(self, store: Store, order_ids: Sequence[bytes], /) -> dict[bytes, KnownOrder]:
        """Those of the ids that have an outcome. Raises StoreUnavailable."""
        with store.reading() as connection:
            rows = self._select.all(connection, order_ids)
        return {key: KnownOrder(digest or b"", *rest) for key, digest, *rest in rows}


def decode_lines(text: str | None) -> list[tuple[str, int]]:
    """The lines of an order's row: [[sku, thousandths], ...]."""
    return msgspec.json.decode(text, type=list[tuple[str, int]]) if text else []


def _allocations(
    connection: Connection, some: Sequence[sa.Row[Any]]
) -> dict[bytes, list[Allocation]]:
    """Of each order, in the order in which they were taken, sku by sku."""
    if not some:
        return {}
    since = {row.id: row.accepted_us - NAMESAKE_US for row in some}
    rows = connection.execute(
        sa.select(
            *(movements.c.order_id, movements.c.at_us, movements.c.delta),
            *(skus.c.sku, lots.c.lot_id, lots.c.expires_us),
        )
        .join(lots, lots.c.id == movements.c.lot)
        .join(skus, skus.c.id == movements.c.sku_id)
        .where(movements.c.order_id.in_(since))
        .order_by(movements.c.sku_id, movements.c.seq)
    )
    given: dict[bytes, list[Allocation]] = {key: [] for key in since}
    for row in rows:
        if row.at_us >= since[row.order_id]:
            quantity, expires_at = format_quantity(-row.delta), format_instant(row.expires_us)
            given[row.order_id].append(Allocation(row.sku, row.lot_id, quantity, expires_at))
    return given

"""Orders with an outcome, as the database has them. These block: call them in threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.engine import Connection

from processors.quantity import format_quantity
from processors.schema import format_instant, format_uuid
from processors.statements import HotKeys
from processors.store import Store
from processors.tables import lots, movements, orders, skus


class Allocation(Struct, frozen=True):
    """What an order was given from one lot."""

    sku: str
    lot_id: str
    quantity: str
    expires_at: str


class OrderView(Struct, frozen=True):
    """An order with its outcome; of one that can't be read (`dead`), customer is None and lines
    is empty. Lines are (sku, thousandths), instants microseconds. `cause` is for operators."""

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
                "notified": None,
            },
        }


def find_order(store: Store, order_id: bytes) -> OrderView | None:
    """The order, if it has an outcome. Raises StoreUnavailable."""
    with store.reading() as connection:
        row = connection.execute(sa.select(orders).where(orders.c.id == order_id)).one_or_none()
        if row is None:
            return None
        given = _allocations(connection, order_id) if row.status == "allocated" else []
    lines = decode_lines(row.lines)
    place = {sku: number for number, (sku, _) in enumerate(lines)}
    given.sort(key=lambda one: place.get(one.sku, len(place)))
    return OrderView(
        order_id=row.id,
        round=row.round,
        status=row.status,
        reason=row.reason,
        customer=row.customer,
        reference=row.reference,
        metadata=msgspec.json.decode(row.metadata) if row.metadata else None,
        lines=lines,
        allocations=given,
        accepted_us=row.accepted_us,
        taken_us=row.taken_us,
        committed_us=row.committed_us,
        attempts=row.attempts,
        body_hash=row.body_hash,
        cause=row.cause,
    )


class KnownOrders:
    """Looks up many ids at once, to compare repeats; the hot read of a front."""

    def __init__(self) -> None:
        columns = orders.c.id, orders.c.body_hash, orders.c.status
        self._select = HotKeys(lambda keys: sa.select(*columns).where(orders.c.id.in_(keys)))

    def find(self, store: Store, order_ids: Sequence[bytes], /) -> dict[bytes, tuple[bytes, str]]:
        """(hash of the body, status) of those ids that have an outcome. Raises StoreUnavailable.

        The hash is b"", which equals no other, where the body could not be read.
        """
        with store.reading() as connection:
            rows = self._select.all(connection, order_ids)
        return {order_id: (body_hash or b"", status) for order_id, body_hash, status in rows}


def decode_lines(text: str | None) -> list[tuple[str, int]]:
    """The lines of an order's row: [[sku, thousandths], ...]."""
    return msgspec.json.decode(text, type=list[tuple[str, int]]) if text else []


def _allocations(connection: Connection, order_id: bytes) -> list[Allocation]:
    """In the order in which they were taken, sku by sku."""
    rows = connection.execute(
        sa.select(skus.c.sku, lots.c.lot_id, movements.c.delta, lots.c.expires_us)
        .join(lots, lots.c.id == movements.c.lot)
        .join(skus, skus.c.id == movements.c.sku_id)
        .where(movements.c.order_id == order_id)
        .order_by(movements.c.sku_id, movements.c.seq)
    )
    return [
        Allocation(row.sku, row.lot_id, format_quantity(-row.delta), format_instant(row.expires_us))
        for row in rows
    ]

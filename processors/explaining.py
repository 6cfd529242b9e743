"""Why an order was given these lots and not others, found out when it is asked for.

Nothing is stored for it with each order: the movements say what was given and at which moment, and
what was passed over follows from the order of use. A lot that comes before one that was used, was
there, and had neither expired nor been recalled, had nothing left; the audit proves that it was so.
These functions block on the database: call them in threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal

import sqlalchemy as sa
from msgspec import Struct
from msgspec.structs import asdict
from sqlalchemy.engine import Connection

from processors.orders import OrderView, view_order
from processors.quantity import format_quantity
from processors.schema import format_instant
from processors.store import Store
from processors.tables import NAMESAKE_US, lots, movements, skus

# Of a line: lots shown that were passed over, the nearest ones, and that come behind the last used.
PASSED_OVER_MAX = 20
BEHIND_MAX = 2
ORDER_OF_USE = (lots.c.expires_us, lots.c.received_us, lots.c.lot_id)

Why = Literal[
    "used_up", "used", "expired", "recalled", "nothing_left", "received_later", "not_needed"
]


class Candidate(Struct, frozen=True):
    """A lot and what became of it; `used`: what the order was given of it."""

    lot_id: str
    expires_at: str
    received_at: str
    used: str
    why: Why


class LineExplained(Struct, frozen=True):
    """The lots of a line in the order of use. `moment`: what was not later than that had expired.
    `more_lots`: others were passed over, further away."""

    sku: str
    quantity: str
    moment: str
    lots: list[Candidate]
    more_lots: bool


class Explanation(Struct, frozen=True):
    """`detail`: why it was rejected, None when it was not."""

    detail: str | None
    lines: list[LineExplained]

    def to_json_dict(self) -> dict[str, Any]:
        """As clients see it."""
        lines = [
            {**asdict(line), "lots": [asdict(lot) for lot in line.lots]} for line in self.lines
        ]
        return {"detail": self.detail, "lines": lines}


def explain_order(store: Store, order_id: bytes) -> tuple[OrderView, Explanation] | None:
    """The order and why, if it has an outcome. Raises StoreUnavailable."""
    with store.reading() as connection:
        view = view_order(connection, order_id)
        if view is None:
            return None
        return view, _explain(connection, view)


def _explain(connection: Connection, view: OrderView) -> Explanation:
    detail = view.cause if view.status == "rejected" else None
    given = connection.execute(
        sa.select(movements, skus.c.sku)
        .join(skus, skus.c.id == movements.c.sku_id)
        .where(
            movements.c.order_id == view.order_id,
            movements.c.kind == "allocate",
            movements.c.at_us >= view.accepted_us - NAMESAKE_US,
        )
        .order_by(movements.c.sku_id, movements.c.seq)
    ).all()
    by_sku = {sku: list(rows) for sku, rows in groupby(given, key=lambda row: str(row.sku))}
    lines = [
        _explain_line(connection, sku, wanted, by_sku[sku])
        for sku, wanted in view.lines
        if sku in by_sku
    ]
    return Explanation(detail, lines)


def _explain_line(
    connection: Connection, sku: str, wanted: int, given: Sequence[Any]
) -> LineExplained:
    first, last = given[0], given[-1]
    used = {row.lot: -row.delta for row in given}
    of_sku = sa.select(lots).where(lots.c.sku_id == first.sku_id)
    end = connection.execute(of_sku.where(lots.c.id == last.lot)).one()
    key = sa.tuple_(*ORDER_OF_USE)
    place = sa.tuple_(
        *(sa.literal(end._mapping[column.name], column.type) for column in ORDER_OF_USE)
    )
    before_max = PASSED_OVER_MAX + len(used)
    before = connection.execute(
        of_sku.where(key <= place)
        .order_by(*(column.desc() for column in ORDER_OF_USE))
        .limit(before_max + 1)
    ).all()
    behind = connection.execute(
        of_sku.where(key > place).order_by(*ORDER_OF_USE).limit(BEHIND_MAX)
    ).all()
    shown = [*reversed(before[:before_max]), *behind]
    return LineExplained(
        sku,
        format_quantity(wanted),
        format_instant(first.at_us),
        [_candidate(row, used, first, last, end) for row in shown],
        more_lots=len(before) > before_max,
    )


def _candidate(row: Any, used: dict[int, int], first: Any, last: Any, end: Any) -> Candidate:
    return Candidate(
        row.lot_id,
        format_instant(row.expires_us),
        format_instant(row.received_us),
        format_quantity(used.get(row.id, 0)),
        _why(row, used, first, last, end),
    )


def _why(row: Any, used: dict[int, int], first: Any, last: Any, end: Any) -> Why:
    """`first`, `last`: the order's movements of that sku; `end`: the lot of the last."""
    if row.id in used:
        # All but the last one were emptied, or the next one would not have been used.
        return "used" if row.id == last.lot else "used_up"
    if row.received_seq is not None and row.received_seq > first.seq:
        return "received_later"
    if row.recalled_seq is not None and row.recalled_seq < first.seq:
        return "recalled"
    if row.expires_us <= first.at_us or (row.expired_seq or first.seq) < first.seq:
        return "expired"
    return "not_needed" if _place(row) > _place(end) else "nothing_left"


def _place(lot: Any) -> tuple[int, int, str]:
    return lot.expires_us, lot.received_us, lot.lot_id

"""Stock: lots come in and are corrected, and everybody can see what there is.

Every change is a movement, numbered per sku under the lock of that sku's row, and a lot's balance
is the sum of its movements. These functions block on the database: call them in threads.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Literal, get_args

import msgspec
import sqlalchemy as sa
from msgspec import UNSET, Struct, UnsetType
from sqlalchemy.engine import Connection

from processors.instants import now_us
from processors.paging import Int64, Page, bounded, decode_cursor, encode_cursor
from processors.posting import Sku, lock_skus, make_skus, post
from processors.quantity import format_quantity
from processors.requests import Request, earlier_answer, keep_answer
from processors.schema import Adjustment, Lot, format_instant
from processors.store import Store, StoreContended
from processors.tables import IN_STOCK, lots, skus

# Lots shown with a sku: alone, and in a list of skus.
SKU_LOTS_MAX = 1000
LIST_LOTS_MAX = 100

# A page of the lots of one state looks through so many, so it may be short and still lead on.
SCAN_MAX = 5000

State = Literal["available", "expired", "spent", "recalled"]
STATES: tuple[State, ...] = get_args(State)
ORDER_OF_USE = (lots.c.expires_us, lots.c.received_us, lots.c.lot_id)
LOTS_IN_ORDER: tuple[sa.Column[Any], ...] = (lots.c.sku_id, *ORDER_OF_USE)


class LotView(Struct, frozen=True):
    """A lot as clients see it: quantities as text, instants as RFC 3339 UTC. One that was recalled
    is that for good, whatever else it is."""

    lot_id: str
    sku: str
    quantity: str
    available: str
    expires_at: str
    received_at: str
    supplier: str | None
    state: State


class StockLot(Struct, frozen=True):
    """A lot within the view of its sku."""

    lot_id: str
    available: str
    expires_at: str
    received_at: str
    state: State


class SkuView(Struct, frozen=True, omit_defaults=True):
    """What there is of a sku, its lots in the order of use.

    `available` counts every lot that is neither expired nor recalled; `expired` what lots have that
    expired and were not recalled, left out when that is nothing. `more_lots`: only the first ones
    in use and the latest others are listed, `GET /lots` has them all; left out when false.
    """

    sku: str
    available: str
    lots: list[StockLot]
    expired: str | UnsetType = UNSET
    more_lots: bool = False


class LotResult(Struct, frozen=True):
    """`same`: the lot is there already with this body; `conflict`: with another one.

    `view` is the lot as it is stored now, in all three cases.
    """

    lot_id: str
    outcome: Literal["created", "same", "conflict"]
    view: LotView


class AdjustResult(Struct, frozen=True):
    """`available` is the balance in thousandths: after `adjusted`, as it stays for `below_zero`,
    None for `unknown_lot`. `replayed`: that was done when the request came before."""

    lot_id: str
    outcome: Literal["adjusted", "unknown_lot", "below_zero"]
    available: int | None
    replayed: bool = False

    def to_json_dict(self) -> dict[str, str]:
        """lot_id and available as clients see them."""
        return {"lot_id": self.lot_id, "available": format_quantity(self.available or 0)}


def add_lot(store: Store, lot: Lot) -> LotResult:
    """Enters a lot, expired or not; the same again changes nothing. Raises StoreUnavailable."""
    return store.commit(enter_lot, lot)


def add_lots(store: Store, batch: Sequence[Lot]) -> list[LotResult]:
    """Enters lots in one transaction, in order. Raises StoreUnavailable, then none is in."""

    def enter(connection: Connection) -> list[LotResult]:
        if connection.dialect.name != "sqlite":
            _lock_skus_of(connection, batch)
        return [enter_lot(connection, lot) for lot in batch]

    return store.commit(enter)


def adjust_lot(
    store: Store, lot_id: str, adjustment: Adjustment, request: Request | None = None
) -> AdjustResult:
    """Corrects a lot's stock, also an expired one's, for one request once. Raises StoreUnavailable
    and KeyTaken."""

    def adjust(connection: Connection) -> AdjustResult:
        sku_id = connection.scalar(sa.select(lots.c.sku_id).where(lots.c.lot_id == lot_id))
        if sku_id is None:
            return AdjustResult(lot_id, "unknown_lot", None)
        (sku,) = lock_skus(connection, skus.c.id == sku_id)
        done = None if request is None else earlier_answer(connection, request)
        if done is not None:
            return AdjustResult(lot_id, "adjusted", msgspec.json.decode(done, type=int), True)
        # Read again under the lock: only now nobody else can change it.
        row = connection.execute(sa.select(lots).where(lots.c.lot_id == lot_id)).one()
        balance = row.available + adjustment.delta
        if balance < 0:
            return AdjustResult(lot_id, "below_zero", row.available)
        connection.execute(sa.update(lots).where(lots.c.id == row.id).values(available=balance))
        sku.changes(row, adjustment.delta)
        movement = {
            "sku_id": sku.id, "seq": sku.moves(), "lot": row.id, "kind": "adjust",
            "delta": adjustment.delta, "reason": adjustment.reason,
        }  # fmt: skip
        post(connection, [sku], [movement], now_us())
        if request is not None:
            keep_answer(connection, request, msgspec.json.encode(balance))
        return AdjustResult(lot_id, "adjusted", balance)

    return store.commit(adjust)


def list_lots(
    store: Store,
    *,
    sku: str | None = None,
    state: State | None = None,
    limit: int,
    cursor: str | None = None,
) -> Page[LotView]:
    """Lots of one sku or of all, of one state or of all, sku by sku in the order of use.

    At most min(limit, paging.LIMIT_MAX). Raises CursorError, StoreUnavailable.
    """
    last = None if cursor is None else decode_cursor(cursor, tuple[Int64, Int64, Int64, str])
    now, end = now_us(), None
    with store.reading() as connection:
        sku_id = None if sku is None else _find_sku(connection, sku)
        if sku is not None and sku_id is None:
            return Page([], None)
        query = _page_of_lots(_select_lots(), sku_id, last)
        if state is not None:
            scan = _scan_of_lots(sku_id, last, state)
            end = connection.execute(_end_of(scan)).one_or_none()
            query = _in_state(scan, state, now)
        rows = connection.execute(query.limit(bounded(limit) + 1)).all()
    shown = rows[: bounded(limit)]
    place = shown[-1] if len(rows) > len(shown) else end
    more = None if place is None else encode_cursor(_lot_key(place))
    return Page([lot_view(row, now) for row in shown], more)


def sku_inventory(store: Store, sku: str) -> SkuView | None:
    """What there is of a sku, at most SKU_LOTS_MAX lots; None for one without any lot ever."""
    with store.reading() as connection:
        sku_id = _find_sku(connection, sku)
        if sku_id is None:
            return None
        return _sku_view(connection, sku_id, sku, now_us(), SKU_LOTS_MAX)


def list_inventory(store: Store, *, limit: int, cursor: str | None = None) -> Page[SkuView]:
    """Every sku in bytewise order, with at most LIST_LOTS_MAX lots each.

    At most min(limit, paging.LIMIT_MAX) skus. Raises CursorError, StoreUnavailable.
    """
    query = sa.select(skus.c.id, skus.c.sku).order_by(skus.c.sku).limit(bounded(limit) + 1)
    if cursor is not None:
        query = query.where(skus.c.sku > decode_cursor(cursor, tuple[str])[0])
    now = now_us()
    with store.reading() as connection:
        rows = connection.execute(query).all()
        shown = rows[: bounded(limit)]
        items = [_sku_view(connection, row.id, row.sku, now, LIST_LOTS_MAX) for row in shown]
    more = encode_cursor((shown[-1].sku,)) if len(rows) > len(shown) else None
    return Page(items, more)


def enter_lot(connection: Connection, lot: Lot) -> LotResult:
    """add_lot within the caller's transaction."""
    body = _body_hash(lot)
    if lot.lot_id is not None and (row := find_lot(connection, lot.lot_id)) is not None:
        outcome: Literal["same", "conflict"] = "same" if row.body_hash == body else "conflict"
        return LotResult(lot.lot_id, outcome, lot_view(row, now_us()))
    lot_id = lot.lot_id or _make_lot_id()
    sku = _lock_or_make(connection, lot.sku)
    now, seq = now_us(), sku.moves()
    made = connection.execute(
        sa.insert(lots).values(
            lot_id=lot_id,
            sku_id=sku.id,
            received=lot.thousandths,
            available=lot.thousandths,
            expires_us=lot.expires_us,
            received_us=now if lot.received_us is None else lot.received_us,
            supplier=lot.supplier,
            body_hash=body,
            received_seq=seq,
        )
    ).inserted_primary_key
    assert made is not None
    sku.available += lot.thousandths
    receipt = {
        "sku_id": sku.id, "seq": seq, "lot": made[0], "kind": "receive", "delta": lot.thousandths,
    }  # fmt: skip
    post(connection, [sku], [receipt], now)
    row = find_lot(connection, lot_id)
    assert row is not None
    return LotResult(lot_id, "created", lot_view(row, now))


def _lock_or_make(connection: Connection, name: str) -> Sku:
    """The sku's row, locked; a new one, if there is none."""
    for _ in range(2):
        for sku in lock_skus(connection, skus.c.sku == name):
            return sku
        make_skus(connection, [name])
    raise StoreContended(f"sku {name} was made by somebody else")


def _lock_skus_of(connection: Connection, batch: Sequence[Lot]) -> None:
    """Makes and locks what `enter_lot` would one by one, in orders that everybody keeps: new ones
    by name, then all by id, as workers do. So no two can wait for each other."""
    named = {lot.lot_id: lot.sku for lot in reversed(batch) if lot.lot_id is not None}
    there = connection.execute(sa.select(lots.c.lot_id).where(lots.c.lot_id.in_(named))).scalars()
    for lot_id in there:
        del named[lot_id]
    wanted = {*named.values(), *(lot.sku for lot in batch if lot.lot_id is None)}
    if not wanted:
        return
    make_skus(connection, sorted(wanted))
    lock_skus(connection, skus.c.sku.in_(wanted))


def _find_sku(connection: Connection, sku: str) -> int | None:
    return connection.scalar(sa.select(skus.c.id).where(skus.c.sku == sku))


def _page_of_lots(
    query: sa.Select[Any], sku_id: int | None, last: tuple[Any, ...] | None
) -> sa.Select[Any]:
    """Behind the lot `last`, in the order of one index; one bound, so that it is entered there."""
    key = LOTS_IN_ORDER
    query = query.order_by(*key)
    if sku_id is not None:
        query = query.where(lots.c.sku_id == sku_id)
        key, last = key[1:], last and last[1:]
    return query if last is None else query.where(sa.tuple_(*key) > sa.tuple_(*_typed(key, last)))


def _scan_of_lots(sku_id: int | None, last: tuple[Any, ...] | None, state: State) -> sa.Select[Any]:
    """All that a page of that state looks through: what is in use has an index of its own."""
    scan = _page_of_lots(sa.select(lots), sku_id, last).limit(SCAN_MAX)
    return scan.where(IN_STOCK) if state == "available" else scan


def _end_of(scan: sa.Select[Any]) -> sa.Select[Any]:
    """Its last lot, if it is full and there may be more behind it."""
    return scan.with_only_columns(*LOTS_IN_ORDER).offset(SCAN_MAX - 1).limit(1)


def _in_state(scan: sa.Select[Any], state: State, now: int) -> sa.Select[Any]:
    """As `_state` has it. Around the scan, which the database may not leave out then."""
    found = scan.subquery("scanned")
    spent, recalled = found.c.available == 0, found.c.recalled_us.is_not(None)
    expired = sa.or_(found.c.expired_seq.is_not(None), found.c.expires_us <= now)
    states = {
        "available": found.c.expires_us > now,
        "expired": sa.and_(expired, sa.not_(spent), sa.not_(recalled)),
        "spent": sa.and_(spent, sa.not_(recalled)),
        "recalled": recalled,
    }
    return (
        sa.select(found, skus.c.sku)
        .join(skus, skus.c.id == found.c.sku_id)
        .where(states[state])
        .order_by(*(found.c[column.name] for column in LOTS_IN_ORDER))
    )


def _select_lots() -> sa.Select[Any]:
    return sa.select(lots, skus.c.sku).join(skus, skus.c.id == lots.c.sku_id)


def find_lot(connection: Connection, lot_id: str) -> sa.Row[Any] | None:
    return connection.execute(_select_lots().where(lots.c.lot_id == lot_id)).one_or_none()


def _sku_view(connection: Connection, sku_id: int, sku: str, now: int, lots_max: int) -> SkuView:
    in_use = sa.and_(lots.c.sku_id == sku_id, IN_STOCK)
    available, expired = connection.execute(
        sa.select(skus.c.available, skus.c.expired).where(skus.c.id == sku_id)
    ).one()
    # What has expired since the last time that somebody looked (processors/expiring.py).
    lately = connection.scalar(
        sa.select(sa.func.coalesce(sa.func.sum(lots.c.available), 0)).where(
            in_use, lots.c.expires_us <= now
        )
    )
    rows = list(
        connection.execute(
            sa.select(lots).where(in_use).order_by(*ORDER_OF_USE).limit(lots_max + 1)
        )
    )
    if len(rows) <= lots_max:
        rows += _out_of_use(connection, sku_id, lots_max + 1 - len(rows))
    shown = sorted(rows[:lots_max], key=lambda row: _lot_key(row)[1:])
    available, expired = available - int(lately or 0), expired + int(lately or 0)
    return SkuView(
        sku,
        format_quantity(available),
        [_stock_lot(row, now) for row in shown],
        format_quantity(expired) if expired else UNSET,
        more_lots=len(rows) > lots_max,
    )


def _out_of_use(connection: Connection, sku_id: int, count: int) -> Sequence[sa.Row[Any]]:
    """The latest spent, recalled or expired ones. Few lots are passed over: the caller has counted
    those in use."""
    return connection.execute(
        sa.select(lots)
        .where(
            lots.c.sku_id == sku_id,
            sa.or_(
                sa.text("available = 0"),
                sa.text("recalled_us IS NOT NULL"),
                sa.text("expired_seq IS NOT NULL"),
            ),
        )
        .order_by(*(column.desc() for column in ORDER_OF_USE))
        .limit(count)
    ).all()


def _lot_key(row: sa.Row[Any]) -> tuple[int, int, int, str]:
    return row.sku_id, row.expires_us, row.received_us, row.lot_id


def _typed(columns: Sequence[sa.Column[Any]], key: Sequence[Any]) -> list[sa.ColumnElement[Any]]:
    return [sa.literal(part, column.type) for column, part in zip(columns, key, strict=True)]


def _state(row: sa.Row[Any], now: int) -> State:
    if row.recalled_us is not None:
        return "recalled"
    if not row.available:
        return "spent"
    # Once it has expired it has, whatever a clock says that was set back.
    expired = row.expired_seq is not None or row.expires_us <= now
    return "expired" if expired else "available"


def _stock_lot(row: sa.Row[Any], now: int) -> StockLot:
    return StockLot(
        row.lot_id,
        format_quantity(row.available),
        format_instant(row.expires_us),
        format_instant(row.received_us),
        _state(row, now),
    )


def lot_view(row: sa.Row[Any], now: int) -> LotView:
    return LotView(
        lot_id=row.lot_id,
        sku=row.sku,
        quantity=format_quantity(row.received),
        available=format_quantity(row.available),
        expires_at=format_instant(row.expires_us),
        received_at=format_instant(row.received_us),
        supplier=row.supplier,
        state=_state(row, now),
    )


def _body_hash(lot: Lot) -> bytes:
    """Of the body as it was sent: a `received_at` left out is the same as left out again."""
    return blake2b(msgspec.msgpack.encode(lot), digest_size=16).digest()


def _make_lot_id() -> str:
    # Rising with time keeps the index of lot ids growing at one end.
    return f"lot-{now_us() // 1000:012x}-{secrets.token_hex(8)}"

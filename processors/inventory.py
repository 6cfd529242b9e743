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
from msgspec import Struct
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection

from processors.instants import now_us
from processors.paging import Int64, Page, bounded, decode_cursor, encode_cursor
from processors.quantity import format_quantity
from processors.requests import Request, earlier_answer, keep_answer
from processors.schema import Adjustment, Lot, format_instant
from processors.store import Store
from processors.tables import IN_STOCK, lots, movements, skus

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

    `available` counts every lot that is neither expired nor recalled. `more_lots`: only the first
    ones in stock and the latest spent or recalled ones are listed, `GET /lots` has them all; left
    out when false.
    """

    sku: str
    available: str
    lots: list[StockLot]
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
        seq = lock_sku(connection, skus.c.id == sku_id)[1]
        done = None if request is None else earlier_answer(connection, request)
        if done is not None:
            return AdjustResult(lot_id, "adjusted", msgspec.json.decode(done, type=int), True)
        # Read again under the lock: only now nobody else can change it.
        row = connection.execute(
            sa.select(lots.c.id, lots.c.available).where(lots.c.lot_id == lot_id)
        ).one()
        balance = row.available + adjustment.delta
        if balance < 0:
            return AdjustResult(lot_id, "below_zero", row.available)
        connection.execute(sa.update(lots).where(lots.c.id == row.id).values(available=balance))
        _record(
            connection, sku_id, seq + 1,
            lot=row.id, kind="adjust", delta=adjustment.delta, reason=adjustment.reason,
        )  # fmt: skip
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
    sku_id, seq = lock_sku(connection, skus.c.sku == lot.sku) or _make_sku(connection, lot.sku)
    now = now_us()
    made = connection.execute(
        sa.insert(lots).values(
            lot_id=lot_id,
            sku_id=sku_id,
            received=lot.thousandths,
            available=lot.thousandths,
            expires_us=lot.expires_us,
            received_us=now if lot.received_us is None else lot.received_us,
            supplier=lot.supplier,
            body_hash=body,
        )
    ).inserted_primary_key
    _record(connection, sku_id, seq + 1, lot=_only(made), kind="receive", delta=lot.thousandths)
    row = find_lot(connection, lot_id)
    assert row is not None
    return LotResult(lot_id, "created", lot_view(row, now))


def lock_sku(connection: Connection, which: sa.ColumnElement[bool]) -> Any:
    """(id, seq) of a sku, locked until the transaction ends; None when there is none.

    On SQLite the transaction has locked everything; elsewhere FOR UPDATE locks the row.
    """
    return connection.execute(
        sa.select(skus.c.id, skus.c.seq).where(which).with_for_update()
    ).one_or_none()


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
    connection.execute(
        postgresql.insert(skus)
        .values([{"sku": sku, "seq": 0} for sku in sorted(wanted)])
        .on_conflict_do_nothing()
    )
    connection.execute(
        sa.select(skus.c.id).where(skus.c.sku.in_(wanted)).order_by(skus.c.id).with_for_update()
    ).all()


def _make_sku(connection: Connection, sku: str) -> tuple[int, int]:
    made = connection.execute(sa.insert(skus).values(sku=sku, seq=0)).inserted_primary_key
    return _only(made), 0


def _only(primary_key: Sequence[Any] | None) -> int:
    assert primary_key is not None
    return int(primary_key[0])


def _record(connection: Connection, sku_id: int, seq: int, **movement: Any) -> None:
    connection.execute(sa.update(skus).where(skus.c.id == sku_id).values(seq=seq))
    connection.execute(
        sa.insert(movements).values(sku_id=sku_id, seq=seq, at_us=now_us(), **movement)
    )


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
    """All that a page of that state looks through: what is in stock has an index of its own."""
    scan = _page_of_lots(sa.select(lots), sku_id, last).limit(SCAN_MAX)
    return scan if state in ("spent", "recalled") else scan.where(IN_STOCK)


def _end_of(scan: sa.Select[Any]) -> sa.Select[Any]:
    """Its last lot, if it is full and there may be more behind it."""
    return scan.with_only_columns(*LOTS_IN_ORDER).offset(SCAN_MAX - 1).limit(1)


def _in_state(scan: sa.Select[Any], state: State, now: int) -> sa.Select[Any]:
    """As `_state` has it. Around the scan, which the database may not leave out then."""
    found = scan.subquery("scanned")
    spent, recalled = found.c.available == 0, found.c.recalled_us.is_not(None)
    states = {
        "available": found.c.expires_us > now,
        "expired": found.c.expires_us <= now,
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
    in_stock = sa.and_(lots.c.sku_id == sku_id, IN_STOCK)
    total = connection.scalar(
        sa.select(sa.func.coalesce(sa.func.sum(lots.c.available), 0)).where(
            in_stock, lots.c.expires_us > now
        )
    )
    rows = list(
        connection.execute(
            sa.select(lots).where(in_stock).order_by(*ORDER_OF_USE).limit(lots_max + 1)
        )
    )
    if len(rows) <= lots_max:
        rows += _used_up(connection, sku_id, lots_max + 1 - len(rows))
    shown = sorted(rows[:lots_max], key=lambda row: _lot_key(row)[1:])
    return SkuView(
        sku,
        format_quantity(int(total or 0)),
        [_stock_lot(row, now) for row in shown],
        more_lots=len(rows) > lots_max,
    )


def _used_up(connection: Connection, sku_id: int, count: int) -> Sequence[sa.Row[Any]]:
    """The latest spent or recalled ones. Few lots are passed over: the caller has counted those in
    stock."""
    return connection.execute(
        sa.select(lots)
        .where(
            lots.c.sku_id == sku_id,
            sa.or_(sa.text("available = 0"), sa.text("recalled_us IS NOT NULL")),
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
    return "expired" if row.expires_us <= now else "available"


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

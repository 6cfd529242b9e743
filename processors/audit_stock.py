"""Audits stock: replays the movements of each sku against its lots.

Streams skus, lots, movements and events of stock side by side, each once, sku by sku. Memory grows
with the lots of one sku, not with movements or skus.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.engine import Connection

from processors.audit_report import Groups, Report
from processors.audit_stock_events import EventReplay
from processors.known import forgotten_before
from processors.quantity import format_quantity
from processors.schema import format_instant
from processors.tables import lots, movements, skus, stock_events

ROWS_AT_ONCE = 1000

UseKey = tuple[int, int, str, int]


class LotReplay(Struct):
    """A lot while its movements are replayed; `key` is its place in the order of use."""

    key: UseKey
    received: int
    available: int
    balance: int = 0
    entered: bool = False
    recalled: bool = False
    expired: bool = False
    received_seq: int | None = None
    expired_seq: int | None = None

    @property
    def name(self) -> str:
        """Its lot id."""
        return self.key[2]


def stream(connection: Connection, query: sa.Select[Any]) -> Iterator[Any]:
    """The rows as they come, never all of them in memory."""
    return iter(connection.execute(query, execution_options={"yield_per": ROWS_AT_ONCE}))


def audit_stock(connection: Connection, report: Report) -> None:
    """Rules balance, sequence, sums, fefo and stock-events."""
    forgotten_us = forgotten_before(connection)
    all_lots = Groups(
        stream(
            connection,
            sa.select(
                lots.c.sku_id,
                lots.c.expires_us,
                lots.c.received_us,
                lots.c.lot_id,
                lots.c.id,
                lots.c.received,
                lots.c.available,
                lots.c.opening,
                lots.c.recalled_us,
                lots.c.recalled_seq,
                lots.c.received_seq,
                lots.c.expired_seq,
            ).order_by(lots.c.sku_id, lots.c.expires_us, lots.c.received_us, lots.c.lot_id),
        ),
        lambda row: report.violate("balance", f"lot {row.lot_id} belongs to no sku"),
    )
    all_movements = Groups(
        stream(
            connection,
            sa.select(
                movements.c.sku_id,
                movements.c.seq,
                movements.c.lot,
                movements.c.delta,
                movements.c.kind,
                movements.c.at_us,
            ).order_by(movements.c.sku_id, movements.c.seq),
        ),
        lambda row: report.violate("sequence", f"movement {row.seq} belongs to no sku"),
    )
    all_events = Groups(
        stream(
            connection,
            sa.select(
                stock_events.c.sku_id,
                stock_events.c.seq,
                stock_events.c.type,
                stock_events.c.lot,
                stock_events.c.quantity,
                stock_events.c.below,
            ).order_by(stock_events.c.sku_id, stock_events.c.seq, stock_events.c.id),
        ),
        lambda row: report.violate("stock-events", f"event {row.type} belongs to no sku"),
    )
    for sku in stream(connection, sa.select(skus).order_by(skus.c.id)):
        report.counts["skus"] += 1
        report.counts["movements in opening balances"] += sku.folded
        events = EventReplay(sku.sku, report, all_events.of(sku.id), sku.folded, forgotten_us)
        replay = SkuReplay(sku.sku, report, events, sku.folded)
        for row in all_lots.of(sku.id):
            replay.add_lot(row)
        for row in all_movements.of(sku.id):
            replay.move(row)
        replay.end(sku)
    all_lots.rest()
    all_movements.rest()
    all_events.rest()


class SkuReplay:
    """One sku: its lots are added with their opening balances, the movements after those `folded`
    replayed in their order, its balances compared.

    Invariant: `_in_stock` holds the keys of the lots in use, neither recalled nor expired by a
    movement, with a balance above 0, in the order of use; `_available` is the sum of their
    balances, `_expired` that of those that expired and were not recalled. `_recalls`: what is to be
    recalled, and after which movement, the last first.
    """

    def __init__(self, sku: str, report: Report, events: EventReplay, folded: int = 0) -> None:
        self._sku = sku
        self._report = report
        self._events = events
        self._available = self._expired = 0
        self._lots: dict[int, LotReplay] = {}
        self._in_stock: list[UseKey] = []
        self._recalls: list[tuple[int, LotReplay]] = []
        self._folded = self._seq = folded

    def add_lot(self, row: Any) -> None:
        """A lot of this sku, before any movement."""
        key = (row.expires_us, row.received_us, row.lot_id, row.id)
        self._lots[row.id] = lot = LotReplay(key, row.received, row.available)
        lot.received_seq, lot.expired_seq = row.received_seq, row.expired_seq
        self._report.counts["lots"] += 1
        if row.expired_seq is not None and row.expired_seq <= self._folded:
            self._report.counts["lots expired"] += 1
            lot.expired = True
        if row.opening is not None:
            self._open(lot, row.opening)
        elif lot.expired:
            self._violate("balance", f"lot {lot.name} has expired before its receipt")
        if (row.recalled_us is None) != (row.recalled_seq is None):
            self._violate("fefo", f"lot {lot.name} is recalled, and not known when")
        if row.recalled_seq is not None:
            self._report.counts["lots recalled"] += 1
            insort(self._recalls, (row.recalled_seq, lot), key=lambda recall: -recall[0])

    def move(self, row: Any) -> None:
        """The next movement."""
        _, seq, number, delta, kind, at_us = row
        self._report.counts["movements"] += 1
        self._recall_before(seq)
        self._events.close(self._seq)
        if seq != self._seq + 1:
            self._violate("sequence", f"movement {seq} follows {self._seq}")
        self._seq = seq
        lot = self._lots.get(number)
        if lot is None:
            self._violate("balance", f"movement {seq} is of a lot that is not this sku's")
            return
        self._check_kind(lot, seq, delta, kind)
        if kind == "allocate":
            self._check_first(lot, seq, at_us)
        if kind == "expire":
            self._expire(lot, seq, at_us)
        self._change(lot, seq, delta)
        self._events.total(self._available)

    def end(self, row: Any) -> None:
        """After the last movement; `row` is the sku's."""
        if row.seq != self._seq:
            self._violate("sequence", f"its row says {row.seq}, its last movement is {self._seq}")
        self._recall_before(self._seq + 1)
        self._events.close(self._seq)
        self._events.end()
        self._check_sums(row)
        for after, lot in self._recalls:
            self._violate("fefo", f"lot {lot.name} is recalled after movement {after}, to come yet")
        for lot in self._lots.values():
            if not lot.entered:
                self._violate("balance", f"lot {lot.name} was never received")
            if lot.expired_seq is not None and not lot.expired:
                self._violate("fefo", f"lot {lot.name} has expired, and no movement says so")
            if lot.balance != lot.available:
                self._violate(
                    "balance",
                    f"lot {lot.name} has {format_quantity(lot.available)} available, its movements "
                    f"make {format_quantity(lot.balance)}",
                )
            if lot.available < 0:
                below = format_quantity(lot.available)
                self._violate("balance", f"lot {lot.name} has {below} available, below 0")

    def _open(self, lot: LotReplay, opening: int) -> None:
        if opening < 0 or not self._folded:
            text = f"lot {lot.name} begins with {format_quantity(opening)}"
            self._violate("balance", f"{text}, its sku with {self._folded} movements folded")
        lot.entered = True
        lot.balance = opening
        self._count(lot, opening)
        if opening > 0 and not lot.expired:
            insort(self._in_stock, lot.key)

    def _count(self, lot: LotReplay, delta: int) -> None:
        if lot.recalled:
            return
        if lot.expired:
            self._expired += delta
        else:
            self._available += delta

    def _check_sums(self, row: Any) -> None:
        for word, said, found in (
            ("available", row.available, self._available),
            ("expired", row.expired, self._expired),
        ):
            if said != found:
                text = f"its row says {format_quantity(said)} {word}"
                self._violate("sums", f"{text}, its lots make {format_quantity(found)}")

    def _expire(self, lot: LotReplay, seq: int, at_us: int) -> None:
        self._report.counts["lots expired"] += 1
        if lot.expired or lot.expired_seq != seq:
            self._violate(
                "fefo", f"lot {lot.name} expires in movement {seq}, its row says otherwise"
            )
        if lot.key[0] > at_us:
            self._violate("fefo", f"lot {lot.name} expires in movement {seq}, before its time")
        self._events.expired(lot.key[3], lot.name, lot.balance, at_us=at_us, recalled=lot.recalled)
        if lot.expired:
            return
        if lot.balance > 0 and not lot.recalled:
            del self._in_stock[bisect_left(self._in_stock, lot.key)]
        self._count(lot, -lot.balance)
        lot.expired = True
        self._count(lot, lot.balance)

    def _check_kind(self, lot: LotReplay, seq: int, delta: int, kind: str) -> None:
        if kind == "receive":
            if lot.entered or delta != lot.received:
                self._violate(
                    "balance",
                    f"movement {seq} receives {format_quantity(delta)} into lot {lot.name}, which "
                    f"received {format_quantity(lot.received)} once",
                )
            if lot.received_seq not in (None, seq):
                self._violate(
                    "balance", f"lot {lot.name} says it came in movement {lot.received_seq}"
                )
            lot.entered = True
        elif not lot.entered:
            self._violate("balance", f"movement {seq} is before lot {lot.name} was received")
        if kind == "allocate" and delta >= 0:
            self._violate("balance", f"movement {seq} allocates {format_quantity(-delta)}")
        if kind == "return" and delta <= 0:
            self._violate("balance", f"movement {seq} gives back {format_quantity(delta)}")
        if kind == "expire" and delta:
            self._violate("balance", f"movement {seq} of an expiry adds {format_quantity(delta)}")

    def _check_first(self, lot: LotReplay, seq: int, at_us: int) -> None:
        self._report.counts["allocations"] += 1
        moment = _moment(at_us)
        if lot.key[0] <= at_us:
            self._violate("fefo", f"movement {seq} takes from lot {lot.name}, expired at {moment}")
            return
        if lot.recalled:
            self._violate("fefo", f"movement {seq} takes from lot {lot.name}, which was recalled")
            return
        if lot.expired:
            self._violate("fefo", f"movement {seq} takes from lot {lot.name}, which had expired")
            return
        place = bisect_left(self._in_stock, (at_us + 1,))
        first = self._in_stock[place] if place < len(self._in_stock) else None
        if first != lot.key:
            better = "no lot has any" if first is None else f"lot {first[2]} was the first to use"
            self._violate("fefo", f"movement {seq} takes from lot {lot.name}, {better} at {moment}")

    def _change(self, lot: LotReplay, seq: int, delta: int) -> None:
        before, lot.balance = lot.balance, lot.balance + delta
        if lot.balance < 0 <= before:
            self._violate("balance", f"movement {seq} takes lot {lot.name} below 0")
        self._count(lot, delta)
        if lot.recalled or lot.expired:
            return
        if before <= 0 < lot.balance:
            insort(self._in_stock, lot.key)
        elif lot.balance <= 0 < before:
            del self._in_stock[bisect_left(self._in_stock, lot.key)]

    def _recall_before(self, seq: int) -> None:
        """What was recalled before that movement is in stock no more."""
        while self._recalls and self._recalls[-1][0] < seq:
            after, lot = self._recalls.pop()
            self._count(lot, -lot.balance)
            lot.recalled = True
            self._events.total(self._available)
            if not lot.entered:
                text = f"lot {lot.name} is recalled after movement {after}, before its receipt"
                self._violate("balance", text)
            if lot.balance > 0 and not lot.expired:
                del self._in_stock[bisect_left(self._in_stock, lot.key)]

    def _violate(self, rule: str, detail: str) -> None:
        self._report.violate(rule, f"sku {self._sku}: {detail}")


def _moment(at_us: int) -> str:
    try:
        return format_instant(at_us)
    except OverflowError:
        return f"{at_us} us"

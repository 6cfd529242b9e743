"""Lots in bulk: rows as if they had been entered one by one and then used up, expired or kept.

The one place that knows these columns; the audit says whether it has them right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.engine import Connection

from benchmarks import stock
from processors.instants import now_us
from processors.posting import STOCK_EXPIRED
from processors.statements import Hot, Row
from processors.tables import lots, movements, skus, stock_events

ROWS_AT_ONCE = 10_000
NO_BODY = bytes(16)


class Pile(Struct, frozen=True):
    """All lots of one sku, in the order of use but for `expired` ones, which still have stock and
    come first. Spent ones were emptied before they expired."""

    sku: str
    in_stock: int
    spent: int = 0
    expired: int = 0

    @property
    def lots(self) -> int:
        """That it ever had."""
        return self.ended + self.in_stock

    @property
    def ended(self) -> int:
        """That are not in use any more."""
        return self.spent + self.expired


def make_database(folder: Path, piles: Iterable[Pile], lot_thousandths: int) -> Path:
    """A database with those lots, each of which held `lot_thousandths`, and nothing else."""
    file = stock.make_database(folder, lots=0)
    store = stock.open_store(file, "OFF")
    with store.writing() as transaction:
        builder = Builder(lot_thousandths)
        for pile in piles:
            builder.add(transaction, pile)
    store.close()
    return file


class Builder:
    """Numbers skus and lots as it adds them."""

    def __init__(self, lot_thousandths: int) -> None:
        self._thousandths = lot_thousandths
        self._now_us = now_us()
        self._sku_id = 0
        self._lot = 0
        self._skus = Hot(sa.insert(skus), "id", "sku", "seq", "available", "expired")
        self._lots = Hot(
            sa.insert(lots), "id", "lot_id", "sku_id", "received", "available", "expires_us",
            "received_us", "body_hash", "received_seq", "expired_seq",
        )  # fmt: skip
        self._movements = Hot(
            sa.insert(movements), "sku_id", "seq", "lot", "delta", "kind", "at_us", "reason"
        )
        self._events = Hot(
            sa.insert(stock_events), "sku_id", "seq", "type", "lot", "quantity", "created_us"
        )

    def add(self, transaction: Connection, pile: Pile) -> None:
        """One more sku."""
        self._sku_id += 1
        sums = pile.in_stock * self._thousandths, pile.expired * self._thousandths
        self._skus.many(transaction, [(self._sku_id, pile.sku, pile.lots + pile.ended, *sums)])
        for start in range(0, pile.lots, ROWS_AT_ONCE):
            numbers = range(start, min(start + ROWS_AT_ONCE, pile.lots))
            self._lots.many(transaction, [self._lot_row(pile, number) for number in numbers])
            changes = [row for number in numbers for row in self._movement_rows(pile, number)]
            self._movements.many(transaction, changes)
            self._events.many(
                transaction,
                [
                    (sku, seq, STOCK_EXPIRED, lot, self._thousandths, at_us)
                    for sku, seq, lot, _, kind, at_us, _ in changes
                    if kind == "expire"
                ],
            )
        self._lot += pile.lots

    def _lot_row(self, pile: Pile, number: int) -> Row:
        available = 0 if number < pile.spent else self._thousandths
        seq = self._seq(pile, number)
        expired_seq = seq + 1 if pile.spent <= number < pile.ended else None
        return (
            self._lot + number + 1, f"{pile.sku}-{number:07}", self._sku_id, self._thousandths,
            available, self._expires_us(pile, number), self._received_us, NO_BODY,
            seq, expired_seq,
        )  # fmt: skip

    def _movement_rows(self, pile: Pile, number: int) -> Iterator[Row]:
        """Its receipt; one that is not in use has its end, too."""
        lot, at_us, seq = self._lot + number + 1, self._received_us, self._seq(pile, number)
        yield self._sku_id, seq, lot, self._thousandths, "receive", at_us, None
        if number < pile.spent:
            yield self._sku_id, seq + 1, lot, -self._thousandths, "adjust", at_us, "spoilage"
        elif number < pile.ended:
            yield self._sku_id, seq + 1, lot, 0, "expire", self._now_us, None

    @staticmethod
    def _seq(pile: Pile, number: int) -> int:
        """Of its receipt."""
        return number + min(number, pile.ended) + 1

    @property
    def _received_us(self) -> int:
        return self._now_us - 10 * stock.DAY_US

    def _expires_us(self, pile: Pile, number: int) -> int:
        days = 1 if number < pile.spent else -1 if number < pile.ended else 100
        return self._now_us + days * stock.DAY_US + number

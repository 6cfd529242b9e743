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
from processors.statements import Hot, Row
from processors.tables import lots, movements, skus

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
        return self.spent + self.expired + self.in_stock


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
        self._skus = Hot(sa.insert(skus), "id", "sku", "seq")
        self._lots = Hot(
            sa.insert(lots), "id", "lot_id", "sku_id", "received", "available", "expires_us",
            "received_us", "body_hash",
        )  # fmt: skip
        self._movements = Hot(
            sa.insert(movements), "sku_id", "seq", "lot", "delta", "kind", "at_us", "reason"
        )

    def add(self, transaction: Connection, pile: Pile) -> None:
        """One more sku."""
        self._sku_id += 1
        self._skus.many(transaction, [(self._sku_id, pile.sku, pile.lots + pile.spent)])
        for start in range(0, pile.lots, ROWS_AT_ONCE):
            numbers = range(start, min(start + ROWS_AT_ONCE, pile.lots))
            self._lots.many(transaction, [self._lot_row(pile, number) for number in numbers])
            changes = [row for number in numbers for row in self._movement_rows(pile, number)]
            self._movements.many(transaction, changes)
        self._lot += pile.lots

    def _lot_row(self, pile: Pile, number: int) -> Row:
        available = 0 if number < pile.spent else self._thousandths
        return (
            self._lot + number + 1, f"{pile.sku}-{number:07}", self._sku_id, self._thousandths,
            available, self._expires_us(pile, number), self._received_us, NO_BODY,
        )  # fmt: skip

    def _movement_rows(self, pile: Pile, number: int) -> Iterator[Row]:
        """Its receipt; a spent lot is written off at once, so it has two movements."""
        lot, at_us = self._lot + number + 1, self._received_us
        seq = number + min(number, pile.spent) + 1
        yield self._sku_id, seq, lot, self._thousandths, "receive", at_us, None
        if number < pile.spent:
            yield self._sku_id, seq + 1, lot, -self._thousandths, "adjust", at_us, "spoilage"

    @property
    def _received_us(self) -> int:
        return self._now_us - 10 * stock.DAY_US

    def _expires_us(self, pile: Pile, number: int) -> int:
        days = 1 if number < pile.spent else -1 if number < pile.spent + pile.expired else 100
        return self._now_us + days * stock.DAY_US + number

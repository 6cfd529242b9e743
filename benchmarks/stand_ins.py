"""Processors that stand in for the allocation of stock: `--processor benchmarks.stand_ins:null`."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy.engine import Connection

from processors.pipeline import Outcome, Processor, Work

PACE_PER_S = 300
REASON = "benchmark"


def null() -> Processor:
    """Rejects every order at once: no stock is read or written, only the outcome."""
    outcome = Outcome.rejected(REASON)

    def process(_transaction: Connection, orders: Sequence[Work], _moment_us: int) -> list[Outcome]:
        return [outcome] * len(orders)

    return process


def paced() -> Processor:
    """Rejects PACE_PER_S orders a second at the most: it sleeps as long for each order. The
    database has one writer, so that is the pace of any number of workers."""
    outcome = Outcome.rejected(REASON)

    def process(_transaction: Connection, orders: Sequence[Work], _moment_us: int) -> list[Outcome]:
        time.sleep(len(orders) / PACE_PER_S)
        return [outcome] * len(orders)

    return process

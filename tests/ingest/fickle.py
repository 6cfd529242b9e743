"""A processor for which one order in four is a mistake: so there are dead letters to look at."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.engine import Connection

from processors.pipeline import Outcome, Processor, Work, fefo


def factory() -> Processor:
    allocate = fefo()

    def process(
        transaction: Connection, orders: Sequence[Work], moment_us: int, /
    ) -> Sequence[Outcome]:
        if any(work.order_id[-1] % 4 == 3 for work in orders):
            raise ValueError("an order that nobody can work on")
        return allocate(transaction, orders, moment_us)

    return process

"""The allocation at the pace of somebody else's service, for `rasher demo`.

As fast as it is, it would empty the ring before anybody could see it full.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy.engine import Connection

from processors.pipeline import Outcome, Processor, Work, fefo

THOUGHT_S = 0.002


def processor() -> Processor:
    """First expired, first out, and THOUGHT_S for each order."""
    allocate = fefo()

    def process(
        transaction: Connection, orders: Sequence[Work], moment_us: int
    ) -> Sequence[Outcome]:
        time.sleep(THOUGHT_S * len(orders))
        return allocate(transaction, orders, moment_us)

    return process

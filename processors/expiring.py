"""Expiry is a fact, with a movement: whatever a sku's lots had at their end is counted and told.

    lots whose time is over, oldest first ----> one transaction for some of them, under the locks of
                                                their skus: a movement of kind `expire`, the sums
                                                of the sku, an event if there was something left

No allocation waits for it: one compares each lot's `expires_us` with its own moment, so a lot is
out of use from then on, noted or not. Once noted it stays so, also when a clock is set back. So a
clock that jumps forward, which may be a mistake, is believed after a while.

Each transaction is complete in itself: killed before its commit nothing has happened, after it the
lot is not looked at again. Two at once do no harm, for both lock the skus. What an expired lot has
stays in its balance, until it is counted away by an adjustment.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from processors.instants import now_us
from processors.posting import STOCK_EXPIRED, Sku, lock_skus, post
from processors.statements import Hot
from processors.store import Store, StoreUnavailable
from processors.tables import NOT_EXPIRED, lots, skus, stock_events

# How often it is asked whether a lot's time is over, and after the database was away.
LOOK_EVERY_S = 1.0
AWAY_S = 5.0
# Lots of one transaction: about as long as a batch of orders takes.
LOTS_AT_ONCE = 64
# Of a worker's time, when many lots expire at once, and how much of it at a time: a worker that has
# nothing to do looks only twice a second.
SHARE = 0.1
BURST_S = 0.025

# A clock that goes forward by so much at once is believed if it is still there after so long.
JUMP_S = 60.0
BELIEVED_AFTER_S = 300.0

log = logging.getLogger(__name__)


class Expirer:
    """Of one database; one process at a time suffices. `committed` is called after each commit:
    there is something to be told."""

    def __init__(self, store: Store, committed: Callable[[], object] = lambda: None) -> None:
        self._store = store
        self._committed = committed
        self._due = 0.0
        self._ahead_s: float | None = None  # of the monotonic clock, the one that tells the time
        self._noted = self._with_stock = 0  # since it was last said
        self._find = Hot(_expiring(), "now", "count")
        self._mark = Hot(
            sa.update(lots)
            .where(lots.c.id == sa.bindparam("number"))
            .values(expired_seq=sa.bindparam("seq", type_=lots.c.expired_seq.type)),
            "seq",
            "number",
        )

    def look(self) -> None:
        """As often as one likes: does what is due, in its share of the time. Raises StoreBroken."""
        begun = time.monotonic()
        if begun < self._due or self._jumped(begun):
            return
        more = True
        try:
            while more and time.monotonic() - begun < BURST_S:
                more = self.step()
        except StoreUnavailable as error:
            self._due = time.monotonic() + AWAY_S
            log.debug("no expiry is noted now: %s", error)
            return
        now = time.monotonic()
        pause_s = (now - begun) * (1 / SHARE - 1)
        self._due = now + (pause_s if more else max(LOOK_EVERY_S, pause_s))

    def _jumped(self, begun: float) -> bool:
        """Whether the clock has, since the last look; then the next one is later."""
        was, self._ahead_s = self._ahead_s, now_us() / 1e6 - begun
        if was is None or self._ahead_s - was < JUMP_S:
            return False
        self._due = begun + BELIEVED_AFTER_S
        text = "the clock went forward by %.0f s at once: no expiry is noted for %g s"
        log.warning(text, self._ahead_s - was, BELIEVED_AFTER_S)
        return True

    def step(self) -> bool:
        """One transaction at most -> whether there may be more to note now. Raises
        StoreUnavailable, StoreBroken."""
        with self._store.reading() as connection:
            found = self._find.all(connection, (now_us(), LOTS_AT_ONCE))
        if found:
            noted, with_stock = self._store.commit(self._note, found)
            self._committed()
            self._noted += noted
            self._with_stock += with_stock
        more = len(found) == LOTS_AT_ONCE
        if self._noted and not more:
            log.info("%d lots have expired, %d with stock left", self._noted, self._with_stock)
            self._noted = self._with_stock = 0
        return more

    def _note(self, connection: Connection, found: Sequence[Sequence[Any]]) -> tuple[int, int]:
        """`found`: (row, sku's row) of each lot -> how many were noted, how many had stock."""
        ids = {sku_id for _, sku_id in found}
        locked = {sku.id: sku for sku in lock_skus(connection, skus.c.id.in_(ids))}
        # Read again under the locks: only now nobody else can change them.
        rows = connection.execute(
            sa.select(lots)
            .where(lots.c.id.in_([row for row, _ in found]), NOT_EXPIRED)
            .order_by(lots.c.expires_us, lots.c.id)
        ).all()
        # Not before its time, even if the clock was set back since it was found.
        now = max([now_us(), *(row.expires_us for row in rows)])
        posted, events = [], []
        for row in rows:
            sku = locked[row.sku_id]
            one = {"sku_id": sku.id, "seq": expire(sku, row), "lot": row.id}
            posted.append({**one, "kind": "expire", "delta": 0})
            if row.available and row.recalled_us is None:
                told = {"type": STOCK_EXPIRED, "quantity": row.available, "created_us": now}
                events.append({**one, **told})
        self._mark.many(connection, [(one["seq"], one["lot"]) for one in posted])
        if events:
            connection.execute(sa.insert(stock_events), events)
        post(connection, list(locked.values()), posted, now)
        return len(posted), len(events)


def expire(sku: Sku, lot: Any) -> int:
    """What it has goes from one sum to the other -> the number of that movement."""
    if lot.recalled_us is None:
        sku.available -= lot.available
        sku.expired += lot.available
    return sku.moves()


def _expiring() -> sa.Select[tuple[int, int]]:
    return (
        sa.select(lots.c.id, lots.c.sku_id)
        .where(NOT_EXPIRED, lots.c.expires_us <= sa.bindparam("now"))
        .order_by(lots.c.expires_us)
        .limit(sa.bindparam("count", type_=sa.Integer))
        .offset(sa.literal_column("0"))
    )

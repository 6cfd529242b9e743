"""Forgetting finished orders after `--retain-days`, a little at a time beside the work on new ones.

    limit ----> events, oldest first: orders that are finished and older than the limit go, with
                all their events, in one transaction for some of them
           ---> sku after sku: the longest prefix of movements that no order stands for any more
                goes into its lots' opening balances, in one transaction under the sku's lock

Each transaction is complete in itself, so killed between two of them nothing is counted twice: what
is left is an order whole with its events, or movements of an order that is gone, which the audit
bears if they are older than `meta.forgotten_before`. That is written with the first order to go.

An order that is forgotten would be executed again if something still brought it. Three things can,
and each bounds the limit, by MARGIN_US for what clocks do:

- An item in a ring or a hand: it was accepted before it was committed, so no row younger than the
  oldest item's acceptance can be missed. Rings that are emptied into this one count, too.
- A record in a segment of the journal. A record is written when an order is accepted, which is
  before its commit, or for a repeat of it; and a repeat of one whose commit is older than
  REPEAT_JOURNALED_US gets none (ingest/accept.py). So the row of any record was committed not much
  more than that before the segment was made; what a stop wrote says when its oldest was accepted.
- A segment whose removal is not on disk may come back after a power loss. Therefore the directory
  is synced before it is looked at.

An event that an endpoint is still to be told of keeps its order, and what comes behind it; but not
for one that is disabled. The newest event of all keeps its order until there is a newer one. A dead
letter is never forgotten before somebody discarded it. After its time an id is unknown: the same
order again is a new one. Its old movements, if they are not folded yet, are told apart by age.
"""

from __future__ import annotations

import errno
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from pathlib import Path

import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.engine import Connection

from processors.datadir import attach_rings
from processors.deliveries import forget_deliveries, subjects_waiting_for, told_up_to
from processors.instants import now_us
from processors.journal import journal_dir
from processors.known import forget_before
from processors.moving import everything
from processors.requests import forget_requests
from processors.settings import Settings
from processors.statements import Hot
from processors.stock_events import forget_stock_events
from processors.store import Store, StoreBroken, StoreUnavailable
from processors.tables import NAMESAKE_US, lots, movements, orders, outbox, skus
from processors.webhooks import names_told
from ringbuf import RingError, Segment, SegmentError
from ringbuf.journal import NO_ROOM
from ringbuf.segment import segment_paths, sync_directory

DAY_US = 86_400_000_000
MARGIN_US = DAY_US
# Of a worker's time, and how much of that it may save up while it sleeps.
SHARE = 0.05
BURST_S = 0.025
# How long the write lock is held, about; steps grow and shrink to fit.
HOLD_S = 0.008
STEP_ROWS_MIN, STEP_ROWS_MAX = 8, 256
SKUS_AT_ONCE = 256
PREFIX_ROWS = 32
AGAIN_S = 3600.0
AWAY_S = 30.0

# What says nothing about the disk: no room, or a segment that was recycled.
PASSING = NO_ROOM | {errno.ENOENT}

OPENED = sa.func.coalesce(lots.c.opening, sa.literal_column("0", lots.c.opening.type))
FINISHED = sa.or_(
    orders.c.status.in_(("allocated", "rejected", "cancelled")),
    sa.and_(orders.c.status == "dead", orders.c.reason == "discarded"),
)
# Of this event the order stays: an emptied outbox would give out its numbers once more, and they
# would lie in front of what endpoints were told.
NEWEST = sa.select(outbox.c.order_id).where(
    outbox.c.id == sa.select(sa.func.max(outbox.c.id)).scalar_subquery()
)

log = logging.getLogger(__name__)

Now = Callable[[], int]
Oldest = Callable[[], int]


class Stride:
    """How many rows one transaction takes, so that it holds the write lock for about HOLD_S."""

    def __init__(self) -> None:
        self.rows = STEP_ROWS_MIN
        self.longest_s = 0.0

    def held(self, seconds: float) -> None:
        """After each transaction."""
        self.longest_s = max(self.longest_s, seconds)
        if seconds > HOLD_S:
            self.rows = max(STEP_ROWS_MIN, self.rows // 2)
        elif seconds < HOLD_S / 2:
            self.rows = min(STEP_ROWS_MAX, self.rows * 2)


class Pass(Struct):
    """Where one is. `limit_us`: what is older may go; `event`, `sku`: the last that was looked at;
    `foldable`: skus of which movements can go."""

    limit_us: int
    event: int = 0
    walked: bool = False
    sku: int = 0
    foldable: list[int] = []
    looked: bool = False
    requests_gone: bool = False
    delivery: int = 0
    deliveries_gone: bool = False
    stock_event: int = 0
    stock_events_gone: bool = False
    orders: int = 0
    movements: int = 0


class Retention:
    """Of one database; one process at a time suffices, two do no harm.

    `told_to`: endpoints that must have had an event before it goes. `oldest_us()`: since when, in
    microseconds since 1970, journal and rings hold something; it may raise OSError, SegmentError,
    RingError, then nothing goes now.
    """

    def __init__(
        self,
        store: Store,
        retain_days: int,
        oldest_us: Oldest,
        now: Now = now_us,
        told_to: Sequence[str] = (),
    ) -> None:
        self._store = store
        self._retain_days = retain_days
        self._oldest_us = oldest_us
        self._told_to = told_to
        self._now = now
        self._pass: Pass | None = None
        self._due = 0.0
        self._allowance_s = 0.0
        self._looked = time.monotonic()
        self.forgetting, self.folding = Stride(), Stride()
        self.removed = 0  # orders and movements, ever
        self._prefix = Hot(_prefix(), "sku_id", "folded", "count")
        self._open = Hot(
            sa.update(lots)
            .where(lots.c.id == sa.bindparam("number"))
            .values(opening=OPENED + sa.bindparam("delta", type_=lots.c.opening.type)),
            "delta",
            "number",
        )
        self._fold_to = Hot(
            sa.update(skus)
            .where(skus.c.id == sa.bindparam("number"))
            .values(folded=sa.bindparam("last", type_=skus.c.folded.type)),
            "last",
            "number",
        )
        self._drop = Hot(
            sa.delete(movements).where(
                movements.c.sku_id == sa.bindparam("number"),
                movements.c.seq > sa.bindparam("folded"),
                movements.c.seq <= sa.bindparam("last"),
            ),
            "number",
            "folded",
            "last",
        )

    def look(self) -> None:
        """As often as one likes: does what is due, in its share of the time. Raises StoreBroken."""
        now = time.monotonic()
        self._allowance_s = min(BURST_S, self._allowance_s + SHARE * (now - self._looked))
        self._looked = now
        while self._allowance_s > 0 and time.monotonic() >= self._due:
            begun = time.monotonic()
            try:
                if not self.step():
                    self._due = time.monotonic() + AGAIN_S
            except (StoreUnavailable, OSError, SegmentError, RingError) as error:
                if isinstance(error, OSError) and error.errno not in PASSING:
                    raise StoreBroken(f"the journal's directory: {error}") from error
                self._due = time.monotonic() + AWAY_S
                log.debug("nothing is forgotten now: %s", error)
            self.charge(time.monotonic() - begun)

    def charge(self, seconds: float) -> None:
        """Takes that much from what it may use: it was spent for it."""
        self._allowance_s -= seconds

    def step(self) -> bool:
        """One transaction at most -> whether more is to be done now. Raises StoreUnavailable,
        StoreBroken, and what `oldest_us` does; then the same step is next again."""
        one = self._pass
        if one is None:
            self._pass = Pass(self._limit_us())
        elif not one.walked:
            self._walk(one)
        elif one.foldable:
            self._fold(one)
        elif not one.looked:
            self._look_at_skus(one)
        elif not one.requests_gone:
            with self._writing(self.forgetting) as connection:
                rows = self.forgetting.rows
                one.requests_gone = forget_requests(connection, one.limit_us, rows) < rows
        elif not one.deliveries_gone:
            with self._writing(self.forgetting) as connection:
                rows = self.forgetting.rows
                last = forget_deliveries(connection, one.delivery, one.limit_us, rows)
            one.delivery, one.deliveries_gone = last or one.delivery, last is None
        elif not one.stock_events_gone:
            self._forget_stock_events(one)
        else:
            self._end(one)
            return False
        return True

    def _limit_us(self) -> int:
        wanted = self._now() - self._retain_days * DAY_US
        limit = min(wanted, self._oldest_us() - MARGIN_US)
        if limit < wanted:
            log.debug("kept longer than --retain-days, for the journal or a ring is older")
        return limit

    def _end(self, one: Pass) -> None:
        self._pass = None
        if one.orders or one.movements:
            log.info(
                "removed %d orders older than %d days (--retain-days); %d movements became opening "
                "balances", one.orders, self._retain_days, one.movements,
            )  # fmt: skip

    @contextmanager
    def _writing(self, stride: Stride) -> Iterator[Connection]:
        with self._store.writing() as connection:
            begun = time.monotonic()
            yield connection
        stride.held(time.monotonic() - begun)

    # ---- orders ------------------------------------------------------------------------------

    def _walk(self, one: Pass) -> None:
        """Looks at some events, the oldest first; they are in the order of commits."""
        rows = self.forgetting.rows
        with self._store.reading() as connection:
            told = told_up_to(connection, self._told_to)
            last = sys.maxsize if told is None else told.event
            events = connection.execute(
                sa.select(outbox.c.id, outbox.c.order_id, outbox.c.round, outbox.c.created_us)
                .where(outbox.c.id > one.event, outbox.c.id <= last)
                .order_by(outbox.c.id)
                .limit(rows)
            ).all()
            old = list(takewhile(lambda event: event.created_us < one.limit_us, events))
            first = {event.order_id: event.id for event in old if not event.round}
            ids = self._can_go(connection, list(first), one.limit_us) if first else []
            kept = subjects_waiting_for(connection, self._told_to, ids)
            if told is not None:
                kept |= _with_events_behind(connection, last, ids)
            newest = connection.scalar(NEWEST)
            ids = [order_id for order_id in ids if order_id not in kept and order_id != newest]
        if ids:
            self._forget(one, ids, [first[order_id] for order_id in ids])
        one.event = old[-1].id if old else one.event
        one.walked = len(old) < rows

    @staticmethod
    def _can_go(connection: Connection, ids: list[bytes], limit_us: int) -> list[bytes]:
        # A clock set back in a transaction: its movements would outlive what excuses them.
        late = sa.exists().where(movements.c.order_id == orders.c.id, movements.c.at_us >= limit_us)
        query = sa.select(orders.c.id).where(
            orders.c.id.in_(ids), FINISHED, orders.c.committed_us < limit_us, ~late
        )
        return list(connection.scalars(query))

    def _forget(self, one: Pass, ids: Sequence[bytes], events: Sequence[int]) -> None:
        """Whoever may go may go for good: nothing makes a finished order another one, but a cancel,
        which makes it younger."""
        with self._writing(self.forgetting) as connection:
            if not one.orders:
                forget_before(connection, one.limit_us)
            gone = connection.execute(
                sa.delete(orders).where(
                    orders.c.id.in_(ids), FINISHED, orders.c.committed_us < one.limit_us
                )
            ).rowcount
            if gone != len(ids):
                raise StoreUnavailable("an order that was to be forgotten has changed")
            connection.execute(sa.delete(outbox).where(outbox.c.id.in_(events)))
            replays = sa.delete(outbox).where(outbox.c.order_id.in_(ids), sa.text("round > 0"))
            connection.execute(replays)
        one.orders += gone
        self.removed += gone

    def _forget_stock_events(self, one: Pass) -> None:
        rows = self.forgetting.rows
        with self._writing(self.forgetting) as connection:
            told = told_up_to(connection, self._told_to)
            place = None if told is None else told.stock_event
            last, gone = forget_stock_events(connection, one.stock_event, place, one.limit_us, rows)
            if gone:
                forget_before(connection, one.limit_us)
        one.stock_event, one.stock_events_gone = last or one.stock_event, last is None

    # ---- movements -----------------------------------------------------------------------------

    def _look_at_skus(self, one: Pass) -> None:
        """Which of the next skus have a first movement that can go."""
        some = (
            sa.select(skus.c.id, skus.c.folded)
            .where(skus.c.id > one.sku)
            .order_by(skus.c.id)
            .limit(SKUS_AT_ONCE)
            .subquery()
        )
        first = sa.and_(movements.c.sku_id == some.c.id, movements.c.seq == some.c.folded + 1)
        with self._store.reading() as connection:
            rows = connection.execute(
                sa.select(some.c.id, movements.c.at_us, orders.c.accepted_us)
                .outerjoin(movements, first)
                .outerjoin(orders, orders.c.id == movements.c.order_id)
                .order_by(some.c.id)
            ).all()
        one.foldable = [
            row.id
            for row in rows
            if row.at_us is not None and _is_over(row.at_us, row.accepted_us, one.limit_us)
        ]
        one.sku = rows[-1].id if rows else one.sku
        one.looked = len(rows) < SKUS_AT_ONCE

    def _fold(self, one: Pass) -> None:
        with self._writing(self.folding) as connection:
            rows = self.folding.rows
            some = one.foldable[: max(1, rows // STEP_ROWS_MIN)]
            locked = connection.execute(
                sa.select(skus.c.id, skus.c.folded)
                .where(skus.c.id.in_(some))
                .order_by(skus.c.id)
                .with_for_update()
            ).all()
            done, folds = list[int](), list[Fold]()
            for sku_id, folded in locked:
                fold, whole = self._take(connection, sku_id, folded, one.limit_us, rows)
                folds.append(fold)
                rows -= fold.count
                if not whole:
                    break
                done.append(sku_id)
            self._write(connection, [fold for fold in folds if fold.count])
        one.foldable = [sku_id for sku_id in one.foldable if sku_id not in done]
        count = sum(fold.count for fold in folds)
        one.movements += count
        self.removed += count

    def _take(
        self, connection: Connection, sku_id: int, folded: int, limit_us: int, rows: int
    ) -> tuple[Fold, bool]:
        """-> what of a sku's movements goes, and whether that is all."""
        fold = Fold(sku_id, folded, folded, {})
        while fold.count < rows:
            count = min(PREFIX_ROWS, rows - fold.count)
            some = self._prefix.all(connection, (sku_id, fold.last, count))
            going = list(takewhile(lambda row: _is_over(row[3], row[4], limit_us), some))
            for seq, lot, delta, *_ in going:
                fold.last = seq
                fold.deltas[lot] = fold.deltas.get(lot, 0) + delta
                fold.count += 1
            if len(going) < count:
                return fold, True
        return fold, False

    def _write(self, connection: Connection, folds: Sequence[Fold]) -> None:
        self._open.many(
            connection, [(delta, lot) for fold in folds for lot, delta in fold.deltas.items()]
        )
        self._drop.many(connection, [(fold.sku_id, fold.folded, fold.last) for fold in folds])
        self._fold_to.many(connection, [(fold.last, fold.sku_id) for fold in folds])


class Fold(Struct):
    """The movements of a sku after `folded` up to `last`, added up by lot."""

    sku_id: int
    folded: int
    last: int
    deltas: dict[int, int]
    count: int = 0


def _with_events_behind(
    connection: Connection, place: int, order_ids: Sequence[bytes]
) -> set[bytes]:
    """Those of which an event is behind that place: of a replay, or a cancel."""
    query = sa.select(outbox.c.order_id).where(
        outbox.c.order_id.in_(order_ids), sa.text("round > 0"), outbox.c.id > place
    )
    return set(connection.scalars(query)) if order_ids else set()


def _prefix() -> sa.Select[tuple[int, int, int, int, int]]:
    """The next movements of a sku, each with when the order of its id was accepted."""
    return (
        sa.select(
            movements.c.seq,
            movements.c.lot,
            movements.c.delta,
            movements.c.at_us,
            orders.c.accepted_us,
        )
        .outerjoin(orders, orders.c.id == movements.c.order_id)
        .where(
            movements.c.sku_id == sa.bindparam("sku_id"), movements.c.seq > sa.bindparam("folded")
        )
        .order_by(movements.c.seq)
        .limit(sa.bindparam("count", type_=sa.Integer))
        .offset(sa.literal_column("0"))
    )


def _is_over(at_us: int, accepted_us: int | None, limit_us: int) -> bool:
    """Whether no order stands for a movement of before the limit; `accepted_us` is that of the
    order of its id, if there is one."""
    return at_us < limit_us and (accepted_us is None or accepted_us - at_us > NAMESAKE_US)


def make_retention(settings: Settings, store: Store) -> Retention | None:
    """None: orders are kept for ever."""
    if not settings.retain_days:
        return None
    told_to = names_told(settings.webhooks.endpoints)
    return Retention(store, settings.retain_days, lambda: oldest_us(settings), told_to=told_to)


def oldest_us(settings: Settings) -> int:
    """Since when the journal and the rings hold something, in microseconds since 1970; now, if they
    hold nothing. Goes with the flow: from a segment an item may come into a ring. Raises OSError,
    SegmentError, RingError."""
    oldest_ns = time.time_ns()
    directory = journal_dir(settings)
    if directory.is_dir():
        paths = segment_paths(directory)
        sync_directory(directory)
        oldest_ns = min([oldest_ns, *map(_made_ns, paths)])
    with ExitStack() as stack:
        for ring in [stack.enter_context(one) for one in attach_rings(settings)]:
            oldest_ns = min([oldest_ns, *(item.accepted_ns for item in everything(ring))])
    return oldest_ns // 1000


def _made_ns(path: Path) -> int:
    """Also of one that is sealed meanwhile."""
    try:
        segment = Segment.open(path)
    except FileNotFoundError:
        segment = Segment.open(path.with_suffix(".sealed"))
    with segment:
        return segment.header.made_ns

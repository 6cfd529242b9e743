"""BaconWorker: takes orders out of the ring and settles them, and the process that runs one.

A batch goes through these steps, and may be killed before and after each of them:

    take      the items lie in this worker's hand until they are released
    commit    ONE transaction: known orders are skipped, the others decided and recorded
    bump      whoever waits for outcomes looks again
    release   the items leave the hand, for good

Killed before the commit nothing has happened; killed after it, whoever gets the hand next finds the
ids in the database and only releases. So every accepted order takes effect exactly once.

When it goes wrong:

    the database is away or full         nobody's fault: the batch stays in hand, the same again
                                         after a pause that doubles up to BACKOFF_MAX_S
    ... or locked by others              the same again at once: the wait was the pause
    a write or sync of it failed         exit 4, and the ring is closed: see processors/doubt.py
    the processor raised, a batch        rolled back, its orders are run one by one
    ... on one order: Retry              stays in hand, others go on; the same again after a pause
                                         that doubles, up to `attempts` times, then dead
    ... on one order: anything else      dead with the traceback, in a transaction of its own
    a worker dies by itself, or takes    whoever gets the hand runs its orders one by one; one that
    too long (processors/patience.py)    ends its worker alone is tried `attempts` times, behind the
                                         others, then dead with how it ended
    an item is damaged                   read again from the journal
    ... that does not have it, or an     dead with its bytes
    item is unreadable
"""

from __future__ import annotations

import heapq
import logging
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress

import msgspec
from msgspec import Struct
from sqlalchemy.engine import Connection

from processors.child import Child, enter
from processors.doubt import give_up
from processors.expiring import Expirer
from processors.instants import now_us
from processors.jobs import (
    PROCESSOR_ERROR,
    RETRIES_EXHAUSTED,
    Death,
    Job,
    describe,
    read_doomed,
    read_job,
)
from processors.journal import journal_dir
from processors.mending import Mend, mender
from processors.patience import BATCH_SHARE, TAKEN_SHARE, TRIAL_SHARE, Alarm, Pace
from processors.pipeline import (
    Outcome,
    Processor,
    ProcessorError,
    Retry,
    Work,
    check_outcomes,
    load_processor,
)
from processors.recording import Known, Recorder, Settled
from processors.recycling import Recycler
from processors.retention import make_retention
from processors.schema import format_uuid
from processors.stop import Stop
from processors.store import (
    BUSY_TIMEOUT_S,
    Store,
    StoreBroken,
    StoreBusy,
    StoreError,
    StoreUnavailable,
)
from processors.tally import AWAY, COMMIT_ORDERS, COMMIT_US, QUEUE_US, WORD, Tally
from processors.upkeep import Upkeep
from ringbuf import Closed, Empty, HandFull, Item, Reader, Ring

log = logging.getLogger("rasher.worker")

# How long an idle worker sleeps at most before it looks whether it shall stop.
IDLE_S = 0.5
BACKOFF_MIN_S = 0.05
# What waited for a database goes on within 5 s of its being back.
BACKOFF_MAX_S = 4.5
RETRY_MAX_S = 60.0
# An order that ended its worker is tried again after this, doubled each time: others go first.
CRASH_PAUSE_S = 0.5
DOUBLINGS_MAX = 16
OUTAGE_LOGGED_EVERY_S = 30.0
EXIT_CANNOT_START = 3


class Stopping(Exception):
    """Asked to stop while the database is away: what is in hand stays there for the next worker."""


class Outage:
    """Tells of a database that is away: when it begins, now and then, and when it is over."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._told = 0.0

    def note(self, error: StoreUnavailable) -> None:
        """It is away."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        elif now - self._told < OUTAGE_LOGGED_EVERY_S:
            return
        self._told = now
        log.warning("%s; the batch stays in hand, trying again", error)

    def over(self) -> None:
        """It answers."""
        if self._since is not None:
            log.warning("the database is back after %.1f s", time.monotonic() - self._since)
            self._since = None


def pauses() -> Iterator[float]:
    """Seconds to wait after each failure, without end: doubled, capped, and spread, so that workers
    which failed together don't come back together."""
    pause_s = BACKOFF_MIN_S
    while True:
        yield pause_s * random.uniform(0.5, 1.0)
        pause_s = min(pause_s * 2, BACKOFF_MAX_S)


class Rules(Struct, frozen=True):
    """batch: most orders in one transaction; attempts: most tries of one that asks for more, and
    most workers that one may end."""

    batch: int = 64
    attempts: int = 3
    order_timeout_s: float = 30.0


class BaconWorker:
    """Works off hands of one ring. One thread; `stop` may be requested from anywhere."""

    def __init__(
        self,
        ring: Ring,
        store: Store,
        processor: Processor,
        rules: Rules,
        stop: Stop,
        *,
        tally: Tally | None = None,
        upkeep: Upkeep | None = None,
        mend: Mend | None = None,
        alarm: Alarm | None = None,
    ) -> None:
        self._ring = ring
        self._store = store
        self._processor = processor
        self._rules = rules
        self._stop = stop
        self._recorder = Recorder(ring.epoch)
        # (when, sequence, job): orders that asked to be tried later. They lie in a hand, so they
        # are never more than the hands have cells.
        self._later: list[tuple[float, int, Job]] = []
        self._outage = Outage()
        self.tally = tally or Tally()
        self._upkeep = upkeep or Upkeep(store)
        self._mend = mend or (lambda item: item)
        self._alarm = alarm
        self._pace = Pace(rules.order_timeout_s * TAKEN_SHARE)

    @property
    def redelivered(self) -> int:
        """Orders that came again after their commit; for a tally of its own, this worker's."""
        return self.tally.page[WORD["redelivered"]]

    def run(self, reader: Reader) -> None:
        """Takes and settles until the ring is closed and drained, or `stop` is requested; what an
        owner of that hand before left in it goes first, as in `adopt`."""
        self.adopt(reader)
        with suppress(Stopping):
            while not self._stop.requested:
                try:
                    items = reader.take(self._pace.most(self._rules.batch), self._patience_s())
                except Empty:
                    items = []
                except (Closed, HandFull) as end:
                    if isinstance(end, Closed) and not self._later:
                        return
                    items = []
                    self._stop.wait(self._patience_s())
                self._settle_items(reader, items)
                self._settle_due()
                self._upkeep.look()

    def adopt(self, reader: Reader) -> None:
        """Settles what lies in a hand whose owner is gone, one by one, for one of them may have
        been its end; takes nothing new into it.

        Orders that are to be tried again stay in it for `run`, so leave the reader open.
        """
        left = len(reader.held())
        # While a hand has items that nobody was given, a take returns those and no others.
        items = reader.take(left, 0) if left else []
        with suppress(Stopping):
            for item in sorted(items, key=self._turn):
                if self._stop.requested:
                    return
                self._settle_left(reader, item)

    def _turn(self, item: Item) -> tuple[bool, int, int, int]:
        """Those that are lost cost nothing, those that nothing speaks against go next."""
        return item.crashes < self._rules.attempts, item.crashes, item.slow, item.sequence

    def _settle_left(self, reader: Reader, item: Item) -> None:
        trial = not (item.crashes or item.slow)
        reader.begin(item, trial)  # reading it may be what ends a worker
        if item.crashes >= self._rules.attempts:
            note = self._ring.note(reader.index)
            bare = item.crashes > self._rules.attempts
            self._settle([read_doomed(reader, self._mended(item), now_us(), note, bare=bare)])
            return
        job = read_job(reader, self._mended(item), now_us())
        job.suspect = True
        if item.crashes:
            reader.begin(None)
            self._try_later(job, CRASH_PAUSE_S * 2 ** min(item.crashes - 1, DOUBLINGS_MAX))
            return
        self._settle([job], trial=trial)

    def work_off(self, reader: Reader) -> None:
        """Settles what lies in that hand, retries included, or until `stop` is requested."""
        self.adopt(reader)
        with suppress(Stopping):
            while self._later and not self._stop.wait(self._patience_s()):
                self._settle_due()

    def _patience_s(self) -> float:
        if not self._later:
            return IDLE_S
        return min(IDLE_S, max(0.0, self._later[0][0] - time.monotonic()))

    def _settle_items(self, reader: Reader, items: Sequence[Item]) -> None:
        if items:
            taken_us = now_us()
            self._settle([read_job(reader, self._mended(item), taken_us) for item in items])

    def _mended(self, item: Item) -> Item:
        return self._mend(item) if item.damaged else item

    def _settle_due(self) -> None:
        now = time.monotonic()
        while self._later and self._later[0][0] <= now and not self._stop.requested:
            self._settle([heapq.heappop(self._later)[2]])

    def _settle(self, jobs: list[Job], *, trial: bool = False) -> None:
        """Commits jobs of one hand together, or finds out whose fault it is that they can't be.

        trial: of a job alone, others wait behind it.
        """
        try:
            if len(jobs) == 1:
                self._commit_alone(jobs[0], trial)
            else:
                self._commit(jobs, BATCH_SHARE)
        except (Stopping, StoreError):
            raise  # neither is an order's fault
        except Exception as error:
            if len(jobs) == 1:
                self._blame(jobs[0], error)
                return
            log.warning("a batch of %d failed, one by one now: %r", len(jobs), error)
            for job in jobs:
                self._settle([job], trial=True)

    def _commit_alone(self, job: Job, trial: bool) -> None:
        job.reader.begin(job.item, trial)
        share = TRIAL_SHARE if trial else 1
        try:
            if job.suspect and job.work is not None and job.death is None:
                self._rehearse(job, job.work, share)
            self._commit([job], share)
        except Exception:
            job.reader.begin(None)
            raise
        except BaseException as error:
            if self._alarm is not None:
                self._alarm.tell(error)
            raise

    def _rehearse(self, job: Job, work: Work, share: float) -> None:
        """Runs the processor to no effect, and without the lock that SQLite has only one of: an
        order that hangs now holds up nobody. What it raises counts."""
        with suppress(StoreUnavailable), self._store.rehearsing() as transaction:
            if self._fresh(transaction, [job]):
                self._process(transaction, [work], share)

    def _commit(self, jobs: list[Job], share: float) -> None:
        for pause_s in pauses():
            begun_ns = time.perf_counter_ns()
            try:
                settled = self._store.commit(self._decide, jobs, share)
                break
            except StoreUnavailable as error:
                self._outage.note(error)
                self.tally.page[AWAY] = 1
                # A try that waited for an answer has been a pause itself.
                tried_s = (time.perf_counter_ns() - begun_ns) / 1e9
                busy = isinstance(error, StoreBusy)
                if self._stop.wait(0 if busy else max(0.0, pause_s - tried_s)):
                    raise Stopping from error
        self._outage.over()
        self.tally.page[AWAY] = 0
        self._ring.bump_commits()
        jobs[0].reader.release([job.item for job in jobs])
        self._count(settled, len(jobs), time.perf_counter_ns() - begun_ns)
        self._upkeep.committed(len(jobs))

    def _count(self, settled: list[Settled], jobs: int, duration_ns: int) -> None:
        """After the release, so that nobody waits for it; killed before, a batch is not counted."""
        tally = self.tally
        for job, outcome in settled:
            tally.count("dead" if outcome is None else outcome.status)
            tally.observe(QUEUE_US, job.taken_us - job.item.accepted_ns // 1000)
        tally.count("redelivered", jobs - len(settled))
        tally.observe(COMMIT_US, duration_ns // 1000)
        tally.observe(COMMIT_ORDERS, jobs)

    def _decide(self, transaction: Connection, jobs: list[Job], share: float) -> list[Settled]:
        """Everything that a transaction does. Returns those that had no outcome yet, with it."""
        fresh = self._fresh(transaction, jobs)
        works = [job.work for job in fresh if job.work is not None and job.death is None]
        outcomes = self._process(transaction, works, share) if works else []
        check_outcomes(outcomes, works)
        decided = iter(outcomes)
        settled: list[Settled] = [(job, None if job.death else next(decided)) for job in fresh]
        self._recorder.record(transaction, settled)
        return settled

    def _process(
        self, transaction: Connection, works: list[Work], share: float
    ) -> Sequence[Outcome]:
        """The processor's outcomes, or the end of this process after that share of the time."""
        begun = time.monotonic()
        if self._alarm is not None:
            self._alarm.arm(share * self._rules.order_timeout_s)
        try:
            # Now, that is under the write lock: nobody commits an earlier moment after this one.
            return self._processor(transaction, works, now_us())
        finally:
            if self._alarm is not None:
                self._alarm.disarm()
            self._pace.note(len(works), time.monotonic() - begun)

    def _fresh(self, transaction: Connection, jobs: list[Job]) -> list[Job]:
        """Those without an outcome; of one id that came twice the first. A replay counts only over
        the row that is dead with the round before."""
        seen = self._recorder.known(transaction, [job.item.key for job in jobs])
        fresh = []
        for job in jobs:
            known = seen.get(job.item.key)
            if follows(job.item, known):
                seen[job.item.key] = Known(job.body_hash, job.item.round, "")
                fresh.append(job)
            elif known is None:
                log.warning(
                    "order %s was let go before its replay",
                    format_uuid(job.item.key),
                    extra=job.about,
                )
            elif known.body_hash not in (None, job.body_hash):
                # Two fronts took the id at the same instant, before either could see the other's.
                order_id = format_uuid(job.item.key)
                log.warning(
                    "order %s came twice with different content: the first counts",
                    order_id,
                    extra=job.about,
                )
        return fresh

    def _blame(self, job: Job, error: Exception) -> None:
        if job.death is not None and job.death.bare:
            # Not even its bytes can be stored. It is kept, others go on.
            order_id = format_uuid(job.item.key)
            log.error("order %s can't be stored: %r", order_id, error, extra=job.about)
            self._try_later(job, BACKOFF_MAX_S)
            return
        if job.death is not None:
            job.death = msgspec.structs.replace(job.death, bare=True)
        elif isinstance(error, Retry) and job.retries + 1 < self._rules.attempts:
            job.again()
            self._try_later(job, error.after_s * 2 ** min(job.retries - 1, DOUBLINGS_MAX))
            return
        else:
            reason = RETRIES_EXHAUSTED if isinstance(error, Retry) else PROCESSOR_ERROR
            job.death = Death(reason, describe(error))
            order_id = format_uuid(job.item.key)
            log.error("order %s is dead, %s: %r", order_id, reason, error, extra=job.about)
        self._settle([job])

    def _try_later(self, job: Job, after_s: float) -> None:
        due = time.monotonic() + min(after_s, RETRY_MAX_S) * random.uniform(1.0, 1.1)
        heapq.heappush(self._later, (due, job.item.sequence, job))


def follows(item: Item, known: Known | None) -> bool:
    """Whether an item is to be settled: an order that is new, or the replay of a dead letter."""
    if not item.round:
        return known is None
    return known is not None and known.status == "dead" and known.round == item.round - 1


def serve(child: Child, stop: Stop) -> None:
    """The work of one worker process, until it is done or asked to stop."""
    with ExitStack() as readers:
        try:
            _serve(child, stop, readers)
        except StoreBroken as error:  # before anything is closed, which would write and sync again
            give_up(child.ring, error)


def _serve(child: Child, stop: Stop, readers: ExitStack) -> None:
    work = child.launch.settings.work
    # A lock that is waited for within a processor must not pass for an order that takes too long.
    busy_s = min(BUSY_TIMEOUT_S, work.order_timeout_s * TAKEN_SHARE)
    store = Store.open(child.launch.settings.database, busy_timeout_s=busy_s, connections_max=1)
    rules = Rules(work.batch, work.attempts, work.order_timeout_s)
    processor = load_processor(work.processor)
    readers.callback(store.close)
    adopt = child.wait_turn(stop)
    if adopt is None:
        return
    own = readers.enter_context(child.ring.reader(child.launch.index))
    tally = child.tally("reader", own.index)
    upkeep = own_upkeep(child, store)
    worker = BaconWorker(
        child.ring, store, processor, rules, stop, tally=tally, upkeep=upkeep,
        mend=mender(journal_dir(child.launch.settings), child.ring.epoch, stop),
        alarm=Alarm(child.launch.words_fd),
    )  # fmt: skip
    child.ready()
    if child.launch.work_off:
        worker.work_off(own)
        return
    for index in adopt:
        left = readers.enter_context(child.ring.reader(index))
        worker.adopt(left)
        if not left.held():
            left.close()
    worker.run(own)


def own_upkeep(child: Child, store: Store) -> Upkeep:
    """One worker tidies up for all, the first: there is always one of that index."""
    settings = child.launch.settings
    if child.launch.index:
        return Upkeep(store)
    recycler = Recycler(journal_dir(settings), store)
    return Upkeep(
        store, recycler, make_retention(settings, store), Expirer(store, child.ring.bump_commits)
    )


def main(argv: Sequence[str]) -> int:
    """`python -m processors.worker --launch-fd N`: exit 0 when done or stopped by TERM."""
    child = enter(argv)
    with Stop() as stop:
        signal.signal(signal.SIGTERM, stop.request)
        child.watch_parent()
        try:
            serve(child, stop)
        except (ProcessorError, StoreError) as error:
            log.error("can't start: %s", error)
            return EXIT_CANNOT_START
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))

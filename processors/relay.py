"""The relay: tells endpoints of what was committed, in a process of its own, beside the work.

For each endpoint one task goes round and round:

    read      what is to be tried again by now, and what is behind its cursor, ROUND at most, up to
              ROUND_MAX for who takes it all in ROUND_S
    send      AT_ONCE at a time, those of one subject one after the other
    record    what became of them, and the cursor, in one transaction

and sleeps when there is nothing, until a commit, or until something is due. Rounds of several
endpoints are recorded together (processors/recorder.py): a transaction is what costs the workers
most (processors/relay_access.py).

Killed anywhere: what was sent and not recorded is sent again with the same id. Asked to stop: what
is under way is given its time, the rest is told by the next start.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby, takewhile
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from processors import deliveries
from processors.attempts import (
    AT_ONCE,
    GIVE_UP_S,
    Attempt,
    Breaker,
    Outcome,
    Patience,
    Sender,
    pause_s,
)
from processors.commits import Commits, happened
from processors.deliveries import Due, Ended, Standing, Told
from processors.events import Event, Place
from processors.instants import now_us
from processors.outbox import bodies_of, events_behind
from processors.places import End
from processors.recorder import Recorder
from processors.relay_access import Access
from processors.restraint import Restraint
from processors.store import Store, StoreUnavailable
from processors.webhooks import Endpoint, shown_url
from ringbuf import Ring

log = logging.getLogger("rasher.relay")

ROUND, ROUND_MAX, ROUND_S = 64, 256, 1.0
# A commit is waited for that long; a worker that died may not have said that it committed.
LOOK_S = 5.0
# Somebody was writing, who ends with a commit or without.
UNSURE_S = 0.25
# Where a new endpoint begins, while others are writing.
ASK_S = 0.1
# When it is asked to stop, what is under way has so long.
HURRY_S = 1.0
# The cursor is written with what was told, and when so much of the outbox was passed over.
PASSED_MAX = 4096
# Whether an endpoint was enabled meanwhile, and after the database was away.
AGAIN_S = 5.0
SECOND_US = 1_000_000
NOT_SENT = f"not sent: the endpoint has failed for {GIVE_UP_S // 3600} h"

T = TypeVar("T")


class Item(Struct, frozen=True):
    """An event that is to be told now; `due`: its row, None when it comes from the outbox."""

    event: Event
    due: Due | None = None


class Round(Struct, frozen=True):
    """What is to be told next; `place`: how far it was looked; `blocked`: subjects of which
    something waits that is not in here; `seen`: the count of commits before it was read."""

    items: list[Item]
    bodies: dict[bytes, bytes]
    place: Place
    blocked: set[bytes]
    seen: int


class Relay:
    """Of one database, one at a time. `counted`: is called with the outcome of each attempt;
    `access`: the way to the database, if not in threads of this niceness; `restraint`: how it
    leaves the cores to others, None: it does not."""

    def __init__(
        self,
        store: Store,
        ring: Ring,
        wanted: Sequence[Endpoint],
        counted: Callable[[Outcome], object] = lambda _: None,
        *,
        access: Access | None = None,
        restraint: Restraint | None = None,
    ) -> None:
        self.store = store
        self.access = access or Access(store)
        self._restraint = restraint
        self.ring = ring
        self.counted = counted
        self._wanted = wanted
        self._stop = asyncio.Event()
        self.patience = Patience()
        self.recorder = Recorder(self.access, self._stop)
        self._commits = Commits(ring)
        self._asking = asyncio.Lock()
        self._end = End(store)
        self._known = Place(0, 0)
        self._known_at: int | None = None  # the count of commits when it was all there was to know

    def stop(self) -> None:
        """No more is begun, and what is under way ends soon."""
        self._stop.set()
        self.patience.hurry(HURRY_S)
        self._commits.end()

    async def run(self, ready: Callable[[], object] = lambda: None) -> None:
        """Until it is stopped. Raises StoreBroken, StoreError."""
        standings = await self._enlist()
        if standings is None:
            return
        context = _context(self._wanted)
        couriers = [
            Courier(self, one, standings[one.name], Sender(one, context, self.patience))
            for one in self._wanted
            if not one.disabled
        ]
        ready()
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._commits.watch())
            recording = group.create_task(self.recorder.run())
            going = [group.create_task(one.run()) for one in couriers]
            await asyncio.wait({*going, watching})
            for task in going:
                await task
            recording.cancel()

    async def _enlist(self) -> dict[str, Standing] | None:
        while not self.stopping:
            try:
                end = await self.access.ask(self._end.ask)
                if end is not None:
                    return await self.access.write(
                        partial(deliveries.enlist, wanted=self._wanted, end=end)
                    )
                await self.sleep(ASK_S)
            except StoreUnavailable as error:
                log.warning("%s; trying again", error)
                await self.sleep(AGAIN_S)
        return None

    @property
    def stopping(self) -> bool:
        """Nothing more is to be begun."""
        return self._stop.is_set()

    async def end(self) -> tuple[Place, int]:
        """How far may be told, and of which count of commits that is. Raises StoreUnavailable."""
        async with self._asking:  # once for all who ask
            commits = self.ring.commits
            if commits != self._known_at:
                found = await self.access.ask(self._end.ask)
                self._known = Place(*map(max, found or self._known, self._known))
                self._known_at = commits if self._end.sure else None
            return self._known, commits

    @property
    def look_s(self) -> float:
        """How long a commit is waited for before the end is asked for anew."""
        return LOOK_S if self._end.sure else UNSURE_S

    def forget_end(self) -> None:
        """It is asked for anew, for a commit may not have been counted."""
        self._known_at = None

    async def give_way(self) -> None:
        """To whoever wants the cores, before a round and before each attempt."""
        if self._restraint is not None:
            await self._restraint.give_way(self.sleep)

    async def sleep(self, seconds: float) -> None:
        """That long, or until it is stopped."""
        await happened(self._stop, seconds)

    async def changed(self, seen: int, seconds: float) -> None:
        """Until more was committed than those or it is stopped, that long at most."""
        if not self.stopping:
            await self._commits.changed(seen, seconds)


class Courier:
    """Tells one endpoint."""

    def __init__(
        self, relay: Relay, endpoint: Endpoint, standing: Standing, sender: Sender
    ) -> None:
        self._relay = relay
        self._endpoint = endpoint
        self._place = self._recorded = standing.place
        self._disabled = standing.disabled_us is not None
        self._sender = sender
        self._breaker = Breaker(standing.failing_us / SECOND_US)
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._newest = True  # is what the next probe is
        self._round = ROUND

    async def run(self) -> None:
        """Until the relay is stopped."""
        try:
            while not self._relay.stopping:
                try:
                    await self._go_on()
                except StoreUnavailable as error:
                    log.debug("%s: %s", self._endpoint.name, error)
                    await self._relay.sleep(AGAIN_S)
            if self._place != self._recorded:
                with suppress(StoreUnavailable):
                    await self._record([])
        finally:
            await self._sender.close()

    async def _go_on(self) -> None:
        if self._disabled:
            await self._relay.sleep(AGAIN_S)
            await self._look_whether_enabled()
            return
        if self._breaker.tripped and await self._give_up_old():
            return
        left_s = self._breaker.left_s(time.monotonic())
        if left_s:
            await self._relay.sleep(left_s)
            return
        await self._relay.give_way()
        # No more than half, so that what is tried again keeps nothing new waiting.
        count = self._round
        one = await (self._probe() if self._breaker.tripped else self._read(count // 2, count))
        if one.items:
            await self._tell(one)
            return
        passed, self._place = one.place != self._place, one.place
        if self._place.past(self._recorded) > (PASSED_MAX if passed else 0):
            await self._record([])
        if not passed:
            await self._rest(one.seen)

    async def _probe(self) -> Round:
        """One message, by turns something new and something that failed before: that may be all
        that the endpoint can't take."""
        one = await self._read(0 if self._newest else 1, 1)
        if self._newest and not one.items and one.place == self._place:
            one = await self._read(1, 1)
        self._newest ^= bool(one.items)
        return one

    async def _give_up_old(self) -> bool:
        """What is behind the cursor while nothing is sent is not kept for ever. Age alone is no
        reason: nobody may have tried to tell of it, for this process or the endpoint was away."""
        if self._breaker.failing_s(time.monotonic()) < GIVE_UP_S:
            return False
        one = await self._read(0, ROUND)
        oldest_us = now_us() - GIVE_UP_S * SECOND_US
        new = [item.event for item in one.items if item.due is None]
        old = [
            event
            for some in ([e for e in new if e.of_stock], [e for e in new if not e.of_stock])
            for event in takewhile(lambda event: event.created_us < oldest_us, some)
        ]
        if not old:
            return False
        self._place = self._place.behind(old)
        await self._record([Ended(event, "failed", error=NOT_SENT) for event in old])
        return True

    async def _look_whether_enabled(self) -> None:
        standing = await self._ask(lambda: _standing(self._relay.store, self._endpoint.name))
        if standing is not None and standing.disabled_us is None:
            self._disabled = False
            self._breaker = Breaker()
            log.info("webhook %s is enabled again", self._endpoint.name)

    async def _rest(self, seen: int) -> None:
        """Until something more was committed, or is due."""
        due_us = await self._ask(lambda: _next_due_us(self._relay.store, self._endpoint.name))
        seconds = self._relay.look_s
        if due_us is not None:
            seconds = min(seconds, (due_us - now_us()) / SECOND_US)
        await self._relay.changed(seen, max(0.0, seconds))
        self._relay.forget_end()

    async def _ask(self, question: Callable[[], T]) -> T:
        return await self._relay.access.ask(question)

    # ---- read ------------------------------------------------------------------------------------

    async def _read(self, again: int, count: int) -> Round:
        """So many in all, of which so many are to be tried again, at most."""
        end, seen = await self._relay.end()
        return await self._ask(lambda: self._read_round(again, count, end, seen))

    def _read_round(self, again: int, count: int, end: Place, seen: int) -> Round:
        name = self._endpoint.name
        with self._relay.store.reading() as connection:
            due = deliveries.due_of(connection, name, now_us(), again)
            found = events_behind(connection, self._place, end, count - len(due))
            place = self._place.behind(found)
            new = [one for one in found if self._endpoint.wants(one.type)]
            new = deliveries.not_told(connection, name, new) if new else []
            subjects, rows = {one.subject for one in new}, [one.row for one in due]
            waiting = deliveries.subjects_waiting(connection, name, list(subjects), rows)
            items = [Item(one.event, one) for one in due] + [Item(one) for one in new]
            bodies = bodies_of(connection, [one.event for one in items]) if items else {}
        return Round(items, bodies, place, waiting, seen)

    # ---- send ------------------------------------------------------------------------------------

    async def _tell(self, one: Round) -> None:
        by_subject = groupby(
            sorted(one.items, key=lambda item: item.event.subject),
            key=lambda item: item.event.subject,
        )
        chains = [list(items) for _, items in by_subject]
        begun_s = time.monotonic()
        ended = await asyncio.gather(*(self._tell_chain(chain, one) for chain in chains))
        # In the order of the outbox, so that rows of one subject are, too.
        all_ended = sorted(
            (each for some in ended for each in some), key=lambda each: each.event.place
        )
        quick = time.monotonic() - begun_s < ROUND_S
        taken = quick and all(each.state == "delivered" for each in all_ended)
        self._round = min(2 * self._round, ROUND_MAX) if taken else ROUND
        self._place = one.place
        await self._record(all_ended)

    async def _record(self, ended: Sequence[Ended]) -> None:
        disabled = "it answered 410" if self._disabled else None
        failing_us = int(self._breaker.failing_s(time.monotonic()) * SECOND_US)
        told = Told(self._endpoint.name, ended, self._place, disabled, failing_us)
        try:
            await self._relay.recorder.record(told)
        except StoreUnavailable:
            self._place = self._recorded
            raise
        self._recorded = self._place

    async def _tell_chain(self, chain: Sequence[Item], one: Round) -> list[Ended]:
        """The events of one subject, until one is not delivered: the others wait behind it."""
        ended: list[Ended] = []
        free, blocked = True, chain[0].event.subject in one.blocked
        for item in chain:
            if not free or (blocked and item.due is None):
                ended += self._waits_behind(item)
                continue
            body = one.bodies.get(item.event.id)
            if body is None:
                gone = _untried(item, "failed")
                ended.append(replace(gone, error="it is not kept any more"))
                continue
            last = await self._attempt(item, body)
            ended.append(last)
            free = last.state != "waiting"
        return ended

    @staticmethod
    def _waits_behind(item: Item) -> Iterable[Ended]:
        return [] if item.due else [Ended(item.event, "waiting")]

    async def _attempt(self, item: Item, body: bytes) -> Ended:
        async with self._at_once:
            await self._relay.give_way()
            if self._disabled or self._breaker.left_s(time.monotonic()) or self._relay.stopping:
                # Not sent, so it costs no attempt: as soon as it may.
                return replace(_untried(item, "waiting"), next_us=now_us())
            attempt = await self._sender.send(item.event.id, body)
        self._note(attempt)
        return judged(item, attempt)

    def _note(self, attempt: Attempt) -> None:
        if attempt.verdict == "cut":
            return
        self._relay.counted(attempt.outcome)
        was = self._breaker.tripped
        self._breaker.note(time.monotonic(), delivered=attempt.verdict == "delivered")
        if attempt.verdict == "gone" and not self._disabled:
            self._disabled = True
            log.warning("webhook %s answered 410: it is disabled", self._endpoint.name)
        elif self._breaker.tripped != was:
            url = shown_url(self._endpoint.url)
            if was:
                log.warning("webhook %s: %s takes messages again", self._endpoint.name, url)
            else:
                text = "webhook %s: %s fails again and again (%s): one message now and then"
                log.warning(text, self._endpoint.name, url, attempt.error)


def _context(wanted: Iterable[Endpoint]) -> ssl.SSLContext:
    """Of all connections. Reading the authorities takes longer than all else of a start."""
    if any(one.url.startswith("https:") for one in wanted):
        return ssl.create_default_context()
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def judged(item: Item, attempt: Attempt) -> Ended:
    """What an attempt means for its event."""
    now = now_us()
    if attempt.verdict == "cut":
        return replace(_untried(item, "waiting"), next_us=now)
    attempts = 1 + (item.due.attempts if item.due else 0)
    first = (item.due.first_us if item.due else None) or now
    ended = replace(
        _untried(item, "delivered"),
        attempts=attempts,
        first_us=first,
        status=attempt.status,
        error=attempt.error,
    )
    if attempt.verdict == "delivered":
        return ended
    after_s = 0.0 if attempt.verdict == "gone" else pause_s(attempts, attempt.after_s)
    next_us = now + int(after_s * SECOND_US)
    if next_us - first > GIVE_UP_S * SECOND_US:
        return replace(ended, state="failed")
    return replace(ended, state="waiting", next_us=next_us)


def _untried(item: Item, state: deliveries.State) -> Ended:
    """As it was before."""
    if item.due is None:
        return Ended(item.event, state)
    return Ended(item.event, state, item.due.row, item.due.attempts, item.due.first_us)


def _standing(store: Store, name: str) -> Standing | None:
    with store.reading() as connection:
        return deliveries.standings(connection).get(name)


def _next_due_us(store: Store, name: str) -> int | None:
    with store.reading() as connection:
        return deliveries.next_due_us(connection, name)

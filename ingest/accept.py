"""Taking an order in: the one path from a request body to an answer.

`Acceptor.accept` is synchronous and never suspends: it gives the final answer, or a `Pending` when
the order has to wait (full ring) or has to be compared with an earlier one of the same id.
`Acceptor.finish` does the rest. Both are independent of Starlette and of tasks, so that they can
be called from inside a parser's callback.

    body -> decode -> own id? --no--> try_put --room--> 202
                        |                |full
                       yes               v
                        |             finish: put_async, first come first served -> 202 | 503
                        v
               finish: ring, hands, database: an earlier one? -> 202 replayed | 422 | put_async

With a journal there is no 202 before the order is on disk, and no slot before there is room there:

    room in the journal? --no--> finish: wait for it while it is made -> 503 when it can't be
       | yes
    try_put, append -> Unsynced -> the group is on disk -> `acknowledge` -> 202

After the slot there is no 503: it would say that the order was not taken. When the disk fails then
the process ends without an answer. A repeat is answered after a record of its own, for that of the
first may not be on disk yet, unless the first was committed long ago.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TypeAlias, TypeVar

import msgspec
from msgspec import Struct

from ingest.answers import (
    CLOSE,
    REPLAYED,
    Answer,
    Queued,
    Refused,
    Unanswered,
    Unsynced,
    invalid,
    order_answer,
    problem,
    unavailable,
)
from ingest.claims import Claims
from ingest.drain import DrainMeter
from ingest.ending import Ending
from ingest.idempotency import derived_id
from ingest.ids import OrderIds
from ingest.lookup import Earlier
from ingest.origin import NOBODY, Origin
from ingest.problems import (
    DRAINING,
    ID_TAKEN,
    JOURNAL_FULL,
    KEY_NAMES_ANOTHER_ID,
    MALFORMED,
    ORDER_TOO_LARGE,
    RECOVERING,
    RING_FULL,
)
from ingest.turns import Turns
from processors.dead_letters import Revival
from processors.instants import now_us
from processors.orders import REPEAT_JOURNALED_US
from processors.schema import (
    Invalid,
    Malformed,
    RecordHeader,
    body_hash,
    decode_order,
    encode_header,
    encode_order,
    format_uuid,
    posted_hash,
)
from processors.tally import PARKED, Tally
from ringbuf import Closed, Found, Journal, Ring, RoomGone, Writer
from ringbuf.segment import RECORD, encode_record

DRAINING_RETRY_AFTER_S = 1
NO_ROOM_RETRY_AFTER_S = 2
# Of a record whose order is in no slot any more: the place of one in the ring says which it is.
NO_SEQUENCE = 2**62
# Longer than the database's lock is waited for.
COMPARE_S_MAX = 10.0

T = TypeVar("T")


class Pending(Struct, frozen=True):
    """A good order that has no answer yet. `own_id`: it may have come before under this id;
    `begun_ns`: when its request was whole, of time.perf_counter_ns; `round`: how often it was
    replayed."""

    key: bytes
    payload: bytes
    header: bytes
    digest: bytes
    own_id: bool
    begun_ns: int
    round: int = 0


Accepted: TypeAlias = Answer | Queued | Unsynced | Pending
# The answer once its order is on disk; None: there is none to be given.
Waiting: TypeAlias = "asyncio.Future[Answer | None]"


class Acceptor:
    """Takes orders in for one front.

    `find_stored` asks the database for an order of that id, off the event loop; it raises
    Refused when the database can't be asked.
    """

    def __init__(
        self,
        ring: Ring,
        writer: Writer,
        find_stored: Callable[[bytes], Awaitable[Earlier | None]],
        full_timeout_s: float,
        *,
        new_id: Callable[[], bytes] | None = None,
        tally: Tally | None = None,
        journal: Journal | None = None,
        claims: Claims | None = None,
    ) -> None:
        self._ring = ring
        self._claims = self.claims = claims
        self.journal = journal
        # Refuses everything while the orders of before a power loss are put back.
        self.recovering = False
        self._mapping, self._room = ring.mapping, ring.room
        self._writer = self.writer = writer
        self.ending = Ending()
        self._find_stored = find_stored
        self._full_timeout_s = full_timeout_s
        self._new_id = new_id or OrderIds()
        self.tally = tally or Tally()
        self.tally.page[PARKED] = 0  # the page may be that of a front that was killed
        self._turns = self.turns = Turns()
        self.meter = DrainMeter(lambda: ring.head)

    @property
    def trouble(self) -> str | None:
        """What keeps the journal from growing."""
        return None if self.journal is None else self.journal.trouble

    def refusal(self) -> Answer | None:
        """The answer to whatever may be ordered now; None: that depends on the order."""
        if self._ring.closed:
            return draining()
        if self.recovering:
            return recovering()
        if self.journal is None or self.trouble is None or self.journal.has_room(RECORD.size):
            return None
        return no_room(self.trouble)

    @property
    def parked(self) -> int:
        """Orders that wait for room in the ring."""
        return self._writer.parked

    def accept(
        self, body: bytes, origin: Origin = NOBODY, idempotency_key: bytes | None = None
    ) -> Accepted:
        """The answer to a posted order, or what `finish` or `after_sync` needs to find it; never
        suspends."""
        begun_ns = time.perf_counter_ns()
        if self.recovering:
            self.tally.count("journal")
            return recovering()
        try:
            order_id, order = decode_order(body)
        except (Malformed, Invalid) as error:
            return self.not_an_order(error)
        payload = encode_order(order)
        if idempotency_key is not None:
            derived = derived_id(origin.owner, idempotency_key)
            if order_id not in (None, derived):
                self.tally.count("conflict")
                return other_id(derived)
            order_id = derived
        if order_id is not None:
            return self.to_compare(order_id, payload, begun_ns, origin)
        if len(payload) + len(origin.header) > self._room:
            return self.too_large(len(payload) + len(origin.header))
        return self._try(self._new_id(), payload, begun_ns, origin.header)

    def _try(self, key: bytes, payload: bytes, begun_ns: int, header: bytes) -> Accepted:
        journal = self.journal
        size = RECORD.size + len(header) + len(payload)
        if journal is not None and not journal.has_room(size):
            return Pending(key, payload, header, b"", False, begun_ns)
        try:
            sequence = self._writer.try_put(payload, key, header)
        except Closed:
            self.tally.count("draining")
            return draining()
        if sequence is None:
            return Pending(key, payload, header, b"", False, begun_ns)
        if journal is None:
            return self._accepted(key, sequence, begun_ns)
        record = encode_record(key, payload, header, sequence=sequence, accepted_ns=time.time_ns())
        journal.append(record)
        return Unsynced(key, self._position(sequence), begun_ns)

    def after_sync(self, callback: Callable[[], None]) -> None:
        """Calls it when the order that is Unsynced is on disk. In the step of its accept."""
        assert self.journal is not None
        self.journal.after_sync(callback)

    def acknowledge(self, unsynced: Unsynced) -> Queued | None:
        """The answer to an order that is on disk now. None: there is none to be given, and the
        connection ends. Another process is not sure of what is on disk, or the ring is lost; all
        end."""
        self.tally.accepted(unsynced.begun_ns)
        return None if self._ring.closed else Queued(unsynced.key, unsynced.position)

    async def acknowledged(self, unsynced: Unsynced) -> Answer:
        """Waits for the sync; raises Unanswered. In the step of its accept."""
        return await _answered(self._acknowledging(unsynced))

    def _acknowledging(self, unsynced: Unsynced) -> Waiting:
        synced: Waiting = asyncio.get_running_loop().create_future()

        def settle() -> None:
            queued = self.acknowledge(unsynced)
            _settle(synced, None if queued is None else queued.answer())

        self.after_sync(settle)
        return synced

    async def finish(self, pending: Pending) -> Answer:
        """The answer to a pending order: it waits for room for the full timeout at most, and at
        most COMPARE_S_MAX more for what an own id is compared with. Raises Unanswered.

        Cancelled, it leaves nothing: the order is not in the ring and never will be.
        """
        answer = await self.enter(pending)
        # Out of every time limit: after the slot there is no 503, however long a sync takes.
        return answer if isinstance(answer, Answer) else await _answered(answer)

    def waits(self, key: bytes) -> bool:
        """Whether an item of that key is in the ring or in a hand."""
        return self._ring.find(key) is not None

    async def replay(self, key: bytes, revival: Revival) -> Answer:
        """The answer to a dead letter that is put once more, as `finish` has it; the same to one
        whose replay waits already."""
        if self.recovering:
            self.tally.count("journal")
            return recovering()
        payload, header = revival.payload, revival.header
        if len(payload) + len(header) > self._room:
            return self.too_large(len(payload) + len(header))
        digest = posted_hash(header, payload)
        begun_ns = time.perf_counter_ns()
        return await self.finish(
            Pending(key, payload, header, digest, True, begun_ns, revival.round)
        )

    async def enter(self, pending: Pending) -> Answer | Waiting:
        """finish, without the wait for the sync."""
        self.meter.note()
        try:
            if not pending.own_id:
                return await self._put(pending)
            async with asyncio.timeout(self._full_timeout_s + COMPARE_S_MAX):
                return await self._put_in_turn(pending)
        except TimeoutError:
            self.tally.count("full")
            return self._too_late()
        except Closed:
            self.tally.count("draining")
            return draining()
        except Refused as refused:
            self.tally.count("database")
            return refused.answer
        except RoomGone as gone:
            self.tally.count("journal")
            return no_room(str(gone))

    async def _put_in_turn(self, pending: Pending) -> Answer | Waiting:
        """From the look-up to the publish nobody else takes that id, not in another front either:
        of two bodies at the same instant the second is compared with the first."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._turns.of(pending.key))
            if self._claims is not None:
                await stack.enter_async_context(self._claims.of(pending.key))
            return await self._put_once(pending)

    def to_compare(
        self, key: bytes, payload: bytes, begun_ns: int, origin: Origin
    ) -> Answer | Pending:
        """An order that may have come before. Only these carry the hash of their body: nobody posts
        the id of another again, and if he did, the hash could be made of the payload."""
        digest = body_hash(payload, origin.owner)
        header = encode_header(
            RecordHeader(digest, origin.owner, origin.request_id, origin.traceparent)
        )
        if len(payload) + len(header) > self._room:
            return self.too_large(len(payload) + len(header))
        return Pending(key, payload, header, digest, True, begun_ns)

    async def _put(self, pending: Pending) -> Answer | Waiting:
        if self.journal is not None:
            return await self._put_when_room(self.journal, pending)
        async with asyncio.timeout(self._full_timeout_s):
            sequence = await self._put_when_fits(pending)
        return self._accepted(pending.key, sequence, pending.begun_ns).answer()

    async def _put_when_room(self, journal: Journal, pending: Pending) -> Waiting:
        async with asyncio.timeout(self._full_timeout_s):
            size = await journal.reserve(RECORD.size + len(pending.header) + len(pending.payload))
            try:
                sequence = await self._put_when_fits(pending)
                # In the step of the put: nothing can come between.
                return self._acknowledging(self._append(journal, pending, sequence))
            finally:
                journal.release(size)

    async def _put_when_fits(self, pending: Pending) -> int:
        page = self.tally.page
        page[PARKED] += 1
        try:
            return await self._writer.put_async(
                pending.payload, pending.key, pending.header, pending.round
            )
        finally:
            page[PARKED] -= 1

    def _append(self, journal: Journal, pending: Pending, sequence: int) -> Unsynced:
        journal.append(
            encode_record(
                pending.key,
                pending.payload,
                pending.header,
                sequence=sequence,
                accepted_ns=time.time_ns(),
                round=pending.round,
            )
        )
        return Unsynced(pending.key, self._position(sequence), pending.begun_ns)

    async def _append_again(
        self, journal: Journal, pending: Pending, sequence: int, answer: Answer
    ) -> Waiting:
        """Has a repeat on disk, whose first record may not be there yet, nor its commit."""
        async with asyncio.timeout(self._full_timeout_s):
            size = await journal.reserve(RECORD.size + len(pending.header) + len(pending.payload))
        self._append(journal, pending, sequence)
        journal.release(size)
        synced: Waiting = asyncio.get_running_loop().create_future()
        journal.after_sync(lambda: _settle(synced, None if self._ring.closed else answer))
        return synced

    async def _put_once(self, pending: Pending) -> Answer | Waiting:
        # An item only moves forwards (ring, hand, database), so looking in that order finds it.
        found = self._ring.find(pending.key)
        if pending.round and (found is None or found.item.round < pending.round):
            return await self._put(pending)
        earlier = None
        if found is None or _is_old(found.item.accepted_ns // 1000):  # perhaps not released yet
            earlier = await self._find_stored(pending.key)
        if earlier is None and found is not None:
            earlier = in_flight(found)
        if earlier is None:
            return await self._put(pending)
        if earlier.digest != pending.digest:
            order_id = format_uuid(pending.key)
            self.tally.count("conflict")
            return problem(ID_TAKEN, f"order_id {order_id} was posted before with another body")
        answer = order_answer(pending.key, earlier.status, earlier.position, REPLAYED)
        if self.journal is None:
            return answer
        if earlier.committed_us and _is_old(earlier.committed_us):
            if self._ring.closed:  # as after a sync: another process is not sure of the disk
                raise Unanswered
            return answer
        sequence = NO_SEQUENCE if found is None else found.item.sequence
        return await self._append_again(self.journal, pending, sequence, answer)

    def _accepted(self, key: bytes, sequence: int, begun_ns: int) -> Queued:
        self.tally.accepted(begun_ns)
        return Queued(key, self._position(sequence))

    def _position(self, sequence: int) -> int:
        position = sequence - self._mapping.head
        return position if position > 0 else 0

    def not_an_order(self, error: Malformed | Invalid) -> Answer:
        """400, or 422 with every field error."""
        if isinstance(error, Invalid):
            self.tally.count("invalid")
            return invalid(error.errors)
        self.tally.count("malformed")
        return problem(MALFORMED, str(error))

    def too_large(self, size: int) -> Answer:
        """413 for an order that no slot has room for."""
        self.tally.count("too_large")
        return problem(
            ORDER_TOO_LARGE,
            f"the order takes {size} bytes in the ring, the limit is {self._room}"
            f" (--slot-bytes {self._ring.slot_bytes})",
        )

    def _too_late(self) -> Answer:
        taken = f"{self._ring.depth} of {self._ring.capacity} slots (--capacity) are taken"
        return unavailable(
            RING_FULL,
            f"not taken in within {self._full_timeout_s:g} s (--full-timeout): {taken},"
            f" {self.parked} orders wait",
            self.meter.retry_after_s(self.parked + 1),
        )


def _is_old(moment_us: int) -> bool:
    return now_us() - moment_us > REPEAT_JOURNALED_US


def in_flight(found: Found) -> Earlier:
    """What a slot or a hand says of an order."""
    try:
        digest = posted_hash(found.item.header, found.item.payload)
    except msgspec.DecodeError:
        digest = b""
    if found.place == "ring":
        return Earlier(digest, "queued", found.position or 0)
    return Earlier(digest, "processing")


async def _answered(waiting: Waiting) -> Answer:
    """Raises Unanswered."""
    answer = await waiting
    if answer is None:
        raise Unanswered
    return answer


def _settle(future: asyncio.Future[T], result: T) -> None:
    """Unless whoever waited is gone."""
    if not future.done():
        future.set_result(result)


def no_room(reason: str) -> Answer:
    """503: the disk is full, or whatever keeps the journal from growing."""
    detail = f"nothing was taken in, the journal has no room (--data-dir): {reason}"
    return unavailable(JOURNAL_FULL, detail, NO_ROOM_RETRY_AFTER_S)


def other_id(derived: bytes) -> Answer:
    """422: an order has one id."""
    detail = (
        f"with this Idempotency-Key the order_id is {format_uuid(derived)}: leave it out of the"
        " body, or the key out of the head"
    )
    return problem(KEY_NAMES_ANOTHER_ID, detail)


def recovering() -> Answer:
    """503 until what was answered before a power loss is back in the ring."""
    detail = "the orders of before a power loss are put back first, nothing else is taken in"
    return unavailable(RECOVERING, detail, NO_ROOM_RETRY_AFTER_S)


def draining() -> Answer:
    """503 for good, from this process: it is about to end."""
    return unavailable(
        DRAINING, "shutting down, nothing more is taken in", DRAINING_RETRY_AFTER_S, CLOSE
    )

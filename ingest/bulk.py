"""`POST /orders/bulk`: one order a line, taken in as fast as the ring takes them.

    a line's order ── without an id ──► many at a time into ring and journal ──┐
      │    └───────── with an id ─────► compared, side by side, each by the ───┼─► its result
      └─ no order ──────────────────►   acceptor, as single orders are ────────┘

Nothing is read while lines wait for room, results wait for a sync, or a client leaves its results
lying: that is what bounds memory. A line was taken in when its result has an order id. What would
be 503 for one order stops the bulk: the result of the first line that was not looked at says so,
`"stopped": true`, and nothing from there on was taken in.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from itertools import count, groupby
from typing import NamedTuple, Self, TypeAlias, cast

from ingest._bulk import pack_orders, render_taken
from ingest.accept import Acceptor, Pending, draining
from ingest.answers import Answer, Refused, Unanswered, problem, unavailable
from ingest.batch import Batch
from ingest.exchange import too_slow
from ingest.idempotency import derived_id
from ingest.ndjson import LINE_S_MAX, Lines
from ingest.novel import IDS_AT_ONCE, Novel
from ingest.origin import NOBODY, Origin
from ingest.problems import LINE_TOO_LARGE, RESULTS_FULL
from ingest.results import Results
from processors.schema import Invalid, Malformed, decode_order, encode_order
from ringbuf import Closed, Ring

# Between two looks at whether the front ends; results are given out at least as often.
LINES_AT_ONCE = 256
# How long results may be kept back so that more go out together, while nothing else waits.
TELL_S = 0.01
# Between two looks at a full ring that empties.
PAUSE_S_MIN, PAUSE_S_MAX, MOST = 0.001, 0.008, 0.8
# How long others of this front wait while lines are read one by one.
TURN_S_MAX = 0.005
NO_ROOM_RETRY_AFTER_S = 2
TAKEN, UNAVAILABLE = 202, 503

Tell: TypeAlias = "Callable[[], Awaitable[None]]"


class Orders(NamedTuple):
    """Orders to be put, as lists of what each has."""

    keys: list[bytes]
    payloads: list[bytes]
    headers: list[bytes]

    @classmethod
    def of(cls, pending: list[Pending]) -> Self:
        """The same of those."""
        return cls(
            [one.key for one in pending],
            [one.payload for one in pending],
            [one.header for one in pending],
        )


async def nothing() -> None:
    """Is told."""


class Stopped(Exception):
    """The bulk ends before its lines do; `line` was not looked at."""

    def __init__(self, line: int, answer: Answer) -> None:
        super().__init__(answer.status)
        self.line = line
        self.answer = answer


class Bulk:
    """Takes the lines of one request in. `errors_only`: what was taken in is counted, not told.

    `repeatable`: the request's Idempotency-Key, from which the id of a line that has none follows;
    None: such an order gets a new one.
    """

    def __init__(
        self,
        acceptor: Acceptor,
        ring: Ring,
        novel: Novel,
        results: Results,
        line_bytes_max: int,
        *,
        errors_only: bool = False,
        origin: Origin = NOBODY,
        repeatable: bytes | None = None,
    ) -> None:
        self._acceptor = acceptor
        self._novel = novel
        self._batch = Batch(ring, acceptor.writer, acceptor.journal, acceptor.tally)
        self._origin = origin
        self._header = origin.header
        self._room = ring.room - len(origin.header)
        self._results = results
        self._line_bytes_max = line_bytes_max
        self._errors_only = errors_only
        self._repeatable = repeatable
        self._loop = asyncio.get_running_loop()
        self._turn_s = self._loop.time()
        self._told_s = self._turn_s
        self._capacity, self._pause_s = ring.capacity, PAUSE_S_MIN
        self._next = 1  # the first line that nothing was done about
        self._untold: list[Callable[[], bytes]] = []  # in the order of the lines
        self._synced: asyncio.Future[Answer | None] | None = None
        self.accepted = self.refused = 0

    async def take_all(self, lines: Lines) -> Stopped | None:
        """All of them, or up to where it stopped; what came before that is told. Raises HungUp,
        NotRead, Unanswered."""
        try:
            await self._take_all(lines)
        except Stopped as stopped:
            with suppress(Stopped):  # without room for results they stay in memory
                await self._tell()
            return stopped
        return None

    async def _take_all(self, lines: Lines) -> None:
        while True:
            try:
                some = await lines.next()
            except TimeoutError:
                slow = too_slow(f"line {self._next}", LINE_S_MAX)
                over = self._acceptor.ending.over
                raise Stopped(self._next, draining() if over else slow) from None
            if some is None:
                return
            for begin in range(0, len(some), LINES_AT_ONCE):
                if self._acceptor.ending.over:
                    raise Stopped(self._next, draining())
                await self._take(some[begin : begin + LINES_AT_ONCE])
                if self._loop.time() - self._told_s > TELL_S:
                    await self._tell()
            await self._tell()

    async def tell_end(self, stopped: Stopped) -> None:
        """Has the end told."""
        self.refused += 1
        self._results.add(self._refusal(stopped.line, stopped.answer, stopped=True))
        # Without room for it, it stays in memory.
        with suppress(OSError):
            await self._results.flush()

    async def _take(self, lines: list[bytes]) -> None:
        payloads = pack_orders(lines, self._line_bytes_max)
        if self._repeatable is None and None not in payloads:
            plain = cast("list[bytes]", payloads)
            if max(map(len, plain)) <= self._room:
                await self._put_plain(plain)
                return
        found = [
            await self._look(*one) for one in zip(count(self._next), lines, payloads, strict=False)
        ]
        for kind, group in groupby(found, type):
            if kind is bytes:
                await self._put_plain(cast("list[bytes]", list(group)))
            elif kind is Pending:
                await self._compare(cast("list[Pending]", list(group)))
            else:
                self._refuse(cast("list[Answer | None]", list(group)))

    # ---- many at a time --------------------------------------------------------------------------

    async def _put_plain(self, payloads: list[bytes]) -> None:
        """Orders that get ids of ours."""
        count = len(payloads)
        keys, headers = self._batch.new_keys(count), [self._header] * count
        await self._put(Orders(keys, payloads, headers), self._taken, self._tell)

    async def _put(
        self, orders: Orders, taken: Callable[[list[bytes]], object], tell: Tell
    ) -> None:
        """All of them. `taken`: is called with the ids of those that are in, as they get in;
        `tell`: what to do when it has to wait. Raises Stopped."""
        begun_ns = time.perf_counter_ns()
        keys, payloads, headers = orders
        while keys:
            try:
                count = self._batch.put(keys, payloads, headers, begun_ns)
            except Closed:
                raise Stopped(self._next, draining()) from None
            taken(keys[:count])
            if count == len(keys):
                return
            if count:
                await self._pause(count, tell)
            else:
                await tell()
                await self._put_next(
                    Pending(keys[0], payloads[0], headers[0], b"", False, begun_ns)
                )
                taken(keys[:1])
                count = 1
            keys, payloads, headers = keys[count:], payloads[count:], headers[count:]

    async def _pause(self, taken: int, tell: Tell) -> None:
        """Until most of what can be put at once has room: a place in line costs several times this
        timer. Whoever takes orders away has some in hand, so that he does not run dry meanwhile.
        Who finds no room then waits in line, too."""
        most = min(self._capacity, LINES_AT_ONCE) * MOST
        self._pause_s *= 0.8 if taken > most else 1.25
        self._pause_s = min(max(self._pause_s, PAUSE_S_MIN), PAUSE_S_MAX)
        if self._loop.time() - self._told_s > TELL_S:
            await tell()
        await asyncio.sleep(self._pause_s)

    async def _put_next(self, pending: Pending) -> None:
        """One that waits for room, in line with the orders of other requests."""
        try:
            async with self._acceptor.ending.before():
                answer = await self._acceptor.enter(pending)
        except TimeoutError:
            raise Stopped(self._next, draining()) from None
        if not isinstance(answer, Answer):
            self._synced = answer
        elif answer.status != TAKEN:
            raise Stopped(self._next, answer)

    # ---- one by one ------------------------------------------------------------------------------

    async def _look(
        self, number: int, line: bytes, payload: bytes | None
    ) -> bytes | Pending | Answer | None:
        """What to do about a line: put it, compare it, refuse it, or nothing."""
        if self._loop.time() - self._turn_s > TURN_S_MAX:
            await asyncio.sleep(0)
            self._turn_s = self._loop.time()
        key = None
        if payload is None:
            if len(line.removesuffix(b"\r")) > self._line_bytes_max:
                self._acceptor.tally.count("too_large")
                return line_too_large(self._line_bytes_max)
            if not line.strip():
                return None
            try:
                key, order = decode_order(line)
            except (Malformed, Invalid) as error:
                return self._acceptor.not_an_order(error)
            payload = encode_order(order)
        if key is None and self._repeatable is not None:
            key = derived_id(self._origin.owner, self._repeatable, number)
        if key is not None:
            begun_ns = time.perf_counter_ns()
            return self._acceptor.to_compare(key, payload, begun_ns, self._origin)
        if len(payload) <= self._room:
            return payload
        return self._acceptor.too_large(len(payload) + len(self._header))

    async def _compare(self, pending: list[Pending]) -> None:
        """Orders with ids of their own."""
        for begin in range(0, len(pending), IDS_AT_ONCE):
            await self._compare_some(pending[begin : begin + IDS_AT_ONCE])

    async def _compare_some(self, pending: list[Pending]) -> None:
        await self._tell()
        put: list[bytes] = []
        stop = None
        with self._novel.holding() as held:
            try:
                new = await self._novel.hold([one.key for one in pending], held)
                orders = Orders.of(
                    [one for one, is_new in zip(pending, new, strict=True) if is_new]
                )
                # Nothing is told meanwhile: nobody is to hold ids by leaving results lying.
                await self._put(orders, put.extend, nothing)
            except Refused as refused:
                self._acceptor.tally.count("database")
                raise Stopped(self._next, refused.answer) from None
            except Stopped as stopped:
                stop = stopped.answer
        # The first new one that did not get in is where it stopped.
        places = [place for place, is_new in enumerate(new) if is_new]
        end = places[len(put)] if len(put) < len(places) else len(pending)
        await self._tell_apart(pending[:end], new[:end], stop)

    async def _tell_apart(
        self, pending: list[Pending], new: list[bool], stop: Answer | None
    ) -> None:
        """The new ones are in. The others somebody else is at, or they were there before: they are
        compared, side by side."""
        others = [one for one, is_new in zip(pending, new, strict=True) if not is_new]
        answers = await asyncio.gather(*map(self._finish, others))
        if None in answers:
            raise Unanswered
        left = iter(cast("list[Answer]", answers))
        for is_new, alike in groupby(zip(pending, new, strict=True), lambda one: one[1]):
            keys = [one.key for one, _ in alike]
            if is_new:
                self._taken(keys)
                continue
            for key in keys:
                answer = next(left)
                if answer.status == TAKEN:
                    self._taken([key])
                    continue
                self._refuse([answer])
                stop = answer if answer.status == UNAVAILABLE else stop
        if stop is not None:
            raise Stopped(self._next, stop)

    async def _finish(self, pending: Pending) -> Answer | None:
        try:
            return await self._acceptor.finish(pending)
        except Unanswered:
            return None

    # ---- results ---------------------------------------------------------------------------------

    def _taken(self, keys: list[bytes]) -> None:
        """The next lines were taken in under these ids, as far as this process is concerned."""
        first = self._next
        self._next += len(keys)
        self.accepted += len(keys)
        if keys and not self._errors_only:
            results = self._results
            self._untold.append(lambda: render_taken(first, keys, results.before, results.after))

    def _refuse(self, answers: list[Answer | None]) -> None:
        """The next lines are refused; None: are empty."""
        for number, answer in enumerate(answers, self._next):
            if answer is not None:
                self.refused += 1
                self._untold.append(partial(self._refusal, number, answer))
        self._next += len(answers)

    def _refusal(self, number: int, answer: Answer, *, stopped: bool = False) -> bytes:
        end = b""
        if stopped:
            after = dict(answer.headers).get(b"retry-after")
            end = b',"stopped":true' + (b',"retry_after":%s' % after if after else b"")
        result = b'{"line":%d,"error":%s%s}' % (number, answer.body, end)
        return self._results.before + result + self._results.after

    async def _tell(self) -> None:
        """Gives out what is not told yet, once all of it holds. Raises Unanswered, NotRead, and
        Stopped when there is no room for results."""
        await self._batch.synced()
        if self._synced is not None:
            if await self._synced is None:
                raise Unanswered
            self._synced = None
        for render in self._untold:
            self._results.add(render())
        self._untold.clear()
        self._told_s = self._loop.time()
        try:
            await self._results.flush()
        except OSError as error:
            raise Stopped(self._next, no_room_for_results(error)) from error


def line_too_large(line_bytes_max: int) -> Answer:
    """413."""
    detail = f"the line has more than {line_bytes_max} bytes, the limit (--max-body-bytes)"
    return problem(LINE_TOO_LARGE, detail)


def no_room_for_results(error: OSError) -> Answer:
    """503 for the lines from there on."""
    detail = f"there is no room for the results (--data-dir): {error.strerror or error}"
    return unavailable(RESULTS_FULL, detail, NO_ROOM_RETRY_AFTER_S)

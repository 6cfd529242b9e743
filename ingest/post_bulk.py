"""The ASGI application of `POST /orders/bulk`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from ingest.accept import Acceptor
from ingest.answers import CLOSE, Answer, Refused, Unanswered, problem, unavailable
from ingest.bulk import Bulk
from ingest.database import Database
from ingest.exchange import (
    HungUp,
    Receive,
    Scope,
    Send,
    deliver,
    header,
    wrong_type,
)
from ingest.hangup import cut_off, unless_hung_up
from ingest.idempotency import idempotency_key
from ingest.lookup import Lookup
from ingest.ndjson import Lines
from ingest.novel import Novel
from ingest.origin import origin_of
from ingest.problems import BAD_QUERY, BULKS_FULL
from ingest.results import NDJSON_TYPE, NotRead, Results, Spooled, Streamed
from ingest.stock import read_query
from processors.settings import Settings
from ringbuf import Ring

# At once, for each has memory and perhaps a file; others wait as for room in the ring.
BULKS_MAX = 32
# How long the rest of a bulk that was stopped is read and dropped, for a client that sends all
# before it reads its results.
STOPPED_S_MAX = 30.0
NDJSON = re.compile(rb"application/x-ndjson[ \t]*(?:;.*)?", re.IGNORECASE | re.DOTALL)
NONE_WANTED = re.compile(rb";[ \t]*q=0(?:\.0*)?[ \t]*(?:;|\Z)", re.IGNORECASE)
TRUTH = {"true": True, "false": False}
TOO_SLOW = 408


class PostBulk:
    """One for each front."""

    def __init__(
        self, acceptor: Acceptor, ring: Ring, database: Database, settings: Settings
    ) -> None:
        find_many = Lookup(database).find_many
        self._novel = Novel(ring, acceptor.turns, acceptor.claims, find_many)
        self._acceptor = acceptor
        self._ring = ring
        self._settings = settings
        self._places = asyncio.Semaphore(BULKS_MAX)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_hung_up(scope, self._answer(scope, receive, send))
        except Refused as refused:
            await deliver(_last(refused.answer), receive, send)
        except (Unanswered, NotRead):
            await cut_off(scope)
        except HungUp:
            return

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        errors_only, key = self._check(scope)
        results: Results = Spooled(send, self._settings.data_dir)
        if wants_stream(header(scope, b"accept")):
            results = Streamed(send)
        bulk = Bulk(
            self._acceptor,
            self._ring,
            self._novel,
            results,
            self._line_bytes_max,
            errors_only=errors_only,
            origin=origin_of(scope),
            repeatable=key,
        )
        lines = Lines(receive, self._line_bytes_max, self._acceptor.ending)
        try:
            async with self._place():
                await self._take(bulk, lines, results)
        finally:
            results.close()

    async def _take(self, bulk: Bulk, lines: Lines, results: Results) -> None:
        stopped = await bulk.take_all(lines)
        if stopped is not None:
            if not bulk.accepted and not bulk.refused:
                raise Refused(stopped.answer)
            await bulk.tell_end(stopped)
            if stopped.answer.status != TOO_SLOW:
                await self._drop(lines)
        await results.finish(bulk.accepted, bulk.refused, closes=stopped is not None)

    async def _drop(self, lines: Lines) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._acceptor.ending.patience_s(STOPPED_S_MAX)):
                await lines.drop()

    def _check(self, scope: Scope) -> tuple[bool, bytes | None]:
        """-> errors_only, the idempotency key. Raises Refused."""
        refusal = self._acceptor.refusal()
        if refusal is not None:
            raise Refused(refusal)
        try:
            return self._errors_only(scope), idempotency_key(scope)
        except Refused as refused:
            self._acceptor.tally.refused(refused.answer.status)
            raise

    @staticmethod
    def _errors_only(scope: Scope) -> bool:
        kind = header(scope, b"content-type")
        if kind is None or NDJSON.fullmatch(kind.strip()) is None:
            raise Refused(wrong_type(kind, NDJSON_TYPE.decode()))
        errors_only = read_query(scope, "errors_only").get("errors_only", "false")
        if errors_only not in TRUTH:
            detail = f"errors_only={errors_only[:20]}: must be true or false"
            raise Refused(problem(BAD_QUERY, detail))
        return TRUTH[errors_only]

    @property
    def _line_bytes_max(self) -> int:
        return self._settings.http.max_body_bytes

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        limit_s = self._settings.ring.full_timeout_s
        try:
            async with self._acceptor.ending.before(limit_s):
                await self._places.acquire()
        except TimeoutError:
            detail = f"{BULKS_MAX} other bulks were under way for {limit_s:g} s (--full-timeout)"
            self._acceptor.tally.count("full")
            retry_after_s = self._acceptor.meter.retry_after_s(self._acceptor.parked + 1)
            raise Refused(unavailable(BULKS_FULL, detail, retry_after_s)) from None
        try:
            yield
        finally:
            self._places.release()


def wants_stream(accept: bytes | None) -> bool:
    """Whether NDJSON is named in that Accept, and not to say that it is not wanted."""
    return any(
        NDJSON.fullmatch(one.strip()) and not NONE_WANTED.search(one)
        for one in (accept or b"").split(b",")
    )


def _last(answer: Answer) -> Answer:
    """The answer to a request whose body nobody read: with it the connection ends."""
    headers = answer.headers if answer.closes else answer.headers + CLOSE
    return Answer(answer.status, headers, answer.body, unread_body=True)

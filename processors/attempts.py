"""One attempt to tell an endpoint, over HTTP, and what its end means.

    2xx                          delivered
    410                          the endpoint wants nothing any more: it is disabled
    429, 503 with Retry-After    to be tried again after that, AGAIN_S_MAX at most
    everything else              to be tried again: other statuses, redirects, no connection,
                                 resets, no answer within ATTEMPT_S

An attempt ends within ATTEMPT_S, whatever the other side does. What stands behind the head of an
answer is not needed: some of it is read, so that the connection can be used again, and a longer one
is closed. But what comes along with the head and is no HTTP makes it none. Cookies are neither kept
nor sent. An attempt that a stop cuts off is none: nobody knows what would have come.
"""

from __future__ import annotations

import asyncio
import math
import random
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from importlib import metadata
from typing import Literal

import aiohttp
from msgspec import Struct

from processors.instants import EARLY_S
from processors.webhooks import Endpoint, headers_of, shown_id

ATTEMPT_S = 15.0
CONNECT_S = 5.0
AT_ONCE = 8
ANSWER_BYTES_MAX = 64 * 1024
# For what an answer has behind its head: connections that are slower are not used again.
ANSWER_S_MAX = 1.0
IDLE_S = 30.0
# Seconds from one attempt to the next, the last one repeated until GIVE_UP_S after the first.
PAUSES_S = (5, 30, 120, 600, 1800, 3600, 7200, 14400)
GIVE_UP_S = 86_400
SPREAD = 0.2
AGAIN_S_MAX = 3600.0
DIGITS_MAX = 9

# How far an error is traced back for words.
CAUSES_MAX = 8
# OpenSSL's numbers for one that is good, and another host's: by name, by address.
OTHERS_CERTIFICATE = (62, 64)

Verdict = Literal["delivered", "again", "gone", "cut"]
Outcome = Literal["delivered", "refused", "gone", "timeout", "error", "cut"]


class Attempt(Struct, frozen=True):
    """How one ended. `after_s`: what the endpoint asked for; `status`: None without an answer;
    `late`: nothing came in time."""

    verdict: Verdict
    status: int | None = None
    error: str | None = None
    after_s: float | None = None
    late: bool = False

    @property
    def outcome(self) -> Outcome:
        """As it is counted."""
        if self.verdict != "again":
            return self.verdict
        if self.status is not None:
            return "refused"
        return "timeout" if self.late else "error"


class Patience:
    """With the attempts that are under way: each has ATTEMPT_S, and no more than `hurry` says."""

    def __init__(self) -> None:
        self._waits: set[asyncio.Timeout] = set()
        self._end_s = math.inf  # of the loop's clock

    @property
    def over(self) -> bool:
        """What `hurry` gave is used up."""
        return asyncio.get_running_loop().time() + EARLY_S >= self._end_s

    def hurry(self, seconds: float) -> None:
        """All end within that time."""
        self._end_s = asyncio.get_running_loop().time() + seconds
        for wait in self._waits:
            wait.reschedule(min(self._end_s, wait.when() or math.inf))

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Around an attempt. Raises TimeoutError."""
        end_s = asyncio.get_running_loop().time() + ATTEMPT_S
        async with asyncio.timeout_at(min(end_s, self._end_s)) as wait:
            self._waits.add(wait)
            try:
                yield
            finally:
                self._waits.discard(wait)


class Sender:
    """The connections to one endpoint, AT_ONCE of them at most."""

    def __init__(
        self, endpoint: Endpoint, context: ssl.SSLContext, patience: Patience | None = None
    ) -> None:
        self.endpoint = endpoint
        self._patience = patience or Patience()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=AT_ONCE, ssl=context, keepalive_timeout=IDLE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_S),
            headers={"user-agent": f"rasher/{_version()}", "content-type": "application/json"},
            skip_auto_headers=("accept-encoding",),
            auto_decompress=False,
        )

    async def close(self) -> None:
        """Ends every connection."""
        await self._session.close()

    async def send(self, event_id: bytes, body: bytes) -> Attempt:
        """One attempt; raises nothing that the endpoint could be the reason of."""
        heard: list[Attempt] = []
        try:
            async with self._patience.one():
                await self._send(shown_id(event_id), body, heard)
        except aiohttp.ServerTimeoutError:
            text = f"no connection within {CONNECT_S:g} s, its name looked up and TLS agreed on"
            ended = Attempt("again", error=text, late=True)
        except TimeoutError:
            ended = self._out_of_time()
        # Whatever the layers below let through: one endpoint must not end the relay of all.
        except Exception as error:
            ended = Attempt("again", error=reason(error))
        # An answer counts when its head has come, whatever becomes of its body.
        return heard[0] if heard else ended

    def _out_of_time(self) -> Attempt:
        if self._patience.over:
            return Attempt("cut")
        text = f"no answer in time, which is {ATTEMPT_S:g} s at most"
        return Attempt("again", error=text, late=True)

    async def _send(self, message_id: str, body: bytes, heard: list[Attempt]) -> None:
        headers = headers_of(self.endpoint.secrets, message_id, int(time.time()), body)
        async with self._session.post(
            self.endpoint.url, data=body, headers=headers, allow_redirects=False
        ) as answer:
            heard.append(judge(answer.status, answer.headers.get("retry-after")))
            if (answer.content_length or 0) <= ANSWER_BYTES_MAX:
                async with asyncio.timeout(ANSWER_S_MAX):
                    await _drop_body(answer.content)


async def _drop_body(content: aiohttp.StreamReader) -> None:
    count = 0
    async for part in content.iter_any():
        count += len(part)
        if count > ANSWER_BYTES_MAX:
            return


def reason(error: BaseException) -> str:
    """The error in words that any database and terminal takes, without the url, which may hold a
    token; of one without words, those of what it comes from."""
    chain = [error]
    while len(chain) < CAUSES_MAX and (before := chain[-1].__cause__ or chain[-1].__context__):
        chain.append(before)
    text = _words(error) or next((_words(one) for one in chain if _words(one)), "")
    for one in chain:
        refused = getattr(one, "certificate_error", one)
        if isinstance(refused, ssl.SSLCertVerificationError):
            text = f"its certificate is refused: {refused.verify_message}"
            if refused.verify_code not in OTHERS_CERTIFICATE:
                text += " (SSL_CERT_FILE names the authorities that are trusted)"
    line = text or type(error).__name__
    return "".join(one if one.isprintable() else "?" for one in line)


def _words(error: BaseException) -> str:
    match error:
        case aiohttp.InvalidURL():
            return "not a url that can be asked"
        case aiohttp.ClientConnectorError():
            return f"no connection: {error.os_error}"
        case aiohttp.ClientResponseError():
            return f"no HTTP: {error.message}"
    return f"{type(error).__name__}: {error}" if str(error) else ""


def judge(status: int, retry_after: str | None = None) -> Attempt:
    """What an answer's head means."""
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return Attempt("delivered", status)
    error = f"answered {status}"
    if status == HTTPStatus.GONE:
        return Attempt("gone", status, error)
    return Attempt("again", status, error, retry_after_s(retry_after))


def retry_after_s(text: str | None) -> float | None:
    """Seconds or a date, at most AGAIN_S_MAX; None for what is neither."""
    if text is None:
        return None
    if text.isascii() and text.isdecimal() and len(text) <= DIGITS_MAX:
        return min(float(text), AGAIN_S_MAX)
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:
        return None
    return min(max(0.0, (moment - datetime.now(UTC)).total_seconds()), AGAIN_S_MAX)


def pause_s(attempts: int, asked_s: float | None = None) -> float:
    """How long to wait after so many attempts, spread so that many don't come back together; at
    least what the endpoint asked for."""
    planned = PAUSES_S[min(attempts, len(PAUSES_S)) - 1]
    return max(planned * random.uniform(1 - SPREAD, 1 + SPREAD), asked_s or 0.0)


class Breaker:
    """Of one endpoint: after TRIES failures in a row nothing is sent but one probe, later each
    time, until that succeeds.

        closed ──TRIES failures──► open ──its pause is over──► one probe ──success──► closed
                                     ▲                            │
                                     └────────failure─────────────┘

    `failing_s`: for how long it had failed already, when somebody else looked after it.
    """

    TRIES = 10
    OPEN_S_MIN, OPEN_S_MAX = 30.0, 600.0

    def __init__(self, failing_s: float = 0.0) -> None:
        self._failures = 0
        self._earlier_s = failing_s
        self._since_s = 0.0
        self._until_s = 0.0
        self._pauses = self._make_pauses()

    @property
    def tripped(self) -> bool:
        """At most one at a time is to be sent."""
        return self._failures >= self.TRIES

    def failing_s(self, now_s: float) -> float:
        """For how long it has failed without a success between, while somebody tried it."""
        return self._earlier_s + (now_s - self._since_s if self._failures else 0.0)

    def left_s(self, now_s: float) -> float:
        """Until something may be sent; 0: now."""
        return max(0.0, self._until_s - now_s) if self.tripped else 0.0

    def note(self, now_s: float, *, delivered: bool) -> None:
        """How an attempt has ended."""
        if delivered:
            self._failures, self._earlier_s = 0, 0.0
            self._pauses = self._make_pauses()
            return
        self._since_s = self._since_s if self._failures else now_s
        self._failures += 1
        if self.tripped and now_s >= self._until_s:
            self._until_s = now_s + next(self._pauses)

    def _make_pauses(self) -> Iterator[float]:
        pause = self.OPEN_S_MIN
        while True:
            yield pause
            pause = min(2 * pause, self.OPEN_S_MAX)


def _version() -> str:
    try:
        return metadata.version("rasher")
    except metadata.PackageNotFoundError:
        return "0"

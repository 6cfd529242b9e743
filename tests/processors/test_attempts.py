"""What answers mean, what hostile ones do, and when the next attempt is due."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import aiohttp
import pytest

from processors.attempts import (
    AGAIN_S_MAX,
    ANSWER_BYTES_MAX,
    PAUSES_S,
    SPREAD,
    Attempt,
    Breaker,
    Sender,
    judge,
    pause_s,
    reason,
    retry_after_s,
)
from processors.webhooks import make_endpoint
from tests.ingest.certificate import make_certificate, trusting
from tests.partners import OK, SECRET, Behaviour, Message, partner

SOON_S = 10.0  # much less than an attempt may take
TOKEN = "t0ken"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
A_LOT = bytes(ANSWER_BYTES_MAX)
EVENT = bytes(range(16))


@asynccontextmanager
async def sender(url: str, context: ssl.SSLContext | None = None) -> AsyncIterator[Sender]:
    """To that url, whose query has the token."""
    endpoint = make_endpoint("shop", f"{url}?key={TOKEN}", [SECRET], "test")
    one = Sender(endpoint, context or ssl.create_default_context())
    try:
        yield one
    finally:
        await one.close()


async def attempt(url: str, context: ssl.SSLContext | None = None) -> Attempt:
    """One; it ends soon."""
    async with asyncio.timeout(SOON_S), sender(url, context) as one:
        return await one.send(EVENT, b"{}")


async def attempt_at(behave: Behaviour) -> Attempt:
    async with partner(behave) as shop:
        return await attempt(shop.url)


def says(answer: bytes) -> Behaviour:
    """What a partner says, whole."""

    async def behave(_message: Message, _writer: asyncio.StreamWriter) -> bytes:
        return answer

    return behave


def pours(head: bytes, part: bytes) -> Behaviour:
    """A partner that goes on and on."""

    async def behave(_message: Message, writer: asyncio.StreamWriter) -> bytes:
        writer.write(head)
        while True:
            writer.write(part)
            await writer.drain()

    return behave


@pytest.mark.parametrize(
    ("status", "verdict"),
    [(200, "delivered"), (204, "delivered"), (299, "delivered"), (301, "again"), (307, "again"),
     (400, "again"), (404, "again"), (410, "gone"), (429, "again"), (500, "again"), (503, "again")],
)  # fmt: skip
def test_what_a_status_means(status: int, verdict: str) -> None:
    assert judge(status).verdict == verdict


@pytest.mark.anyio
@pytest.mark.parametrize(
    "behave",
    [says(b"HTTP/1.1 200 OK\r\nx: " + b"x" * 100_000 + b"\r\n\r\n"),
     pours(b"HTTP/1.1 200 OK\r\n", b"".join(b"x-%d: y\r\n" % n for n in range(100))),
     pours(b"HTTP/1.1 200 OK\r\nx: ", bytes(b"x" * 65536)),
     pours(b"", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 99 x\r\n\r\n"),
     says(b"\x00\xff\r\n" * 100 + b"\r\n\r\n"),
     says(b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n"),
     says(CHUNKED + b"no chunk\r\n\r\n"),
     says(OK + b"!")],
    ids=["a long header", "headers without end", "a header without end", "100 without end",
         "no HTTP", "a length that is none", "a part that is none", "longer than it says"],
)  # fmt: skip
async def test_what_makes_no_sense_or_has_no_end_is_no_answer(behave: Behaviour) -> None:
    ended = await attempt_at(behave)
    assert (ended.verdict, ended.status) == ("again", None)
    assert ended.error
    assert TOKEN not in ended.error
    assert ended.error.isprintable()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "behave",
    [pours(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n", A_LOT),
     pours(b"HTTP/1.1 200 OK\r\n\r\n", A_LOT),
     pours(CHUNKED, b"10000\r\n" + A_LOT + b"\r\n"),
     says(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\ncontent-encoding: br\r\n\r\nno brotli")],
    ids=["long", "without end", "of many parts", "garbled"],
)  # fmt: skip
async def test_an_answer_counts_whatever_comes_behind_its_head(behave: Behaviour) -> None:
    assert await attempt_at(behave) == Attempt("delivered", 200)


@pytest.mark.anyio
@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "http://nowhere.invalid/",
                                 "http://[::1%25nowhere]/", "http://xn--/"])  # fmt: skip
async def test_no_connection_is_told_without_the_url(url: str) -> None:
    ended = await attempt(url)
    assert ended.verdict == "again"
    assert ended.error
    assert TOKEN not in ended.error


@pytest.mark.anyio
async def test_connections_are_used_again_and_cookies_are_not() -> None:
    answer = OK.replace(b"\r\n", b"\r\nset-cookie: a=b\r\n", 1)
    async with partner(says(answer)) as shop, sender(shop.url) as one:
        for _ in range(3):
            assert (await one.send(EVENT, b"{}")).verdict == "delivered"
        assert shop.connections == 1
        assert not any("cookie" in message.headers for message in shop.heard)
        assert shop.heard[0].headers["user-agent"].startswith("rasher/")


@pytest.mark.anyio
async def test_a_certificate_is_believed_that_is_known_and_no_other(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate, key)
    async with partner(tls=serving) as shop:
        assert (await attempt(shop.url, trusting(certificate))).verdict == "delivered"
        stranger = await attempt(shop.url)
        assert stranger.verdict == "again"
        assert "certificate" in (stranger.error or "")
        assert len(shop.heard) == 1


def test_a_date_and_seconds_are_waited_for_and_nothing_else() -> None:
    assert retry_after_s("7") == 7
    assert retry_after_s("99999") == AGAIN_S_MAX
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 55 <= (retry_after_s(in_a_minute) or 0) <= 60
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    for text in (None, "", "-1", "1.5", "soon", "9" * 30, "\u0661"):
        assert retry_after_s(text) is None


def test_an_error_is_told_in_words_that_can_be_stored_and_shown() -> None:
    assert reason(ValueError("bad\0\n\x1b[31m\ud800")) == "ValueError: bad???[31m?"
    assert reason(ValueError()) == "ValueError"
    bare = aiohttp.ClientConnectionError()
    bare.__cause__ = OSError()
    bare.__cause__.__context__ = ConnectionResetError(104, "Connection reset by peer")
    assert reason(bare) == "ConnectionResetError: [Errno 104] Connection reset by peer"


@pytest.mark.parametrize(
    ("attempt", "outcome"),
    [
        (Attempt("delivered", 200), "delivered"),
        (Attempt("gone", 410, "answered 410"), "gone"),
        (Attempt("again", 500, "answered 500"), "refused"),
        (Attempt("again", error="ConnectError: no"), "error"),
        (Attempt("again", error="no answer", late=True), "timeout"),
    ],
)
def test_an_attempt_is_counted_by_what_came(attempt: Attempt, outcome: str) -> None:
    assert attempt.outcome == outcome


def test_pauses_grow_are_spread_and_heed_what_was_asked() -> None:
    for attempts, planned in enumerate(PAUSES_S, 1):
        found = [pause_s(attempts) for _ in range(100)]
        assert min(found) >= planned * (1 - SPREAD)
        assert max(found) <= planned * (1 + SPREAD)
        assert len(set(found)) > 50
    assert pause_s(1, 1000.0) == 1000
    assert pause_s(1000) >= PAUSES_S[-1] * (1 - SPREAD)


def test_a_breaker_opens_lets_one_probe_through_and_waits_longer_each_time() -> None:
    breaker, now = Breaker(), 100.0
    for _ in range(Breaker.TRIES - 1):
        breaker.note(now, delivered=False)
    assert not breaker.tripped
    breaker.note(now, delivered=False)
    assert breaker.tripped
    assert breaker.left_s(now) == Breaker.OPEN_S_MIN
    breaker.note(now + 1, delivered=False)  # one that was under way
    assert breaker.left_s(now) == Breaker.OPEN_S_MIN
    waits = []
    for _ in range(8):
        now += breaker.left_s(now)
        assert breaker.left_s(now) == 0
        breaker.note(now, delivered=False)
        waits.append(breaker.left_s(now))
    assert waits[:3] == [60, 120, 240]
    assert waits[-1] == Breaker.OPEN_S_MAX
    assert breaker.failing_s(now) == now - 100
    breaker.note(now, delivered=True)
    assert not breaker.tripped
    assert breaker.left_s(now) == 0
    assert breaker.failing_s(now + 1) == 0
    breaker.note(now + 2, delivered=False)
    assert breaker.failing_s(now + 5) == 3


def test_a_breaker_goes_on_with_what_an_earlier_one_has_seen() -> None:
    breaker = Breaker(failing_s=50)
    assert breaker.failing_s(7) == 50  # nothing was tried yet
    breaker.note(10, delivered=False)
    assert breaker.failing_s(13) == 53
    assert not breaker.tripped
    breaker.note(14, delivered=True)
    assert breaker.failing_s(99) == 0

"""What answers mean, and when the next attempt is due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from processors.attempts import (
    AGAIN_S_MAX,
    PAUSES_S,
    SPREAD,
    Attempt,
    Breaker,
    judge,
    pause_s,
    reason,
    retry_after_s,
)


@pytest.mark.parametrize(
    ("status", "verdict"),
    [(200, "delivered"), (204, "delivered"), (299, "delivered"), (301, "again"), (307, "again"),
     (400, "again"), (404, "again"), (410, "gone"), (429, "again"), (500, "again"), (503, "again")],
)  # fmt: skip
def test_what_a_status_means(status: int, verdict: str) -> None:
    assert judge(httpx.Response(status)).verdict == verdict


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
    bare = httpx.ReadError("")
    bare.__cause__ = OSError()
    bare.__cause__.__context__ = ConnectionResetError(104, "Connection reset by peer")
    assert reason(bare) == "ReadError: [Errno 104] Connection reset by peer"


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
    breaker.note(now, delivered=True)
    assert not breaker.tripped
    assert breaker.left_s(now) == 0

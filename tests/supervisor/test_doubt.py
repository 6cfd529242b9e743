"""What the policy does when somebody is not sure of the disk, and while orders are put back."""

from __future__ import annotations

import signal

import pytest
from msgspec.structs import replace

from processors.policy import begin
from processors.tree import Announce, CloseRing, Ended, Kid, Left, Ready, Recovered, Send, Start
from tests.supervisor.kit import (
    F0,
    NOTHING,
    SETTINGS,
    W0,
    W1,
    after,
    asked,
    ended,
    running,
    said,
    tick,
)


def doubting(key: tuple[str, int], now: float, *, heir: bool = False) -> Ended:
    return Ended(
        now=now, left=NOTHING, key=key, how="pid 7 ended with exit code 4", clean=False,  # type: ignore[arg-type]
        heir=heir, doubt=True,
    )  # fmt: skip


@pytest.mark.parametrize("key", [F0, W0])
def test_doubt_of_one_stops_all_and_starts_none_again(key: tuple[str, int]) -> None:
    state, done = after(running(), doubting(key, 100.0))
    assert (state.phase, state.doubted) == ("stopping", True)
    assert state.kids[key].phase == "gone"  # type: ignore[index]
    others = {F0: signal.SIGKILL, W0: signal.SIGTERM, W1: signal.SIGTERM}
    del others[key]  # type: ignore[arg-type]
    assert {one.key: one.number for one in done if isinstance(one, Send)} == others
    for other in others:
        state, done = after(state, ended(other, 101.0))
        assert not done
    assert state.phase == "ended"


def test_doubt_is_said_and_kept_whenever_it_comes() -> None:
    state, _ = after(running(), asked(signal.SIGTERM, 100.0))
    assert said(state, doubting(F0, 101.0))[0].startswith("front 0: pid 7 ended with exit code 4")
    for number in (signal.SIGTERM, signal.SIGINT):
        state, _ = after(running(), asked(number, 100.0), doubting(W0, 101.0))
        assert state.doubted


def test_doubt_of_an_heir_is_no_less() -> None:
    state, _ = after(running(), asked(signal.SIGHUP, 100.0), doubting(F0, 101.0, heir=True))
    assert (state.phase, state.doubted, state.heir) == ("stopping", True, None)


def test_fronts_are_started_while_orders_are_put_back_and_not_announced_before() -> None:
    state = begin(SETTINGS, 0.0, migrated=True, recovering=True)
    state, done = after(state, tick(0.0))
    assert Start(F0) in done
    for key in (F0, W0, W1):
        state, done = after(state, Ready(now=1.0, left=NOTHING, key=key))
        assert Announce() not in done
    state, done = after(state, Recovered(now=2.0, left=NOTHING))
    assert Announce() in done


def test_the_ring_is_not_closed_before_all_is_put_back() -> None:
    state = replace(running(), recovering=True)
    left = Left(waiting=5)
    state, done = after(
        state, asked(signal.SIGTERM, 100.0), ended(F0, 101.0, left), tick(102.0, left)
    )
    assert CloseRing() not in done
    _, done = after(state, Recovered(now=103.0, left=left))
    assert CloseRing() in done


def test_a_kid_that_is_in_doubt_is_not_one_that_lives() -> None:
    state, _ = after(running(), doubting(W0, 100.0))
    assert state.kids[W0] == Kid("gone", 0.0)

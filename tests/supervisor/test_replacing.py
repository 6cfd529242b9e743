"""HUP, TTIN and TTOU in the policy, by table: no process, no clock."""

from __future__ import annotations

import logging
import signal
from typing import Any

import pytest
from msgspec.structs import replace

from processors.child import RETIRE
from processors.parent import Key
from processors.policy import decide
from processors.replacing import HEIR_PATIENCE_S, RETIRE_GRACE_S
from processors.tree import (
    Action,
    CloseRing,
    Event,
    Heir,
    Install,
    Kid,
    Left,
    Ready,
    RingLost,
    Say,
    Send,
    Start,
    State,
)
from tests.supervisor.kit import F0, NOTHING, W0, W1, after, asked, ended, running, said, tick

W2: Key = ("worker", 2)
PATIENCE_END_S = 100.0 + HEIR_PATIENCE_S
RETIRE_END_S = 101.0 + 30.0 + RETIRE_GRACE_S
FREE = Left(free=(2, 3, 4, 5, 6, 7))


def ready(key: Key, now: float, heir: bool = False) -> Ready:
    return Ready(now=now, left=NOTHING, key=key, heir=heir)


def heir_ended(key: Key, now: float, clean: bool = False) -> Event:
    return replace(ended(key, now, clean=clean), heir=True)


def turn(key: Key, now: float) -> tuple[Event, ...]:
    """What a replacement that goes well is made of."""
    return (ready(key, now, heir=True), ended(key, now + 0.1, clean=True), ready(key, now + 0.2))


ASKED = after(running(), asked(signal.SIGHUP, 100.0))[0]
RETIRING = after(ASKED, ready(F0, 101.0, heir=True))[0]
AT_W0 = after(RETIRING, ended(F0, 101.5, clean=True))[0]
W0_RETIRING = after(AT_W0, ready(W0, 102.0, heir=True))[0]
FEWER = after(running(), asked(signal.SIGTTOU, 100.0))[0]
ALL = (F0, W0, W1)


def test_hup_replaces_everybody_one_by_one_the_replacement_first() -> None:
    state, done = after(running(), asked(signal.SIGHUP, 100.0))
    for key in ALL:
        state, more = after(state, *turn(key, 101.0))
        done += more
    assert done == [
        Start(F0, heir=True), Send(F0, RETIRE), Install(F0),
        Start(W0, heir=True), Send(W0, signal.SIGTERM), Install(W0),
        Start(W1, heir=True), Send(W1, signal.SIGTERM), Install(W1),
    ]  # fmt: skip
    assert (state.heir, state.queue, state.phase) == (None, (), "running")
    assert {kid.phase for kid in state.kids.values()} == {"ready"}


def kill_all(heir: Key) -> list[Action]:
    return [Send(F0, 9), Send(W0, 9), Send(W1, 9), Send(heir, 9, heir=True)]


@pytest.mark.parametrize(
    ("name", "state", "event", "actions"),
    [
        ("an heir has its time", ASKED, tick(PATIENCE_END_S - 0.1), []),
        ("an heir that never gets ready is killed", ASKED, tick(PATIENCE_END_S),
         [Send(F0, signal.SIGKILL, heir=True)]),
        ("who is asked to end has its time", RETIRING, tick(RETIRE_END_S - 0.1), []),
        ("who does not end is killed", RETIRING, tick(RETIRE_END_S), [Send(F0, signal.SIGKILL)]),
        ("HUP during HUP starts nobody at once", ASKED, asked(signal.SIGHUP, 101.0), []),
        ("a dead front's heir has the place, ready or not", ASKED, ended(F0, 100.5),
         [Install(F0), Start(W0, heir=True)]),
        ("a dead worker's heir is given the index when it comes to the gate", AT_W0,
         ended(W0, 101.8), [Install(W0), Start(W1, heir=True)]),
        ("another child's death changes nothing", ASKED, ended(W1, 100.5), []),
        ("an heir that dies before it is ready replaces nobody, nor do others", ASKED,
         heir_ended(F0, 100.5), []),
        ("an heir that dies while the other one ends is followed by another", RETIRING,
         heir_ended(F0, 101.2), [Start(F0, heir=True)]),
        ("TERM asks fronts and the heir to end", RETIRING, asked(signal.SIGTERM, 102.0),
         [Send(F0, signal.SIGTERM), Send(F0, signal.SIGTERM, heir=True)]),
        ("TERM asks the heir of a worker to end, too", W0_RETIRING, asked(signal.SIGTERM, 103.0),
         [Send(F0, signal.SIGTERM), Send(W0, signal.SIGTERM, heir=True)]),
        ("INT kills the heir", W0_RETIRING, asked(signal.SIGINT, 103.0),
         [Send(F0, signal.SIGKILL), Send(W0, signal.SIGTERM), Send(W1, signal.SIGTERM),
          Send(W0, signal.SIGKILL, heir=True)]),
        ("a second INT kills all", after(ASKED, asked(signal.SIGINT, 101.0))[0],
         asked(signal.SIGINT, 101.1), kill_all(F0)),
        ("a lost ring ends the heir", ASKED, RingLost(now=101.0, left=NOTHING),
         [Send(F0, signal.SIGTERM), Send(F0, signal.SIGTERM, heir=True), CloseRing()]),
    ],
)  # fmt: skip
def test_what_is_done(name: str, state: State, event: Event, actions: list[Action]) -> None:
    assert after(state, event)[1] == actions, name


def test_an_heir_that_cannot_start_leaves_everybody_in_place_and_says_so() -> None:
    state, _ = after(ASKED, heir_ended(F0, 100.5))
    assert (state.heir, state.queue) == (None, ())
    assert state.kids == ASKED.kids
    [say] = [one for one in decide(ASKED, heir_ended(F0, 100.5))[1] if isinstance(one, Say)]
    assert say.level == logging.ERROR
    assert "front 0" in say.text
    assert "nobody else is replaced until the next HUP" in say.text


def test_who_is_replaced_by_its_own_death_is_not_started_twice() -> None:
    state, done = after(ASKED, ended(F0, 100.5), tick(100.6), ready(F0, 101.0))
    assert Start(F0) not in done
    assert state.kids[F0] == Kid("ready", 100.0)


def test_an_heir_dead_before_it_is_installed_is_started_again_like_any_child() -> None:
    state, done = after(RETIRING, ended(F0, 101.5, clean=True), ended(F0, 101.5), tick(101.6))
    assert done[0] == Install(F0)
    assert Start(F0) in done
    assert state.heir is not None
    assert state.heir.key == W0


def test_both_dead_while_the_heir_is_not_ready_is_one_start() -> None:
    state, done = after(ASKED, heir_ended(F0, 100.5), ended(F0, 100.5), tick(100.5))
    assert done == [Start(F0)]
    assert state.heir is None


def test_hup_during_hup_puts_behind_whoever_is_not_waiting() -> None:
    state, _ = after(ASKED, asked(signal.SIGHUP, 101.0))
    assert state.queue == (W0, W1, F0)
    state, _ = after(state, asked(signal.SIGHUP, 102.0))
    assert state.queue == (W0, W1, F0)


def test_hup_every_second_replaces_the_last_one_too() -> None:
    state, now = running(), 100.0
    replaced: list[Key] = []
    for _ in range(12):
        state, _ = after(state, asked(signal.SIGHUP, now))
        assert state.heir is not None
        replaced.append(state.heir.key)
        state, _ = after(state, *turn(state.heir.key, now + 0.1))
        now += 1.0
    assert replaced == [*ALL] * 4


def test_who_waits_for_its_start_is_not_replaced() -> None:
    state, _ = after(running(), ended(F0, 0.1), tick(0.1), ended(F0, 0.2))
    state, done = after(state, asked(signal.SIGHUP, 0.3))
    assert done == [Start(W0, heir=True)]
    assert state.queue == (W1,)


def test_a_tree_in_which_an_heir_lives_has_not_ended() -> None:
    state, done = after(W0_RETIRING, asked(signal.SIGTERM, 103.0), ended(F0, 103.1, clean=True))
    assert done[-1] == CloseRing()
    state, done = after(state, *(ended(key, 103.2, clean=True) for key in (W0, W1)))
    assert (state.phase, done) == ("draining", [])
    state, _ = after(state, heir_ended(W0, 103.3, clean=True))
    assert state.phase == "ended"


def test_the_ring_is_not_closed_while_an_heir_may_take_orders_in() -> None:
    state, done = after(RETIRING, asked(signal.SIGTERM, 102.0), ended(F0, 102.1, clean=True))
    assert CloseRing() not in done
    assert after(state, heir_ended(F0, 102.2, clean=True))[1] == [CloseRing()]


def test_a_worker_that_was_to_be_replaced_and_has_ended_is_started_again_by_a_drain() -> None:
    left = Left(waiting=3)
    state, _ = after(W0_RETIRING, asked(signal.SIGTERM, 103.0, left))
    state, done = after(state, ended(W0, 103.1, left, clean=True), tick(103.1, left))
    assert done == [Start(W0)]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU])
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_tree_on_its_way_down_is_not_reshaped(number: int, by: int) -> None:
    state, _ = after(running(), asked(by, 100.0))
    assert after(state, asked(number, 101.0, FREE)) == (state, [])


# ---- more and fewer workers ----------------------------------------------------------------------


def test_ttin_starts_one_more_worker_with_the_first_index_that_is_free() -> None:
    state, done = after(running(), asked(signal.SIGTTIN, 100.0, Left(free=(0, 3, 4))), tick(100.0))
    assert done == [Start(("worker", 3))]
    assert len(state.staying) == 3


def test_ttin_stops_at_what_the_ring_was_made_for_and_says_so() -> None:
    event = asked(signal.SIGTTIN, 100.0, Left(free=()))
    assert after(running(), event) == (running(), [])
    [text] = said(running(), event)
    assert text.startswith("workers: 2, and it stays so: the ring was made for no more")
    assert "--workers 3" in text


def test_ttou_asks_the_highest_index_to_end_and_forgets_it() -> None:
    state, done = after(running(), asked(signal.SIGTTOU, 100.0))
    assert done == [Send(W1, signal.SIGTERM)]
    state, done = after(state, ended(W1, 100.1, clean=True), tick(100.1))
    assert (done, list(state.kids)) == ([], [F0, W0])


def test_ttou_stops_at_one_and_says_so() -> None:
    state, _ = after(FEWER, ended(W1, 100.1, clean=True))
    assert after(state, asked(signal.SIGTTOU, 101.0)) == (state, [])
    assert said(state, asked(signal.SIGTTOU, 101.0)) == [
        "workers: 1, and it stays so: one is the least"
    ]
    assert after(FEWER, asked(signal.SIGTTOU, 100.05))[1] == []  # the other one still ends


@pytest.mark.parametrize("clean", [True, False])
def test_the_hand_of_a_worker_that_left_is_worked_off(clean: bool) -> None:
    left = Left(hands=(1,))
    state, done = after(FEWER, ended(W1, 100.1, left, clean), tick(100.1, left))
    assert done == [Start(W1, work_off=True)]
    state, done = after(state, ended(W1, 100.2, left), tick(100.2 + 0.25, left))
    assert done == [Start(W1, work_off=True)]
    state, done = after(state, ended(W1, 101.0, NOTHING, clean=True), tick(101.0))
    assert (done, W1 in state.kids) == ([], False)


def test_ttou_on_a_worker_that_waits_for_its_start_needs_no_process() -> None:
    state, _ = after(running(), ended(W1, 0.1), tick(0.1), ended(W1, 0.2))
    state, done = after(state, asked(signal.SIGTTOU, 0.3), tick(0.5))
    assert (done, W1 in state.kids) == ([], False)


def test_ttin_keeps_a_worker_that_was_about_to_leave() -> None:
    state, done = after(FEWER, asked(signal.SIGTTIN, 100.05, FREE))
    assert (done, len(state.staying)) == ([], 2)
    assert after(state, ended(W1, 100.1, clean=True), tick(100.1))[1] == [Start(W1)]


def test_a_leaving_worker_is_not_replaced() -> None:
    assert after(FEWER, asked(signal.SIGHUP, 100.05))[0].queue == (W0,)
    waiting = after(ASKED, asked(signal.SIGTTOU, 100.5))[0]
    assert waiting.queue == (W0,)


def test_the_heir_of_a_worker_that_shall_leave_is_not_installed() -> None:
    heir = Heir(W1, "starting", 100.0, 130.0)
    state, done = after(running(heir=heir, queue=(F0,)), asked(signal.SIGTTOU, 100.5))
    assert done == [Send(W1, signal.SIGTERM), Send(W1, signal.SIGTERM, heir=True)]
    state, done = after(state, ready(W1, 100.6, heir=True), ended(W1, 100.7, clean=True))
    assert (done, W1 in state.kids) == ([], False)
    assert after(state, heir_ended(W1, 100.8))[1] == [Start(F0, heir=True)]


@pytest.mark.parametrize(("left", "again"), [(NOTHING, False), (Left(hands=(1,)), True)])
def test_a_drain_starts_a_leaving_worker_again_only_for_its_hand(left: Left, again: bool) -> None:
    state, _ = after(FEWER, asked(signal.SIGTERM, 100.05, left))
    state, done = after(state, ended(W1, 100.1, left, clean=True), tick(100.1, left))
    assert done == ([Start(W1, work_off=True)] if again else [])


def test_a_hand_of_a_worker_that_is_gone_goes_to_worker_0_in_a_drain() -> None:
    state, _ = after(FEWER, ended(W1, 100.1, clean=True), asked(signal.SIGTERM, 101.0))
    left = Left(hands=(1,))
    events: list[Any] = [ended(key, 102.0, left, clean=True) for key in (F0, W0)]
    assert Start(W0) in after(state, *events, tick(102.0, left))[1]


def test_more_workers_than_at_the_start_are_replaced_too() -> None:
    state, _ = after(running(), asked(signal.SIGTTIN, 100.0, FREE), tick(100.0), ready(W2, 101.0))
    assert after(state, asked(signal.SIGHUP, 102.0))[0].queue == (W0, W1, W2)

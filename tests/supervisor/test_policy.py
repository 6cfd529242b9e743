"""The policy by table: no process, no clock."""

from __future__ import annotations

import logging
import signal

import pytest

from processors.policy import (
    BACKOFF_FIRST_S,
    BACKOFF_MOST_S,
    MIGRATE_EVERY_S,
    SHORT_LIFE_S,
    STOP_PATIENCE_S,
    begin,
    decide,
)
from processors.tree import (
    Action,
    Announce,
    CloseFailed,
    CloseRing,
    Event,
    Kid,
    Left,
    Migrate,
    Migrated,
    Moved,
    Ready,
    RingLost,
    Say,
    Send,
    Start,
    State,
    Unreachable,
)
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

DRAINING = after(running(), asked(signal.SIGTERM, 100.0))[0]
CLOSED = after(DRAINING, ended(F0, 101.0, clean=True))[0]
STOPPING = after(running(), asked(signal.SIGINT, 100.0))[0]


def test_everybody_is_started_by_the_first_tick() -> None:
    state, done = after(begin(SETTINGS, 5.0, migrated=True), tick(5.0))
    assert done == [Start(F0), Start(W0), Start(W1)]
    assert {kid.phase for kid in state.kids.values()} == {"starting"}


def test_ready_is_announced_once_when_the_last_one_is() -> None:
    state, _ = after(begin(SETTINGS, 0.0, migrated=True), tick(0.0))
    ready = [Ready(now=1.0, left=NOTHING, key=key) for key in (F0, W0, W1)]
    state, done = after(state, *ready[:2])
    assert done == []
    state, done = after(state, ready[2])
    assert done == [Announce()]
    state, done = after(state, ended(W1, 9.0), tick(9.0), ready[2])
    assert done == [Start(W1)]


@pytest.mark.parametrize(
    ("name", "state", "event", "actions"),
    [
        ("a quiet tick does nothing", running(), tick(50.0), []),
        ("TERM asks the fronts to end", running(), asked(signal.SIGTERM, 1.0),
         [Send(F0, signal.SIGTERM)]),
        ("a second TERM changes nothing", DRAINING, asked(signal.SIGTERM, 101.0), []),
        ("the last front's end closes the ring", DRAINING, ended(F0, 101.0), [CloseRing()]),
        ("INT ends the fronts and asks the workers", running(), asked(signal.SIGINT, 1.0),
         [Send(F0, signal.SIGKILL), Send(W0, signal.SIGTERM), Send(W1, signal.SIGTERM)]),
        ("QUIT is INT", running(), asked(signal.SIGQUIT, 1.0),
         [Send(F0, signal.SIGKILL), Send(W0, signal.SIGTERM), Send(W1, signal.SIGTERM)]),
        ("INT while draining stops", CLOSED, asked(signal.SIGINT, 102.0),
         [Send(W0, signal.SIGTERM), Send(W1, signal.SIGTERM)]),
        ("a second INT kills", STOPPING, asked(signal.SIGINT, 100.5),
         [Send(F0, signal.SIGKILL), Send(W0, signal.SIGKILL), Send(W1, signal.SIGKILL)]),
        ("TERM while stopping changes nothing", STOPPING, asked(signal.SIGTERM, 100.5), []),
        ("stopping waits its time", STOPPING, tick(100.0 + STOP_PATIENCE_S - 0.01), []),
        ("stopping past its time kills", STOPPING, tick(100.0 + STOP_PATIENCE_S),
         [Send(F0, signal.SIGKILL), Send(W0, signal.SIGKILL), Send(W1, signal.SIGKILL)]),
        ("a drain waits its time", DRAINING, tick(129.9, Left(waiting=1)), []),
        ("a drain past its time kills", DRAINING, tick(130.0, Left(waiting=1)),
         [Send(F0, signal.SIGKILL), Send(W0, signal.SIGKILL), Send(W1, signal.SIGKILL)]),
        ("a lost ring closes at once and ends the fronts", running(),
         RingLost(now=1.0, left=NOTHING), [Send(F0, signal.SIGTERM), CloseRing()]),
        ("a lost ring while stopping changes nothing", STOPPING,
         RingLost(now=101.0, left=NOTHING), []),
    ],
)  # fmt: skip
def test_what_is_done(name: str, state: State, event: Event, actions: list[Action]) -> None:
    assert after(state, event)[1] == actions, name


@pytest.mark.parametrize("state", [CLOSED, STOPPING, running(phase="killing")])
def test_the_tree_ends_when_nobody_lives_and_nothing_is_left(state: State) -> None:
    alive = state.living()
    state, _ = after(state, *(ended(key, 103.0, clean=True) for key in alive[:-1]))
    assert state.phase != "ended"
    state, _ = after(state, ended(alive[-1], 103.0, clean=True))
    assert state.phase == "ended"


def test_stopping_ends_although_orders_are_left() -> None:
    ends = [ended(key, 101.0, Left(waiting=3, hands=(0,))) for key in STOPPING.living()]
    assert after(STOPPING, *ends)[0].phase == "ended"


def test_an_ended_tree_does_nothing() -> None:
    state, _ = after(STOPPING, *(ended(key, 101.0) for key in STOPPING.living()))
    for event in (tick(500.0), asked(signal.SIGINT, 500.0), asked(signal.SIGTERM, 500.0)):
        assert after(state, event) == (state, [])


# ---- restarts ------------------------------------------------------------------------------------


def test_the_first_death_is_answered_at_once_however_short_the_life() -> None:
    state, done = after(running(since=10.0), ended(W0, 10.1), tick(10.1))
    assert done == [Start(W0)]
    assert state.kids[W0] == Kid("starting", 10.1, failures=1)


def test_short_lives_in_a_row_wait_longer_each_time_up_to_the_most() -> None:
    state, delays, now = running(since=0.0), [], 0.0
    for _ in range(12):
        state, _ = after(state, ended(W0, now + 0.1))
        delays.append(round(state.kids[W0].since - (now + 0.1), 6))
        now = state.kids[W0].since
        state, done = after(state, tick(now))
        assert done == [Start(W0)]
    assert delays[:5] == [0, BACKOFF_FIRST_S, *(BACKOFF_FIRST_S * n for n in (2, 4, 8))]
    assert delays == sorted(delays)
    assert delays[-1] == BACKOFF_MOST_S


def test_a_child_is_not_started_before_its_delay_is_over() -> None:
    state, _ = after(running(), ended(W0, 0.1), tick(0.1), ended(W0, 0.2))
    assert after(state, tick(0.2 + BACKOFF_FIRST_S - 0.01))[1] == []
    assert after(state, tick(0.2 + BACKOFF_FIRST_S))[1] == [Start(W0)]


def test_a_life_of_five_seconds_forgets_the_short_ones() -> None:
    state, _ = after(running(), ended(W0, 0.1), tick(0.1), ended(W0, 0.1 + SHORT_LIFE_S))
    assert state.kids[W0] == Kid("down", 0.1 + SHORT_LIFE_S, failures=0)


def test_a_clean_exit_that_nobody_asked_for_is_restarted_too() -> None:
    assert after(running(), ended(F0, 60.0, clean=True), tick(60.0))[1] == [Start(F0)]


def test_every_death_before_ready_is_told_with_its_delay() -> None:
    state, _ = after(begin(SETTINGS, 0.0, migrated=True), tick(0.0))
    assert said(state, ended(W0, 0.2)) == [
        "worker 0: pid 7 was ended by SIGKILL after 0.2 s, before it was ready; another starts now"
    ]
    state, _ = after(state, ended(W0, 0.2), tick(0.2))
    assert said(state, ended(W0, 0.4))[0].endswith("before it was ready; another starts in 0.25 s")


# ---- draining ------------------------------------------------------------------------------------


def test_a_front_is_not_replaced_while_draining() -> None:
    state, done = after(DRAINING, ended(F0, 101.0), tick(102.0, Left(waiting=1)))
    assert Start(F0) not in done
    assert state.kids[F0].phase == "gone"


def test_a_front_that_waited_for_its_restart_is_given_up_by_a_drain() -> None:
    state, _ = after(running(), ended(F0, 0.1), tick(0.1), ended(F0, 0.2))
    state, done = after(state, asked(signal.SIGTERM, 0.3))
    assert done == [CloseRing()]
    assert state.kids[F0].phase == "gone"


def test_a_worker_that_dies_before_the_ring_is_closed_is_replaced() -> None:
    assert after(DRAINING, ended(W0, 101.0, clean=True), tick(101.0))[1] == [Start(W0)]


@pytest.mark.parametrize(
    ("name", "left", "clean", "started"),
    [
        ("its hand holds something", Left(hands=(0,)), False, [Start(W0)]),
        ("its hand holds something, exit 0 all the same", Left(hands=(0,)), True, [Start(W0)]),
        ("it died and orders wait", Left(waiting=5), False, [Start(W0)]),
        ("it was done, the other one is not", Left(hands=(1,)), True, []),
        ("it died with nothing left for it", Left(hands=(1,)), False, []),
    ],
)
def test_a_worker_of_a_closed_ring_is_replaced_as_long_as_it_is_needed(
    name: str, left: Left, clean: bool, started: list[Action]
) -> None:
    assert after(CLOSED, ended(W0, 110.0, left, clean), tick(110.0, left))[1] == started, name


def test_a_hand_of_no_worker_is_emptied_by_worker_0() -> None:
    left = Left(hands=(7,))
    state, _ = after(CLOSED, ended(W1, 110.0, left, clean=True))
    state, done = after(state, ended(W0, 110.0, left, clean=True), tick(110.0, left))
    assert done == [Start(W0)]
    assert state.phase == "draining"


def test_what_waits_when_all_workers_are_done_starts_one_again() -> None:
    left = Left(waiting=1)
    events = [ended(key, 110.0, left, clean=True) for key in (W0, W1)]
    assert after(CLOSED, *events, tick(110.0, left))[1] == [Start(W0)]


def test_workers_wait_out_their_delay_although_the_ring_is_being_drained() -> None:
    left = Left(hands=(0,))
    state, _ = after(CLOSED, ended(W1, 101.0, left, clean=True), ended(W0, 101.0, left))
    state, _ = after(state, tick(101.0, left), ended(W0, 101.1, left), tick(101.1, left))
    state, done = after(state, ended(W0, 101.2, left), tick(101.3, left))
    assert done == []
    assert after(state, tick(101.2 + BACKOFF_FIRST_S, left))[1] == [Start(W0)]


def test_a_ring_that_could_not_be_closed_is_tried_again_by_the_next_tick() -> None:
    state, done = after(CLOSED, CloseFailed(now=102.0, left=NOTHING))
    assert done == []
    assert after(state, tick(102.0))[1] == [CloseRing()]


def test_a_drain_without_database_ends_at_its_deadline() -> None:
    state, _ = after(begin(SETTINGS, 0.0, migrated=False), tick(0.0))
    left = Left(waiting=4)
    state, _ = after(state, asked(signal.SIGTERM, 1.0), ended(F0, 1.5, left, clean=True))
    state, _ = after(state, tick(30.9, left))
    assert state.phase == "draining"
    assert after(state, tick(31.0, left))[0].phase == "ended"


# ---- the ring's file and the database -----------------------------------------------------------


def test_a_lost_ring_is_drained_to_the_end_and_remembered() -> None:
    state, _ = after(running(), RingLost(now=1.0, left=NOTHING), ended(F0, 2.0, clean=True))
    state, done = after(state, RingLost(now=2.5, left=NOTHING), tick(2.5, Left(waiting=2)))
    assert done == []
    state, _ = after(state, *(ended(key, 3.0, clean=True) for key in (W0, W1)))
    assert (state.phase, state.lost) == ("ended", True)


def test_a_lost_ring_is_an_error_in_the_log() -> None:
    _, actions = decide(running(), RingLost(now=1.0, left=NOTHING))
    assert next(a.level for a in actions if isinstance(a, Say)) == logging.ERROR


def test_without_its_schema_the_database_gets_no_worker() -> None:
    state, done = after(begin(SETTINGS, 0.0, migrated=False), tick(0.0), tick(1.0))
    assert done == [Start(F0)]
    state, done = after(state, tick(MIGRATE_EVERY_S))
    assert done == [Migrate()]
    state, done = after(state, tick(MIGRATE_EVERY_S + 1))
    assert done == []
    assert after(state, tick(2 * MIGRATE_EVERY_S))[1] == [Migrate()]
    done = after(state, Migrated(now=6.5, left=NOTHING), tick(6.5))[1]
    assert done == [Start(W0), Start(W1)]


def test_a_slow_attempt_at_the_database_starves_no_child_and_is_followed_by_a_pause() -> None:
    state, _ = after(begin(SETTINGS, 0.0, migrated=False), tick(0.0), ended(F0, 5.0))
    state, done = after(state, tick(5.0))
    assert done == [Start(F0), Migrate()]
    state, _ = after(state, Unreachable(now=11.0, left=NOTHING))
    assert after(state, tick(11.0 + MIGRATE_EVERY_S - 0.1))[1] == []
    assert after(state, tick(11.0 + MIGRATE_EVERY_S))[1] == [Migrate()]


def test_the_policy_changes_no_state_that_it_was_given() -> None:
    state = running()
    kids = dict(state.kids)
    after(state, ended(W0, 9.0), asked(signal.SIGINT, 9.0))
    assert (state.phase, state.kids) == ("running", kids)


# ---- a ring of other settings -------------------------------------------------------------------


def test_fronts_wait_until_the_orders_of_other_settings_are_moved() -> None:
    state, done = after(begin(SETTINGS, 0.0, migrated=True, moving=True), tick(0.0), tick(1.0))
    assert done == [Start(W0), Start(W1)]
    assert after(state, Moved(now=2.0, left=NOTHING), tick(2.0))[1] == [Start(F0)]


def test_a_drain_closes_the_ring_only_after_the_orders_are_moved_into_it() -> None:
    left = Left(waiting=9)
    state, _ = after(begin(SETTINGS, 0.0, migrated=True, moving=True), tick(0.0))
    state, done = after(state, asked(signal.SIGTERM, 1.0, left), tick(2.0, left))
    assert (done, state.phase) == ([], "draining")
    assert after(state, Moved(now=3.0, left=left))[1] == [CloseRing()]
    assert after(state, tick(31.0, left))[0].phase == "killing"


def test_a_lost_ring_is_closed_although_orders_are_still_to_be_moved() -> None:
    state, _ = after(begin(SETTINGS, 0.0, migrated=True, moving=True), tick(0.0))
    assert after(state, RingLost(now=1.0, left=NOTHING))[1] == [CloseRing()]

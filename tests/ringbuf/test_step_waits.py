"""SIGKILL of those who sleep and of those who should wake them: nobody sleeps on.

Who was to be woken by a killed process looks again by itself within RECHECK_S. That was a rescue,
and is counted, unless the waker came as far as changing the word: then it only seems late.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.ringbuf.conftest import MakeStage
from tests.ringbuf.kit import COMMIT_EVENT, READERS_EVENT, WRITERS_EVENT
from tests.ringbuf.nursery import Actor
from tests.ringbuf.stage import (
    ARM,
    CAPACITY,
    CLOSE,
    ENDLESS,
    SLEEPING_READER,
    SLEEPING_WRITER,
    WAKING_COMMIT,
    WAKING_PUT,
    WAKING_TAKE,
    Hit,
    Scene,
    Stage,
    waiting,
)

RECHECK_S = 0.1
AT_MOST_S = 30 * RECHECK_S  # two busy cores may be slow; whoever is forgotten sleeps for good
# A sleeper that looks by itself in the instant of the kill is not rescued: then once more.
TRIES = 10
KILLED_ASLEEP = ("sleep.announced", "sleep.begun")


def answer_in_time(sleeper: Actor) -> Any:
    began = time.monotonic()
    answers = sleeper.result()
    assert time.monotonic() - began < AT_MOST_S
    return next(answer for answer in answers if answer is not None)


def sleeping_reader(stage: Stage) -> Actor:
    return stage.sleeps(stage.play(["join", 1], ["take", 1, ENDLESS], ["release"]), READERS_EVENT)


def sleeping_writer(stage: Stage, n: int = 60) -> Actor:
    return stage.sleeps(stage.play(["enter"], ["put_one", n, ENDLESS]), WRITERS_EVENT)


def sleeping_front(stage: Stage) -> Actor:
    return stage.sleeps(stage.play(["wait_commits", 0]), COMMIT_EVENT)


# ---- sleepers ---------------------------------------------------------------------------------


def woken(make_stage: MakeStage, prepare: Callable[[Stage], tuple[Actor, Actor]]) -> Any:
    """-> a stage on which the wake reached the victim asleep, and the other sleeper."""
    for _ in range(TRIES):
        stage = make_stage()
        victim, other = prepare(stage)
        assert victim.ended()
        if not victim.outcome.exists():
            stage.dies(victim)
            return stage, other
    pytest.fail("it was never asleep when the wake came")


@pytest.mark.parametrize("step", KILLED_ASLEEP)
def test_a_reader_killed_on_its_way_to_sleep_swallows_no_wake(stage: Stage, step: str) -> None:
    stage.kill(SLEEPING_READER.script, Hit(step))
    other = sleeping_reader(stage)
    stage.put(0)
    assert answer_in_time(other) == waiting([0])
    assert stage.ring.rescues == 0


def test_a_reader_killed_as_it_wakes_swallows_no_wake(make_stage: MakeStage) -> None:
    def prepare(stage: Stage) -> tuple[Actor, Actor]:
        victim = stage.victim(SLEEPING_READER.script, Hit("sleep.woken"))
        other = sleeping_reader(stage)
        stage.sleeps(victim, READERS_EVENT)
        stage.put(0)
        return victim, other

    stage, other = woken(make_stage, prepare)
    assert answer_in_time(other) == waiting([0])
    assert stage.ring.rescues == 0


@pytest.mark.parametrize("step", KILLED_ASLEEP)
def test_a_writer_killed_on_its_way_to_sleep_swallows_no_wake(stage: Stage, step: str) -> None:
    SLEEPING_WRITER.prepare(stage)
    stage.kill(SLEEPING_WRITER.script, Hit(step))
    other = sleeping_writer(stage)
    assert stage.fresh(["join", 0], ["take", 1, 0], ["release"])[1] == waiting([0])
    assert answer_in_time(other) == CAPACITY
    assert stage.everywhere() == [*range(1, CAPACITY), 60]
    assert stage.ring.rescues == 0


def room_for_two(step: str) -> Callable[[Stage], tuple[Actor, Actor]]:
    def prepare(stage: Stage) -> tuple[Actor, Actor]:
        SLEEPING_WRITER.prepare(stage)
        victim = stage.victim(SLEEPING_WRITER.script, Hit(step))
        other = sleeping_writer(stage)
        stage.sleeps(victim, WRITERS_EVENT)
        # For both: who wakes last finds room, too.
        assert stage.fresh(["join", 0], ["take", 2, 0], ["release"])[1] == waiting([0, 1])
        return victim, other

    return prepare


@pytest.mark.parametrize("step", ["sleep.woken", "room.locked"])
def test_a_writer_killed_as_it_wakes_leaves_the_room_to_another(
    make_stage: MakeStage, step: str
) -> None:
    stage, other = woken(make_stage, room_for_two(step))
    assert answer_in_time(other) == CAPACITY
    assert stage.everywhere() == [*range(2, CAPACITY), 60]
    assert stage.fresh(["enter"], ["put", 61])[1] == 1
    assert stage.ring.repairs == (step == "room.locked")


# ---- wakers -----------------------------------------------------------------------------------


def rescued(
    make_stage: MakeStage,
    scene: Scene,
    hit: Hit,
    asleep: Callable[[Stage], Actor],
    answer: Any,
) -> None:
    """The sleeper has what it waits for although its waker was killed, each time; once at least it
    was its own look that found it, which was counted as it should be."""
    countable = hit.step != "signal.cleared"
    for _ in range(TRIES):
        stage = make_stage()
        scene.prepare(stage)
        sleeper = asleep(stage)
        stage.kill(scene.script, hit)
        assert answer_in_time(sleeper) == answer
        assert stage.ring.rescues <= countable
        if stage.ring.rescues == countable:
            return
    pytest.fail("no sleep was ended by its re-check")


def waking(scene: Scene) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("hit", scene.hits(), ids=str)


@waking(WAKING_PUT)
def test_a_put_killed_before_its_wake_is_found_by_the_sleeper(
    make_stage: MakeStage, hit: Hit
) -> None:
    rescued(make_stage, WAKING_PUT, hit, sleeping_reader, waiting([0]))


@waking(WAKING_TAKE)
def test_a_take_killed_before_its_wake_is_found_by_the_sleeper(
    make_stage: MakeStage, hit: Hit
) -> None:
    rescued(make_stage, WAKING_TAKE, hit, sleeping_writer, CAPACITY)


@waking(WAKING_COMMIT)
def test_a_commit_killed_before_its_wake_is_found_by_the_sleeper(
    make_stage: MakeStage, hit: Hit
) -> None:
    rescued(make_stage, WAKING_COMMIT, hit, sleeping_front, 1)


@pytest.mark.parametrize("step", ["unlock.repaired", "unlock.signalled"])
def test_a_repair_killed_before_its_wake_keeps_no_writer_asleep(stage: Stage, step: str) -> None:
    """The take that died held the lock, had published, and had woken nobody."""
    stage.put(*range(CAPACITY))
    sleeper = sleeping_writer(stage)
    stage.kill(WAKING_TAKE.script, Hit("take.published"))
    stage.kill([ARM, ["join", 1]], Hit(step))
    assert answer_in_time(sleeper) == CAPACITY
    assert stage.everywhere() == [*range(CAPACITY), 60]


# ---- close ------------------------------------------------------------------------------------


@pytest.mark.parametrize("hit", CLOSE.hits(), ids=str)
def test_a_killed_close_is_seen_by_sleeping_readers_or_never_was(stage: Stage, hit: Hit) -> None:
    sleeper = sleeping_reader(stage)
    stage.kill(CLOSE.script, hit)
    assert stage.ring.closed == (hit.step != "close.locked")
    if not stage.ring.closed:
        assert stage.fresh(["enter"], ["put", 0])[1] == 1
        assert answer_in_time(sleeper) == waiting([0])
    else:
        assert answer_in_time(sleeper) == "closed"
        assert stage.fresh(["enter"], ["put", 0])[1] == "closed"
    stage.ring.close()
    stage.ring.reopen()
    stage.both_sides_work()
    assert stage.ring.repairs == (CLOSE.lock(hit) == "writers")


@pytest.mark.parametrize("hit", CLOSE.hits(), ids=str)
def test_a_killed_close_is_seen_by_pending_puts_or_never_was(stage: Stage, hit: Hit) -> None:
    stage.put(*range(CAPACITY))
    sleeper = sleeping_writer(stage)
    stage.kill(CLOSE.script, hit)
    closed = stage.ring.closed
    if closed:
        assert answer_in_time(sleeper) == "closed"
    taken = stage.fresh(["join", 0], ["take_all"], ["release"])[1]
    if not closed:
        assert answer_in_time(sleeper) == CAPACITY
        stage.ring.close()
        taken += stage.fresh(["join", 0], ["take_all"], ["release"])[1]
    numbers = [*range(CAPACITY)] + ([] if closed else [60])
    assert [n for n, _, _ in taken] == numbers
    assert stage.ring.drained

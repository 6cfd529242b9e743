"""SIGSTOP at every step that the kernel names: nobody steals, callers time out, all goes on."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from ringbuf import Closed, Empty, Full
from tests.ringbuf.conftest import MakeStage
from tests.ringbuf.kit import COMMIT_EVENT, READERS_EVENT, WRITERS_EVENT, message
from tests.ringbuf.nursery import Actor
from tests.ringbuf.stage import (
    ADOPT,
    CAPACITY,
    CLOSE,
    ENDLESS,
    ENTER,
    LEAVE,
    PUT,
    RELEASE,
    REPAIR,
    REPAIR_PUT,
    SLEEPING_READER,
    SLEEPING_WRITER,
    TAKE,
    WAKING_COMMIT,
    WAKING_PUT,
    WAKING_TAKE,
    Hit,
    Scene,
    Stage,
)

SOON_S = 0.02
IN_TIME_S = 3.0
TRIES = 10
OWN_HAND = 2
BYSTANDER = 70  # the number of what is put while the victim stands


class Bystander:
    """This process, in the ring before the victim, with a place on both sides."""

    def __init__(self, stage: Stage) -> None:
        self.ring = stage.ring
        self.took: list[int] = []
        self.writer = self.ring.writer()
        self.reader = self.ring.reader(OWN_HAND)

    def finds_no_room(self) -> None:
        """Full, although there is room: the lock can't be had."""
        before = self.ring.tail
        assert self.ring.depth < CAPACITY
        assert self.writer.try_put(*message(BYSTANDER)) is None
        assert self.writer.put_many([b""], [bytes(16)]) == 0
        with pytest.raises(Full):
            self.writer.put(*message(BYSTANDER), timeout=SOON_S)
        assert self.ring.tail == before

    def finds_nothing(self) -> None:
        """Empty, although something waits."""
        before = self.ring.head
        assert self.ring.depth
        with pytest.raises(Empty):
            self.reader.take(timeout=SOON_S)
        assert self.ring.head == before

    def takes(self) -> None:
        if self.ring.depth:
            items = self.reader.take(1)
            self.took.append(items[0].sequence)
            self.reader.release(items)

    def puts(self) -> None:
        if self.ring.closed:
            with pytest.raises(Closed):
                self.writer.try_put(*message(BYSTANDER))
        else:
            assert self.writer.try_put(*message(BYSTANDER)) is not None

    def looks_around(self, lock: str) -> None:
        """Both sides, of which that one stands still."""
        self.finds_nothing() if lock == "readers" else self.takes()
        self.finds_no_room() if lock == "writers" else self.puts()

    def leave(self) -> None:
        self.writer.close()
        self.reader.close()


def set_the_scene(stage: Stage, scene: Scene, hit: Hit) -> tuple[Bystander, Actor]:
    others = Bystander(stage)
    scene.prepare(stage)
    return others, stage.victim(scene.script, hit, signal.SIGSTOP)


def released(scene: Scene) -> list[int]:
    return [0, 1, 2] if scene is RELEASE else []


def go_on(stage: Stage, scene: Scene, others: Bystander, victim: Actor) -> list[Any]:
    """-> the victim's answers. Every item that was ever put is found once, and both sides work."""
    victim.send(signal.SIGCONT)
    answers: list[Any] = victim.result()
    look = stage.ring.snapshot()
    there = [item.sequence for item in [*look.waiting, *(item for _, item in look.held)]]
    assert sorted([*there, *others.took, *released(scene)]) == list(range(stage.ring.tail))
    others.leave()
    stage.ring.reopen()
    empty: list[list[Any]] = [["take_all"], ["release"], ["leave"]]
    stage.fresh(*[word for index in range(3) for word in [["join", index], *empty]])
    stage.both_sides_work()
    return answers


# ---- at work ----------------------------------------------------------------------------------

WORK = (PUT, TAKE, RELEASE, ADOPT, LEAVE, ENTER, REPAIR, REPAIR_PUT, CLOSE)


def hits_of(*scenes: Scene) -> pytest.MarkDecorator:
    """Each step once; of those that a batch passes for each item, the second passing."""
    cases = [
        (scene, Hit(step, min(2, times))) for scene in scenes for step, times, _ in scene.steps
    ]
    names = [f"{scene.name}-{hit}" for scene, hit in cases]
    return pytest.mark.parametrize(("scene", "hit"), cases, ids=names)


@hits_of(*WORK)
def test_whoever_stands_is_not_robbed_and_goes_on(stage: Stage, scene: Scene, hit: Hit) -> None:
    others, victim = set_the_scene(stage, scene, hit)
    stage.stops(victim)
    repairs, cleared = stage.ring.repairs, stage.ring.mapping.cleared
    others.looks_around(scene.lock(hit))
    assert (stage.ring.repairs, stage.ring.mapping.cleared) == (repairs, cleared)
    answers = go_on(stage, scene, others, victim)
    if scene is PUT:
        assert answers[-1] == 3
    if scene is TAKE:
        assert len(answers[-1]) == (2 if hit.step == "take.begun" else 3)
    repaired = scene in (REPAIR, REPAIR_PUT)  # of the one that died before
    assert stage.ring.repairs == repaired
    assert stage.ring.mapping.cleared == (3 if scene is REPAIR else 0)


# ---- asleep -----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["sleep.announced", "sleep.begun"])
def test_a_reader_that_stands_on_its_way_to_sleep_finds_what_came_meanwhile(
    stage: Stage, step: str
) -> None:
    others, victim = set_the_scene(stage, SLEEPING_READER, Hit(step))
    stage.stops(victim)
    others.looks_around("none")
    assert go_on(stage, SLEEPING_READER, others, victim)[-1] == [[BYSTANDER, 0, 0]]


@pytest.mark.parametrize("step", ["sleep.announced", "sleep.begun"])
def test_a_writer_that_stands_on_its_way_to_sleep_finds_the_room_that_was_made(
    stage: Stage, step: str
) -> None:
    others, victim = set_the_scene(stage, SLEEPING_WRITER, Hit(step))
    stage.stops(victim)
    others.takes()
    assert go_on(stage, SLEEPING_WRITER, others, victim)[-1] == CAPACITY


def woken(
    make_stage: MakeStage, scene: Scene, event: int, wake: Callable[[Bystander], None]
) -> tuple[Stage, Bystander, Actor]:
    """A victim that stands where the wake found it asleep."""
    for _ in range(TRIES):
        stage = make_stage()
        others, victim = set_the_scene(stage, scene, Hit("sleep.woken"))
        stage.sleeps(victim, event)
        wake(others)
        if not stage.ends_or_stops(victim):
            stage.was_hit()
            return stage, others, victim
        others.leave()
    pytest.fail("it was never asleep when the wake came")


def test_a_woken_reader_that_stands_holds_up_no_other(make_stage: MakeStage) -> None:
    stage, others, victim = woken(make_stage, SLEEPING_READER, READERS_EVENT, Bystander.puts)
    others.looks_around("none")
    assert go_on(stage, SLEEPING_READER, others, victim)[-1] == [[BYSTANDER, 1, 0]]


def test_a_woken_writer_that_stands_holds_up_no_other(make_stage: MakeStage) -> None:
    stage, others, victim = woken(make_stage, SLEEPING_WRITER, WRITERS_EVENT, Bystander.takes)
    others.puts()
    others.takes()
    assert go_on(stage, SLEEPING_WRITER, others, victim)[-1] == CAPACITY + 1


def test_a_writer_that_stands_with_the_lock_looking_for_room_is_not_robbed(stage: Stage) -> None:
    others, victim = set_the_scene(stage, SLEEPING_WRITER, Hit("room.locked"))
    stage.sleeps(victim, WRITERS_EVENT)
    others.takes()
    stage.stops(victim)
    others.looks_around("writers")
    assert go_on(stage, SLEEPING_WRITER, others, victim)[-1] == CAPACITY
    assert stage.ring.repairs == 0


# ---- wakers -----------------------------------------------------------------------------------

SLEEPERS: dict[str, tuple[list[list[Any]], int]] = {
    WAKING_PUT.name: ([["join", 1], ["take", 1, ENDLESS], ["release"]], READERS_EVENT),
    WAKING_TAKE.name: ([["enter"], ["put_one", 60, ENDLESS]], WRITERS_EVENT),
    WAKING_COMMIT.name: ([["wait_commits", 0]], COMMIT_EVENT),
}


@hits_of(WAKING_PUT, WAKING_TAKE, WAKING_COMMIT)
def test_a_waker_that_stands_keeps_nobody_asleep(stage: Stage, scene: Scene, hit: Hit) -> None:
    script, event = SLEEPERS[scene.name]
    scene.prepare(stage)
    sleeper = stage.sleeps(stage.play(*script), event)
    waker = stage.victim(scene.script, hit, signal.SIGSTOP)
    stage.stops(waker)
    began = time.monotonic()
    sleeper.result()
    assert time.monotonic() - began < IN_TIME_S
    waker.send(signal.SIGCONT)
    waker.result()
    assert stage.ring.repairs == 0

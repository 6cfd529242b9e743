"""The scenes in which a step of the kernel ends or stops its process, and what they leave behind.

A scene prepares a ring and gives the victim's script, in which ARM stands before the deed. Which of
the two locks the victim holds at a step, and whether the step comes before or after the one store
that publishes, is said here, once, for all tests.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ringbuf import Ring
from tests.ringbuf.kit import key, message, number, somebody_sleeps, state, wait_for
from tests.ringbuf.nursery import Actor, Nursery
from tests.ringbuf.sessions import Script, Seen

CAPACITY = 8
ARM: list[Any] = ["arm"]


@dataclass(frozen=True)
class Hit:
    """The nth passing of a step."""

    step: str
    nth: int = 1

    def __str__(self) -> str:
        return f"{self.step}:{self.nth}"


def armed(script: Script, hit: Hit, sign: int) -> Script:
    assert script.count(ARM) == 1
    order = ["arm", hit.step, hit.nth, int(sign)]
    return [order if word == ARM else word for word in script]


class Stage:
    """A ring, and actors on it. Nobody of the test's own process takes part unless it says so."""

    def __init__(self, ring: Ring, nursery: Nursery, steps_hit: set[tuple[str, int]]) -> None:
        assert ring.path is not None
        self.ring, self.path, self.nursery = ring, ring.path, nursery
        self.hits: list[str] = []
        self.sign = 0
        self.steps_hit = steps_hit  # by any test so far, with the signal

    def put(self, *numbers: int) -> None:
        with self.ring.writer() as writer:
            for n in numbers:
                assert writer.try_put(*message(n)) is not None

    def play(self, *script: list[Any]) -> Actor:
        return self.nursery.start("session", self.path, list(script))

    def fresh(self, *script: list[Any]) -> list[Any]:
        """What a new process is answered, word by word."""
        answers: list[Any] = self.play(*script).result()
        return answers

    def victim(self, script: Script, hit: Hit, sign: int = signal.SIGKILL) -> Actor:
        self.hits.append(hit.step)
        self.sign = sign
        return self.play(*armed(script, hit, sign))

    def dies(self, actor: Actor) -> None:
        assert actor.ended(), f"it lives on: {self.hits}"
        assert not actor.outcome.exists(), f"{self.hits} not hit: {actor.outcome.read_text()}"
        self.was_hit()

    def kill(self, script: Script, hit: Hit) -> None:
        """Somebody does this and dies at that step."""
        self.dies(self.victim(script, hit))

    def ends_or_stops(self, actor: Actor) -> bool:
        """Waits for either -> whether it has ended."""
        wait_for(lambda: actor.ended(0) or state(actor.pid) == "T", f"{self.hits} stops it")
        return actor.ended(0)

    def stops(self, actor: Actor) -> None:
        ended = self.ends_or_stops(actor)
        assert not ended, f"{self.hits} not hit: {actor.outcome.read_text()}"
        self.was_hit()

    def was_hit(self) -> None:
        log = Path(f"{self.path}.steps")
        assert log.exists(), f"{self.hits} not hit"
        assert log.read_text().split() == self.hits
        self.steps_hit.add((self.hits[-1], self.sign))

    def sleeps(self, actor: Actor, event: int) -> Actor:
        wait_for(lambda: somebody_sleeps(self.ring, event), "announced")
        wait_for(lambda: actor.ended(0) or state(actor.pid) == "S", "asleep")
        return actor

    def everywhere(self) -> list[int]:
        """The numbers of what waits and what is held, each as often as an onlooker sees it."""
        look = self.ring.snapshot()
        return sorted(map(number, [*look.waiting, *(item for _, item in look.held)]))

    def finds(self, numbers: Iterable[int]) -> bool:
        return all(self.ring.find(key(n)) for n in numbers)

    def both_sides_work(self) -> None:
        """From an empty ring: new processes fill it to its last slot and empty it again."""
        assert self.ring.depth == 0
        numbers = list(range(100, 100 + CAPACITY + 1))
        tail = self.ring.tail
        assert self.fresh(["enter"], ["put", *numbers])[1] == CAPACITY
        taken = self.fresh(["join", 1], ["take_all"], ["release"])[1]
        assert taken == [[n, tail + i, 0] for i, n in enumerate(numbers[:CAPACITY])]
        assert self.ring.depth == 0
        assert not any(map(self.ring.held_count, range(self.ring.readers)))


def waiting(numbers: Iterable[int]) -> Seen:
    """As an actor sees them; in these scenes a number is its sequence."""
    return [[n, n, 0] for n in numbers]


def again(numbers: Iterable[int]) -> Seen:
    return [[n, n, 1] for n in numbers]


@dataclass(frozen=True)
class Scene:
    """`steps`: (name, how often the victim passes it, lock that it holds there)."""

    name: str
    prepare: Callable[[Stage], None]
    script: Script
    steps: tuple[tuple[str, int, str], ...]

    def hits(self) -> list[Hit]:
        return [Hit(step, nth + 1) for step, times, _ in self.steps for nth in range(times)]

    def lock(self, hit: Hit) -> str:
        return next(lock for step, _, lock in self.steps if step == hit.step)

    def from_here_on(self, step: str) -> set[str]:
        names = [name for name, _, _ in self.steps]
        return set(names[names.index(step) :])


def nothing(_stage: Stage) -> None:
    pass


def put_to(count: int) -> Callable[[Stage], None]:
    return lambda stage: stage.put(*range(count))


def half_taken(stage: Stage) -> None:
    """0 is in hand 0; 1, 2, 3 were copied there, but not yet published: they still wait."""
    stage.put(*range(6))
    stage.kill(TAKE.script, Hit("take.publishing"))


def half_put(stage: Stage) -> None:
    stage.put(0, 1)
    stage.kill(PUT.script, Hit("put.copied", 2))


def left_in_hand(stage: Stage) -> None:
    """0, 1, 2 are in hand 0, whose owner is dead; 3, 4, 5 wait."""
    stage.put(*range(6))
    assert stage.play(["join", 0], ["take", 3, 0], ["die"]).ended()


PUT = Scene(
    "put",
    put_to(2),
    [["enter"], ["put", 2], ARM, ["put", 3, 4, 5]],
    (
        ("put.begun", 1, "none"),
        ("put.locked", 1, "writers"),
        ("put.filling", 3, "writers"),
        ("put.unstamped", 3, "writers"),
        ("put.half_copied", 3, "writers"),
        ("put.copied", 3, "writers"),
        ("put.stamped", 3, "writers"),
        ("put.publishing", 1, "writers"),
        ("put.published", 1, "writers"),
        ("put.unlocked", 1, "none"),
    ),
)
TAKE = Scene(
    "take",
    put_to(6),
    [["join", 0], ["take", 1, 0], ARM, ["take", 3, 0]],
    (
        ("take.begun", 1, "none"),
        ("take.locked", 1, "readers"),
        ("take.named", 1, "readers"),
        ("take.half_copied", 3, "readers"),
        ("take.copied", 3, "readers"),
        ("take.stamped", 3, "readers"),
        ("take.publishing", 1, "readers"),
        ("take.published", 1, "readers"),
        ("take.disowned", 1, "readers"),
        ("take.unlocked", 1, "none"),
    ),
)
RELEASE = Scene(
    "release",
    put_to(6),
    [["join", 0], ["take", 3, 0], ARM, ["release"]],
    (("release.begun", 3, "none"), ("release.freed", 3, "none")),
)
ADOPT = Scene(
    "adopt",
    left_in_hand,
    [ARM, ["join", 0], ["take", 3, 0]],
    (
        ("entry.swapping", 1, "none"),
        ("entry.swapped", 1, "none"),
        ("adopt.locked", 1, "readers"),
        ("adopt.unlocked", 1, "none"),
        ("adopt.counted", 3, "none"),
    ),
)
LEAVE = Scene(
    "leave",
    put_to(6),
    [["join", 0], ["take", 3, 0], ARM, ["leave"]],
    (("entry.swapping", 1, "none"), ("entry.swapped", 1, "none")),
)
ENTER = Scene(
    "enter",
    put_to(6),
    [ARM, ["enter"], ["put", 6]],
    (("entry.swapping", 1, "none"), ("entry.swapped", 1, "none")),
)
REPAIR = Scene(
    "repair",
    half_taken,
    [ARM, ["join", 1], ["take", 2, 0]],
    (
        ("repair.begun", 1, "readers"),
        ("repair.found", 3, "readers"),
        ("repair.cleared", 3, "readers"),
        ("repair.disowned", 1, "readers"),
        ("repair.counted", 1, "readers"),
        ("repair.consistent", 1, "readers"),
        ("unlock.repaired", 1, "none"),
        ("unlock.signalled", 1, "none"),
    ),
)
REPAIR_PUT = Scene(
    "repair of put",
    half_put,
    [["enter"], ARM, ["put", 3]],
    (
        ("repair.begun", 1, "writers"),
        ("repair.disowned", 1, "writers"),
        ("repair.counted", 1, "writers"),
        ("repair.consistent", 1, "writers"),
        ("unlock.repaired", 1, "none"),
        ("unlock.signalled", 1, "none"),
    ),
)
CLOSE = Scene(
    "close",
    put_to(2),
    [ARM, ["close"]],
    (
        ("close.locked", 1, "writers"),
        ("close.stored", 1, "writers"),
        ("close.unlocked", 1, "none"),
        ("close.signalled", 1, "none"),
    ),
)
ENDLESS = None
SLEEPING_READER = Scene(
    "sleeping reader",
    nothing,
    [["join", 0], ARM, ["take", 1, ENDLESS]],
    (("sleep.announced", 1, "none"), ("sleep.begun", 1, "none"), ("sleep.woken", 1, "none")),
)
SLEEPING_WRITER = Scene(
    "sleeping writer",
    put_to(CAPACITY),
    [["enter"], ARM, ["put_one", 50, ENDLESS]],
    (*SLEEPING_READER.steps, ("room.locked", 1, "writers")),
)
# What wakes sleepers, each with one that sleeps when it comes.
WAKING_PUT = Scene(
    "waking put",
    nothing,
    [["enter"], ARM, ["put", 0]],
    (("put.unlocked", 1, "none"), ("signal.seen", 1, "none"), ("signal.cleared", 1, "none")),
)
WAKING_TAKE = Scene(
    "waking take",
    put_to(CAPACITY),
    [["join", 0], ARM, ["take", 1, 0]],
    (("take.unlocked", 1, "none"), ("signal.seen", 1, "none"), ("signal.cleared", 1, "none")),
)
WAKING_COMMIT = Scene(
    "waking commit",
    nothing,
    [ARM, ["bump"]],
    (("bump.counted", 1, "none"), ("signal.seen", 1, "none"), ("signal.cleared", 1, "none")),
)
SCENES = (
    PUT,
    TAKE,
    RELEASE,
    ADOPT,
    LEAVE,
    ENTER,
    REPAIR,
    REPAIR_PUT,
    CLOSE,
    SLEEPING_READER,
    SLEEPING_WRITER,
    WAKING_PUT,
    WAKING_TAKE,
    WAKING_COMMIT,
)

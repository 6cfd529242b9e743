"""What the supervisor does when: `decide(state, event) -> (state, actions)`, a pure function.

A child (a front or a worker, with an index) is `down` until its time comes, `starting`, `ready`, or
`gone` for good. The tree is

    running    all children are wanted; who dies is started again
    draining   no more orders: fronts end, then the ring is closed, then workers work it off
    stopping   fronts killed, workers finish the batch that they are in
    killing    everybody killed, waiting for the kernel to say so
    ended      nobody lives; nothing is decided any more

    phase     event             next      actions
    --------  ----------------  --------  --------------------------------------------------------
    running   child ended       running   start again: at once, or after a delay (below)
    running   TERM              draining  TERM to fronts; deadline = now + --graceful-timeout
    running   ring file lost    draining  as TERM, and close the ring now; exit code 4
    running,  INT, QUIT         stopping  KILL to fronts, TERM to workers; deadline = now + 2 s
    draining
    draining  front ended       draining  none
    draining  no front lives    draining  close the ring: every later put raises Closed
    draining  worker ended      draining  start again while the ring is open, or it died and orders
                                          wait, or its hand holds something
    draining  nobody lives and  ended     none
              the ring is empty
    draining  deadline          killing   KILL to all
    stopping  INT, QUIT, or     killing   KILL to all
              deadline
    stopping, nobody lives      ended     none
    killing
    others    ring file lost    the same  none; exit code 4

Invariants. An index has at most one process: it is started again only after the kernel said that
the last one is gone, for its hand goes with it. A child that lived 5 s or more is started again at
once; one that lived less, at once the first time, then after a delay that doubles up to 10 s.
Workers are not started before the database has its schema; fronts are: orders wait in the ring.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from processors.child import Role
from processors.parent import Key
from processors.settings import Settings

SHORT_LIFE_S = 5.0
BACKOFF_FIRST_S = 0.25
BACKOFF_MOST_S = 10.0
STOP_PATIENCE_S = 2.0
MIGRATE_EVERY_S = 5.0

# ---- what there is to know ----------------------------------------------------------------------


class Left(Struct, frozen=True):
    """What the ring holds: how many wait, and the indexes of hands that are not empty."""

    waiting: int = 0
    hands: tuple[int, ...] = ()

    @property
    def empty(self) -> bool:
        return not self.waiting and not self.hands


class Kid(Struct, frozen=True):
    """since: when it was started; while `down`, when it is to be started (monotonic seconds)."""

    phase: Literal["down", "starting", "ready", "gone"]
    since: float
    failures: int = 0  # short lives in a row

    @property
    def lives(self) -> bool:
        return self.phase in ("starting", "ready")


class State(Struct, frozen=True):
    kids: dict[Key, Kid]
    workers: int
    graceful_timeout_s: float
    phase: Literal["running", "draining", "stopping", "killing", "ended"] = "running"
    deadline: float | None = None
    closed: bool = False  # the ring, as far as was asked
    lost: bool = False  # the ring's file
    migrated: bool = True
    migrate_at: float = 0.0
    announced: bool = False

    def living(self, role: Role | None = None) -> list[Key]:
        return [key for key, kid in self.kids.items() if kid.lives and role in (None, key[0])]

    def with_kid(self, key: Key, kid: Kid) -> State:
        return replace(self, kids={**self.kids, key: kid})


class Event(Struct, frozen=True):
    """left: looked at while draining, for nothing else needs it."""

    now: float
    left: Left


class Tick(Event, frozen=True):
    """Time has passed."""


class Ready(Event, frozen=True):
    key: Key


class Ended(Event, frozen=True):
    """how: for the log, as in `pid 7 was ended by SIGKILL`. clean: exit code 0."""

    key: Key
    how: str
    clean: bool


class Asked(Event, frozen=True):
    number: int


class RingLost(Event, frozen=True):
    """The ring's path is no longer the file that is mapped."""


class CloseFailed(Event, frozen=True):
    """Somebody holds the writers' lock and is stopped: to be tried again."""


class Migrated(Event, frozen=True):
    """The database has its schema."""


class Unreachable(Event, frozen=True):
    """The database could not be given its schema; the attempt may have taken seconds."""


class Start(Struct, frozen=True):
    key: Key


class Send(Struct, frozen=True):
    key: Key
    number: int


class CloseRing(Struct, frozen=True):
    pass


class Migrate(Struct, frozen=True):
    pass


class Announce(Struct, frozen=True):
    pass


class Say(Struct, frozen=True):
    level: int
    text: str


Action = Start | Send | CloseRing | Migrate | Announce | Say
Decision = tuple[State, list[Action]]


# ---- deciding ------------------------------------------------------------------------------------


def begin(settings: Settings, now: float, migrated: bool) -> State:
    fronts: list[Key] = [("front", index) for index in range(settings.http.fronts)]
    workers: list[Key] = [("worker", index) for index in range(settings.work.workers)]
    return State(
        kids={key: Kid("down", now) for key in fronts + workers},
        workers=settings.work.workers,
        graceful_timeout_s=settings.graceful_timeout_s,
        migrated=migrated,
        migrate_at=now + MIGRATE_EVERY_S,
    )


def decide(state: State, event: Event) -> Decision:
    state, actions = answer(state, event)
    if isinstance(event, CloseFailed):  # the next tick closes it
        return state, actions
    state, more = settle(state, event)
    return state, actions + more


def answer(state: State, event: Event) -> Decision:
    decision: Decision = ANSWERS[type(event)](state, event)
    return decision


def settle(state: State, event: Event) -> Decision:
    """What follows from where the event left the tree: the ring is closed, the tree has ended."""
    actions: list[Action] = []
    if state.phase == "draining" and not state.closed and (state.lost or not state.living("front")):
        state, actions = replace(state, closed=True), [CloseRing()]
    if state.phase == "draining" and state.closed and not event.left.empty:
        state = refill(state, event)
    done = state.phase in ("stopping", "killing") or (state.closed and event.left.empty)
    if state.phase not in ("running", "ended") and done and not state.living():
        state = replace(state, phase="ended")
    return state, actions


def refill(state: State, event: Event) -> State:
    """A worker for every hand that holds something, and one at least for what waits."""
    wanted = {index if index < state.workers else 0 for index in event.left.hands}
    pending = [key for key, kid in state.kids.items() if key[0] == "worker" and kid.phase != "gone"]
    if event.left.waiting and not pending:
        wanted.add(0)
    for index in wanted:
        kid = state.kids["worker", index]
        if kid.phase == "gone":
            state = state.with_kid(("worker", index), next_life(kid, event.now))
    return state


def on_tick(state: State, event: Tick) -> Decision:
    now = event.now
    if state.deadline is not None and now >= state.deadline and state.phase != "killing":
        return kill(state)
    if state.phase not in ("running", "draining"):
        return state, []
    actions: list[Action] = []
    for key, kid in state.kids.items():
        if kid.phase == "down" and now >= kid.since and (key[0] == "front" or state.migrated):
            state = state.with_kid(key, replace(kid, phase="starting", since=now))
            actions.append(Start(key))
    if not state.migrated and now >= state.migrate_at:
        return later(state, now), [*actions, Migrate()]
    return state, actions


def on_ready(state: State, event: Ready) -> Decision:
    state = state.with_kid(event.key, replace(state.kids[event.key], phase="ready"))
    if state.announced:
        return state, [Say(logging.INFO, f"{name(event.key)} is ready")]
    if state.phase == "running" and all(kid.phase == "ready" for kid in state.kids.values()):
        return replace(state, announced=True), [Announce()]
    return state, []


def on_ended(state: State, event: Ended) -> Decision:
    kid = state.kids[event.key]
    if not wanted_again(state, event):
        level = logging.INFO if event.clean else logging.WARNING
        text = f"{name(event.key)}: {event.how}"
        return state.with_kid(event.key, replace(kid, phase="gone")), [Say(level, text)]
    life = next_life(kid, event.now)
    delay = life.since - event.now
    when = f"in {delay:g} s" if delay else "now"
    text = f"{name(event.key)}: {event.how} after {event.now - kid.since:.1f} s"
    text += "" if kid.phase == "ready" else ", before it was ready"
    return state.with_kid(event.key, life), [Say(logging.WARNING, f"{text}; another starts {when}")]


def wanted_again(state: State, event: Ended) -> bool:
    if state.phase == "running":
        return True
    if state.phase != "draining" or event.key[0] == "front":
        return False
    holds = event.key[1] in event.left.hands
    return not state.closed or holds or (not event.clean and event.left.waiting > 0)


def next_life(kid: Kid, now: float) -> Kid:
    short = now - kid.since < SHORT_LIFE_S
    failures = kid.failures + 1 if short else 0
    delay = BACKOFF_FIRST_S * 2.0 ** min(failures - 2, 30) if failures > 1 else 0.0
    return Kid("down", now + min(delay, BACKOFF_MOST_S), failures)


def on_asked(state: State, event: Asked) -> Decision:
    if event.number != signal.SIGTERM:
        return stop(state, event.now)
    return drain(state, event.now) if state.phase == "running" else (state, [])


def on_close_failed(state: State, _event: CloseFailed) -> Decision:
    return replace(state, closed=False), []


def on_unreachable(state: State, event: Unreachable) -> Decision:
    return later(state, event.now), []


def later(state: State, now: float) -> State:
    return replace(state, migrate_at=now + MIGRATE_EVERY_S)


def on_migrated(state: State, _event: Migrated) -> Decision:
    return replace(state, migrated=True), [Say(logging.INFO, "the database is ready")]


def drain(state: State, now: float) -> Decision:
    actions: list[Action] = [Send(key, signal.SIGTERM) for key in state.living("front")]
    state = without_down(state, "front")
    state = replace(state, phase="draining", deadline=now + state.graceful_timeout_s)
    limit = f"at most {state.graceful_timeout_s:g} s (--graceful-timeout)"
    return state, [Say(logging.INFO, f"draining: no more orders are taken; {limit}"), *actions]


def stop(state: State, now: float) -> Decision:
    if state.phase in ("killing", "ended"):
        return state, []
    if state.phase == "stopping":
        return kill(state)
    actions: list[Action] = [Send(key, signal.SIGKILL) for key in state.living("front")]
    actions += [Send(key, signal.SIGTERM) for key in state.living("worker")]
    state = without_down(without_down(state, "front"), "worker")
    state = replace(state, phase="stopping", deadline=now + STOP_PATIENCE_S)
    return state, [Say(logging.INFO, "stopping: workers finish their batch"), *actions]


def kill(state: State) -> Decision:
    actions: list[Action] = [Send(key, signal.SIGKILL) for key in state.living()]
    if actions:
        killed = ", ".join(name(key) for key in state.living())
        actions.insert(0, Say(logging.WARNING, f"killing {killed}"))
    return replace(without_down(without_down(state, "front"), "worker"), phase="killing"), actions


def on_ring_lost(state: State, event: RingLost) -> Decision:
    if state.lost:
        return state, []
    say = Say(logging.ERROR, "the ring's file is gone or another: no more orders are taken")
    state = replace(state, lost=True)
    if state.phase != "running":
        return state, [say]
    state, actions = drain(state, event.now)
    return state, [say, *actions]


def without_down(state: State, role: Role) -> State:
    gone = {
        key: replace(kid, phase="gone")
        for key, kid in state.kids.items()
        if key[0] == role and kid.phase == "down"
    }
    return replace(state, kids={**state.kids, **gone})


def name(key: Key) -> str:
    return f"{key[0]} {key[1]}"


ANSWERS: dict[type[Event], Callable[[State, Any], Decision]] = {
    Tick: on_tick,
    Ready: on_ready,
    Ended: on_ended,
    Asked: on_asked,
    RingLost: on_ring_lost,
    CloseFailed: on_close_failed,
    Migrated: on_migrated,
    Unreachable: on_unreachable,
}

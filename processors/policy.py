"""What the supervisor does when: `decide(state, event) -> (state, actions)`, a pure function.

A child (a front or a worker, with an index, or the relay) is `down` until its time comes,
`starting`, `ready`, or `gone` for good. The tree is

    running    all children are wanted; who dies is started again
    draining   no more orders: fronts end, then the ring is closed, then workers work it off
    stopping   fronts killed, workers finish the batch that they are in
    killing    everybody killed, waiting for the kernel to say so
    ended      nobody lives; nothing is decided any more

    phase     event             next      actions
    --------  ----------------  --------  --------------------------------------------------------
    running   child ended       running   start again: at once, or after a delay (below)
    running   HUP, TTIN, TTOU   running   below
    running   TERM              draining  TERM to fronts and an heir; deadline = now +
                                          --graceful-timeout
    running   ring file lost    draining  as TERM, and close the ring now; exit code 4
    running,  INT, QUIT         stopping  KILL to fronts and an heir, TERM to workers and the
    draining                              relay; deadline = now + 2 s
    draining  front ended       draining  none
    draining  no front lives    draining  close the ring: every later put raises Closed; not before
                                          all is moved into it
    draining  worker ended      draining  start again while the ring is open, or it died and orders
                                          wait, or its hand holds something
    draining  the ring is       draining  TERM to the relay, once nobody else lives
              closed and empty
    draining  nobody lives and  ended     none
              the ring is empty
    draining  deadline          killing   KILL to all
    running,  a child ended in  stopping  as INT; exit code 4
    draining  doubt of the disk
    stopping  INT, QUIT, or     killing   KILL to all
              deadline
    stopping, nobody lives      ended     none
    killing
    others    ring file lost,   the same  none; exit code 4
              or doubt
    others    HUP, TTIN, TTOU   the same  none

HUP puts everybody in a queue; one at a time gets an heir, a second process for the same place:

    heir      event             next      actions
    --------  ----------------  --------  --------------------------------------------------------
    none      in the queue      starting  start the heir beside the one at work
    starting  heir ready        ready     the one at work is asked to end: USR1 to a front, which
                                          accepts no more and answers whatever comes on its open
                                          connections; TERM to a worker
    starting, the one at work   none      the heir is the child from now on; a worker is given the
    ready     ended, asked or             index (so it waited at the gate, with all imports done)
              not
    starting  heir ended        none      say so, empty the queue: what can't start replaces nobody
    ready     heir ended        starting  start another heir
    starting  30 s              starting  KILL to the heir
    ready     --graceful-       ready     KILL to the one at work
              timeout + 15 s
    any       HUP               the same  to the end of the queue with all who are not in it

TTIN makes one worker more, with an index that nobody has, as far as the ring has them; TTOU sends
TERM to the one with the highest index and keeps one at least. A hand that is not empty then is
worked off by another process of that index, which takes nothing else and ends.

Invariants. An index has at most one owner: it is given out only after the kernel said that the last
one is gone, for its hand goes with it. A child that lived 5 s or more is started again at
once; one that lived less, at once the first time, then after a delay that doubles up to 10 s; one
that an order has ended, at once: that order can do so a limited number of times.
Workers are not started before the database has its schema, fronts not before a ring of other
settings is moved into this one: those orders were first. Fronts don't wait for the database, nor
for what is put back from the journal after a power loss: they answer 503 meanwhile, for that may
wait for the database. The ring is not closed before that is done. There is a relay while anybody
is to be told of outcomes, which HUP may change.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from processors.child import Role
from processors.parent import Key
from processors.replacing import (
    end_patience,
    install,
    on_heir_ended,
    on_hup,
    renounce,
    replace_next,
    retire,
)
from processors.settings import Settings
from processors.tree import (
    RELAY,
    Action,
    Announce,
    Asked,
    CloseFailed,
    CloseRing,
    Decision,
    Ended,
    Event,
    Kid,
    Migrate,
    Migrated,
    Moved,
    Ready,
    Recovered,
    RingLost,
    Say,
    Send,
    Start,
    State,
    Tick,
    Unreachable,
    name,
)
from processors.webhooks import names_told

SHORT_LIFE_S = 5.0
BACKOFF_FIRST_S = 0.25
BACKOFF_MOST_S = 10.0
STOP_PATIENCE_S = 2.0
MIGRATE_EVERY_S = 5.0


def begin(
    settings: Settings,
    now: float,
    *,
    migrated: bool,
    moving: bool = False,
    recovering: bool = False,
) -> State:
    relay = [RELAY] if wants_relay(settings) else []
    fronts: list[Key] = [("front", index) for index in range(settings.http.fronts)]
    workers: list[Key] = [("worker", index) for index in range(settings.work.workers)]
    return State(
        kids={key: Kid("down", now) for key in fronts + workers + relay},
        graceful_timeout_s=settings.graceful_timeout_s,
        moving=moving,
        recovering=recovering,
        migrated=migrated,
        migrate_at=now + MIGRATE_EVERY_S,
    )


def wants_relay(settings: Settings) -> bool:
    """Whether anybody is to be told of outcomes."""
    return bool(names_told(settings.webhooks.endpoints))


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
    """What follows from where the event left the tree: the next one is replaced, the ring is
    closed, the tree has ended."""
    actions: list[Action] = []
    if state.phase == "running":
        if (
            not state.announced
            and not state.recovering
            and all(kid.phase == "ready" for kid in state.kids.values())
        ):
            state, actions = replace(state, announced=True), [Announce()]
        state, more = replace_next(state, event.now)
        return state, actions + more
    if state.phase == "draining" and not state.closed and may_close(state):
        state, actions = replace(state, closed=True), [CloseRing()]
    if state.phase == "draining" and state.closed and not event.left.empty:
        state = refill(state, event)
    if state.phase == "draining" and state.closed and event.left.empty:
        state, actions = end_relay(state, actions)
    done = state.phase in ("stopping", "killing") or (state.closed and event.left.empty)
    if state.phase != "ended" and done and state.nobody_lives():
        state = replace(state, phase="ended")
    return state, actions


def end_relay(state: State, actions: list[Action]) -> Decision:
    """It is the last to be asked: what was committed last is told, too, if that is quick."""
    kid = state.kids.get(RELAY)
    if kid is None or kid.leaving or not kid.lives:
        return state, actions
    if not (state.nobody_lives("front") and state.nobody_lives("worker")):
        return state, actions
    state = state.with_kid(RELAY, replace(kid, leaving=True))
    return state, [*actions, Send(RELAY, signal.SIGTERM)]


def all_ready(state: State) -> bool:
    return all(kid.phase == "ready" for kid in state.kids.values())


def may_close(state: State) -> bool:
    arriving = state.moving or state.recovering
    return state.lost or (state.nobody_lives("front") and not arriving)


def refill(state: State, event: Event) -> State:
    """A worker for every hand that holds something, and one at least for what waits."""
    wanted = {index if ("worker", index) in state.kids else 0 for index in event.left.hands}
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
        return kill(state, now)
    if state.phase not in ("running", "draining"):
        return state, []
    state, actions = end_patience(state, now)
    for key, kid in state.kids.items():
        if kid.phase == "down" and now >= kid.since and may_start(state, key):
            if kid.leaving and key[1] not in event.left.hands:
                state = state.without_kid(key)
                continue
            state = state.with_kid(key, replace(kid, phase="starting", since=now))
            actions.append(Start(key, work_off=kid.leaving))
    if not state.migrated and now >= state.migrate_at:
        return later(state, now), [*actions, Migrate()]
    return state, actions


def may_start(state: State, key: Key) -> bool:
    return not state.moving if key[0] == "front" else state.migrated


def on_ready(state: State, event: Ready) -> Decision:
    if event.heir:
        return retire(state, event)
    state = state.with_kid(event.key, replace(state.kids[event.key], phase="ready"))
    return state, [Say(logging.INFO, f"{name(event.key)} is ready")] if state.announced else []


def on_ended(state: State, event: Ended) -> Decision:
    if event.doubt:
        return in_doubt(state, event)
    if event.heir:
        return on_heir_ended(state, event)
    kid, heir = state.kids[event.key], state.heir
    if heir is not None and heir.key == event.key and heir.phase != "unwanted":
        return install(state, heir, event)
    if not wanted_again(state, event):
        level = logging.INFO if event.clean else logging.WARNING
        say = Say(level, f"{name(event.key)}: {event.how}")
        if kid.leaving:
            count = [how_many(state)] if event.key[0] == "worker" else []
            return state.without_kid(event.key), [say, *count]
        return state.with_kid(event.key, replace(kid, phase="gone")), [say]
    life = next_life(kid, event.now, innocent=event.blamed)
    delay = life.since - event.now
    when = f"in {delay:g} s" if delay else "now"
    text = f"{name(event.key)}: {event.how} after {event.now - kid.since:.1f} s"
    text += "" if kid.phase == "ready" else ", before it was ready"
    return state.with_kid(event.key, life), [Say(logging.WARNING, f"{text}; another starts {when}")]


def in_doubt(state: State, event: Ended) -> Decision:
    """Nothing more is promised: who lives may have been told the same by the disk, or will be."""
    say = Say(logging.CRITICAL, f"{name(event.key)}: {event.how}: it is not sure what is on disk")
    if event.heir:
        state = replace(state, heir=None)
    else:
        state = state.with_kid(event.key, replace(state.kids[event.key], phase="gone"))
    state = replace(state, doubted=True)
    if state.phase not in ("running", "draining"):
        return state, [say]
    state, actions = stop(state, event.now)
    return state, [say, *actions]


def wanted_again(state: State, event: Ended) -> bool:
    holds = event.key[0] == "worker" and event.key[1] in event.left.hands
    if state.phase == "running":
        return holds or not state.kids[event.key].leaving
    if state.phase != "draining" or event.key[0] != "worker":
        return False
    if state.kids[event.key].leaving:
        return holds
    return not state.closed or holds or (not event.clean and event.left.waiting > 0)


def next_life(kid: Kid, now: float, *, innocent: bool = False) -> Kid:
    short = now - kid.since < SHORT_LIFE_S and not innocent
    failures = kid.failures + 1 if short else 0
    delay = BACKOFF_FIRST_S * 2.0 ** min(failures - 2, 30) if failures > 1 else 0.0
    since = now + min(delay, BACKOFF_MOST_S)
    return replace(kid, phase="down", since=since, failures=failures)


def on_asked(state: State, event: Asked) -> Decision:
    if event.number in (signal.SIGINT, signal.SIGQUIT):
        return stop(state, event.now)
    if state.phase != "running":
        return state, []
    if event.number == signal.SIGTERM:
        return drain(state, event.now)
    return RESHAPING[event.number](state, event)


def on_close_failed(state: State, _event: CloseFailed) -> Decision:
    return replace(state, closed=False), []


def on_moved(state: State, _event: Moved) -> Decision:
    return replace(state, moving=False), []


def on_recovered(state: State, _event: Recovered) -> Decision:
    return replace(state, recovering=False), []


def on_unreachable(state: State, event: Unreachable) -> Decision:
    return later(state, event.now), []


def later(state: State, now: float) -> State:
    return replace(state, migrate_at=now + MIGRATE_EVERY_S)


def on_migrated(state: State, _event: Migrated) -> Decision:
    return replace(state, migrated=True), [Say(logging.INFO, "the database is ready")]


def drain(state: State, now: float) -> Decision:
    actions: list[Action] = [Send(key, signal.SIGTERM) for key in state.living("front")]
    state, unwanted = renounce(state, now, signal.SIGTERM)
    actions += unwanted
    state = without_down(without_down(state, "front"), "relay")
    state = replace(state, phase="draining", deadline=now + state.graceful_timeout_s)
    limit = f"at most {state.graceful_timeout_s:g} s (--graceful-timeout)"
    return state, [Say(logging.INFO, f"draining: no more orders are taken; {limit}"), *actions]


def stop(state: State, now: float) -> Decision:
    if state.phase in ("killing", "ended"):
        return state, []
    if state.phase == "stopping":
        return kill(state, now)
    actions: list[Action] = [Send(key, signal.SIGKILL) for key in state.living("front")]
    actions += [Send(key, signal.SIGTERM) for key in state.living("worker")]
    actions += [Send(key, signal.SIGTERM) for key in state.living("relay")]
    state, unwanted = renounce(state, now, signal.SIGKILL)  # it holds nothing yet
    actions += unwanted
    state = nobody_new(state)
    state = replace(state, phase="stopping", deadline=now + STOP_PATIENCE_S)
    return state, [Say(logging.INFO, "stopping: workers finish their batch"), *actions]


def kill(state: State, now: float) -> Decision:
    actions: list[Action] = [Send(key, signal.SIGKILL) for key in state.living()]
    state, unwanted = renounce(state, now, signal.SIGKILL)
    actions += unwanted
    if actions:
        killed = ", ".join(sorted({name(one.key) for one in actions if isinstance(one, Send)}))
        actions.insert(0, Say(logging.WARNING, f"killing {killed}"))
    return replace(nobody_new(state), phase="killing"), actions


def on_ring_lost(state: State, event: RingLost) -> Decision:
    if state.lost:
        return state, []
    say = Say(logging.ERROR, "the ring's file is gone or another: no more orders are taken")
    state = replace(state, lost=True)
    if state.phase != "running":
        return state, [say]
    state, actions = drain(state, event.now)
    return state, [say, *actions]


def nobody_new(state: State) -> State:
    return without_down(without_down(without_down(state, "front"), "worker"), "relay")


def without_down(state: State, role: Role) -> State:
    gone = {
        key: replace(kid, phase="gone")
        for key, kid in state.kids.items()
        if key[0] == role and kid.phase == "down"
    }
    return replace(state, kids={**state.kids, **gone})


# ---- more and fewer workers: TTIN, TTOU ----------------------------------------------------------


def on_ttin(state: State, event: Asked) -> Decision:
    leaving = [key for key, kid in state.kids.items() if kid.leaving]
    free = [index for index in event.left.free if ("worker", index) not in state.kids]
    if leaving:
        key = min(leaving)
        state = state.with_kid(key, replace(state.kids[key], leaving=False))
    elif free:
        state = state.with_kid(("worker", free[0]), Kid("down", event.now))
    else:
        most = f"the ring was made for no more (--workers {len(state.staying) + 1} at the start)"
        return state, [how_many(state, logging.WARNING, f", and it stays so: {most}")]
    return state, [how_many(state)]


def on_ttou(state: State, event: Asked) -> Decision:
    """The one with the highest index goes. Should it leave orders in its hand (the database was
    away, or they are to be tried again), it is started once more to work them off."""
    if len(state.staying) == 1:
        return state, [how_many(state, logging.WARNING, ", and it stays so: one is the least")]
    key = max(state.staying)
    kid = replace(state.kids[key], leaving=True)
    actions: list[Action] = [Send(key, signal.SIGTERM)] if kid.lives else []
    state = replace(state, queue=tuple(other for other in state.queue if other != key))
    if state.heir is not None and state.heir.key == key:
        queue = state.queue
        state, unwanted = renounce(state, event.now, signal.SIGTERM)
        state, actions = replace(state, queue=queue), actions + unwanted
    state = state.with_kid(key, kid)
    return state, [how_many(state), *actions]


def how_many(state: State, level: int = logging.INFO, more: str = "") -> Say:
    return Say(level, f"workers: {len(state.staying)}{more}")


RESHAPING: dict[int, Callable[[State, Asked], Decision]] = {
    signal.SIGHUP: on_hup,
    signal.SIGTTIN: on_ttin,
    signal.SIGTTOU: on_ttou,
}
ANSWERS: dict[type[Event], Callable[[State, Any], Decision]] = {
    Tick: on_tick,
    Ready: on_ready,
    Ended: on_ended,
    Asked: on_asked,
    RingLost: on_ring_lost,
    CloseFailed: on_close_failed,
    Moved: on_moved,
    Recovered: on_recovered,
    Migrated: on_migrated,
    Unreachable: on_unreachable,
}

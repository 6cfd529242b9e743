"""The part of the policy that replaces processes one by one, for HUP; the table is in policy.py."""

from __future__ import annotations

import logging
import signal

from msgspec.structs import replace

from processors.child import RETIRE, Role
from processors.tree import (
    RELAY,
    Action,
    Asked,
    Decision,
    Ended,
    Heir,
    Install,
    Kid,
    Ready,
    Say,
    Send,
    Start,
    State,
    name,
)

HEIR_PATIENCE_S = 30.0
# Beyond its own time a front waits for the last words of requests, a worker ends its interpreter.
RETIRE_GRACE_S = 15.0
RETIREMENT: dict[Role, int] = {
    "front": RETIRE,
    "worker": signal.SIGTERM,
    "relay": signal.SIGTERM,
}


def on_hup(state: State, event: Asked) -> Decision:
    """Everybody who lives now is replaced by somebody started later; who is in the queue for an
    earlier HUP keeps his place, or a HUP every second would replace the first ones only."""
    state, actions = relay_wanted(state, event)
    living = [key for key in state.living() if not state.kids[key].leaving]
    queue = state.queue + tuple(key for key in living if key not in state.queue)
    say = Say(logging.INFO, f"replacing {len(queue)} processes")
    return replace(state, queue=queue), [*actions, say]


def relay_wanted(state: State, event: Asked) -> Decision:
    """The settings of webhooks were read again: now there may be one, or nobody to tell."""
    kid = state.kids.get(RELAY)
    if event.relay and (kid is None or kid.leaving):
        # One that is ending is started again when it has.
        kid = Kid("down", event.now) if kid is None else replace(kid, leaving=False)
        return state.with_kid(RELAY, kid), []
    if kid is None or event.relay:
        return state, []
    queue = tuple(key for key in state.queue if key != RELAY)
    state = replace(state, queue=queue)
    actions: list[Action] = [Say(logging.INFO, "no webhook is left: the relay ends")]
    if state.heir is not None and state.heir.key == RELAY:
        state, unwanted = renounce(state, event.now, signal.SIGTERM)
        state, actions = replace(state, queue=queue), actions + unwanted
    if not kid.lives:
        return state.without_kid(RELAY), actions
    state = state.with_kid(RELAY, replace(kid, leaving=True))
    return state, [*actions, Send(RELAY, signal.SIGTERM)]


def replace_next(state: State, now: float) -> Decision:
    """Starts the heir of the next in the queue. One at a time: at most one process too many."""
    while state.heir is None and state.queue:
        key, queue = state.queue[0], state.queue[1:]
        state = replace(state, queue=queue)
        kid = state.kids.get(key)
        if kid is not None and kid.lives and not kid.leaving:  # who is down will be new anyway
            heir = Heir(key, "starting", now, now + HEIR_PATIENCE_S)
            return replace(state, heir=heir), [Start(key, heir=True)]
    return state, []


def retire(state: State, event: Ready) -> Decision:
    """The heir is ready: the one at work is asked to end."""
    heir = state.heir
    if heir is None or heir.phase != "starting":
        return state, []
    until = event.now + state.graceful_timeout_s + RETIRE_GRACE_S
    state = replace(state, heir=replace(heir, phase="ready", until=until))
    return state, [Send(heir.key, RETIREMENT[heir.key[0]])]


def install(state: State, heir: Heir, event: Ended) -> Decision:
    """The one that was at work is gone, asked or not: its heir has the place."""
    serves = heir.key[0] == "front" and heir.phase == "ready"  # a worker is ready with the index
    kid = Kid("ready" if serves else "starting", heir.since)
    level = logging.INFO if event.clean else logging.WARNING
    actions: list[Action] = [
        Install(heir.key),
        Say(level, f"{name(heir.key)}: {event.how}; it is replaced"),
    ]
    if not state.queue:
        actions.append(Say(logging.INFO, "nobody is left to be replaced"))
    return replace(state.with_kid(heir.key, kid), heir=None), actions


def on_heir_ended(state: State, event: Ended) -> Decision:
    heir = state.heir
    assert heir is not None, "there is an heir until its end is heard or it is installed"
    state = replace(state, heir=None)
    text = f"the replacement of {name(event.key)}: {event.how}"
    if state.phase != "running" or heir.phase == "unwanted":
        return state, [Say(logging.INFO, text)]
    if heir.phase == "ready":  # the other one ends, or has taken in its last order: another one
        queue = (heir.key, *(key for key in state.queue if key != heir.key))
        return replace(state, queue=queue), [Say(logging.WARNING, f"{text}; another starts now")]
    text += ", before it was ready; nobody else is replaced until the next HUP"
    return replace(state, queue=()), [Say(logging.ERROR, text)]


def end_patience(state: State, now: float) -> Decision:
    """Kills who does not get ready, or does not end, and so holds up a replacement."""
    heir = state.heir
    if heir is None or now < heir.until:
        return state, []
    state = replace(state, heir=replace(heir, until=now + HEIR_PATIENCE_S))
    if heir.phase == "ready":
        text = f"killing {name(heir.key)}, whose replacement waits for its end"
        return state, [Say(logging.WARNING, text), Send(heir.key, signal.SIGKILL)]
    text = f"killing the replacement of {name(heir.key)}, which took too long"
    return state, [Say(logging.WARNING, text), Send(heir.key, signal.SIGKILL, heir=True)]


def renounce(state: State, now: float, number: int) -> Decision:
    """Nobody is replaced any more; an heir is asked to end."""
    heir, state = state.heir, replace(state, queue=())
    if heir is None:
        return state, []
    heir = replace(heir, phase="unwanted", until=now + HEIR_PATIENCE_S)
    return replace(state, heir=heir), [Send(heir.key, number, heir=True)]

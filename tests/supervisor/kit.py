"""Feeding the policy by hand; ending a tree the hard way."""

from __future__ import annotations

import signal
from typing import Any

from msgspec.structs import replace

from processors.parent import Key
from processors.policy import begin, decide
from processors.settings import HttpSettings, Settings, WorkSettings
from processors.tree import Action, Asked, Ended, Event, Kid, Left, Say, State, Tick
from tests.program import Rasher, outlasting

F0: Key = ("front", 0)
W0: Key = ("worker", 0)
W1: Key = ("worker", 1)
NOTHING = Left()
SETTINGS = Settings(
    data_dir="/data",
    database="sqlite:////data/rasher.db",
    graceful_timeout_s=30,
    http=HttpSettings(fronts=1),
    work=WorkSettings(workers=2),
)


def running(since: float = 0.0, **changes: Any) -> State:
    """A tree in which everybody has been ready since then."""
    state = begin(SETTINGS, since, migrated=True)
    kids = {key: Kid("ready", since) for key in state.kids}
    return replace(state, kids=kids, announced=True, **changes)


def ended(key: Key, now: float, left: Left = NOTHING, clean: bool = False) -> Ended:
    return Ended(now=now, left=left, key=key, how="pid 7 was ended by SIGKILL", clean=clean)


def after(state: State, *events: Event) -> tuple[State, list[Action]]:
    """The state after all of them, and what was done, without the words."""
    done: list[Action] = []
    for event in events:
        state, actions = decide(state, event)
        done += [action for action in actions if not isinstance(action, Say)]
    return state, done


def said(state: State, event: Event) -> list[str]:
    return [action.text for action in decide(state, event)[1] if isinstance(action, Say)]


def tick(now: float, left: Left = NOTHING) -> Tick:
    return Tick(now=now, left=left)


def asked(number: int, now: float, left: Left = NOTHING) -> Asked:
    return Asked(now=now, left=left, number=number)


def kill_everything(rasher: Rasher) -> None:
    children = list(rasher.children().values())
    rasher.signal(signal.SIGKILL)
    for child in children:
        child.kill()
    assert rasher.end() == -signal.SIGKILL
    assert not outlasting(children)

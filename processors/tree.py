"""The process tree as the policy sees it: what is known of it, what can happen, what can be done.

Words only; what follows from what is decided in `processors/policy.py`.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from processors.child import Role, name_of
from processors.parent import Key

RELAY: Key = ("relay", 0)

# ---- what there is to know ----------------------------------------------------------------------


class Left(Struct, frozen=True):
    """What the ring holds, and what is still to be moved into it: how many wait, and the indexes of
    hands that are not empty. free: looked at for a signal only, indexes without owner or items."""

    waiting: int = 0
    hands: tuple[int, ...] = ()
    free: tuple[int, ...] = ()

    @property
    def empty(self) -> bool:
        return not self.waiting and not self.hands


class Kid(Struct, frozen=True):
    """since: when it was started; while `down`, when it is to be started (monotonic seconds)."""

    phase: Literal["down", "starting", "ready", "gone"]
    since: float
    failures: int = 0  # short lives in a row
    # A worker too many: it ends for good once its hand is empty; a relay that nobody wants.
    leaving: bool = False

    @property
    def lives(self) -> bool:
        return self.phase in ("starting", "ready")


class Heir(Struct, frozen=True):
    """A process that is to replace the one at work under `key`.

    starting: until it says that it is ready, the other one is at work. ready: the other one was
    asked to end. unwanted: it was asked to end itself. until: the patience with this phase.
    """

    key: Key
    phase: Literal["starting", "ready", "unwanted"]
    since: float
    until: float


class State(Struct, frozen=True):
    kids: dict[Key, Kid]
    graceful_timeout_s: float
    phase: Literal["running", "draining", "stopping", "killing", "ended"] = "running"
    deadline: float | None = None
    closed: bool = False  # the ring, as far as was asked
    lost: bool = False  # the ring's file
    doubted: bool = False  # somebody is not sure of what is on disk
    moving: bool = False  # orders of a ring of other settings are still on their way into this one
    recovering: bool = False  # orders of the journal are still on their way into the ring
    migrated: bool = True
    migrate_at: float = 0.0
    announced: bool = False
    heir: Heir | None = None
    queue: tuple[Key, ...] = ()  # whom HUP replaces after that, in this order

    def living(self, role: Role | None = None) -> list[Key]:
        return [key for key, kid in self.kids.items() if kid.lives and role in (None, key[0])]

    def nobody_lives(self, role: Role | None = None) -> bool:
        """Heirs count too."""
        heir = self.heir is not None and role in (None, self.heir.key[0])
        return not heir and not self.living(role)

    def with_kid(self, key: Key, kid: Kid) -> State:
        return replace(self, kids={**self.kids, key: kid})

    def without_kid(self, key: Key) -> State:
        return replace(self, kids={other: kid for other, kid in self.kids.items() if other != key})

    @property
    def staying(self) -> list[Key]:
        """The workers that are not leaving."""
        return [key for key, kid in self.kids.items() if key[0] == "worker" and not kid.leaving]

    @property
    def wants_left(self) -> bool:
        """Whether it matters what the ring holds."""
        return self.phase == "draining" or any(kid.leaving for kid in self.kids.values())


# ---- what can happen ----------------------------------------------------------------------------


class Event(Struct, frozen=True):
    """left: looked at while `State.wants_left`, and for signals; nothing else needs it."""

    now: float
    left: Left


class Tick(Event, frozen=True):
    """Time has passed."""


class Ready(Event, frozen=True):
    """A process does its work from now on; the heir of a worker: it waits for the index."""

    key: Key
    heir: bool = False


class Ended(Event, frozen=True):
    """how: for the log, as in `pid 7 was ended by SIGKILL`. clean: exit code 0; doubt: the one that
    says that it is not sure of what is on disk; blamed: an order was the reason."""

    key: Key
    how: str
    clean: bool
    heir: bool = False
    doubt: bool = False
    blamed: bool = False


class Asked(Event, frozen=True):
    """relay: whether anybody is to be told of outcomes, as the settings have it now."""

    number: int
    relay: bool = False


class RingLost(Event, frozen=True):
    """The ring's path is no longer the file that is mapped."""


class CloseFailed(Event, frozen=True):
    """Somebody holds the writers' lock and is stopped: to be tried again."""


class Moved(Event, frozen=True):
    """All that rings of other settings held is in this one."""


class Recovered(Event, frozen=True):
    """All that the journal held and nothing else knew is in the ring."""


class Migrated(Event, frozen=True):
    """The database has its schema."""


class Unreachable(Event, frozen=True):
    """The database could not be given its schema; the attempt may have taken seconds."""


# ---- what can be done ---------------------------------------------------------------------------


class Start(Struct, frozen=True):
    """work_off: it settles what its hand holds, takes nothing, and ends."""

    key: Key
    heir: bool = False
    work_off: bool = False


class Install(Struct, frozen=True):
    """The kernel said that the process under this key is gone: its heir takes its place."""

    key: Key


class Send(Struct, frozen=True):
    key: Key
    number: int
    heir: bool = False


class CloseRing(Struct, frozen=True):
    pass


class Migrate(Struct, frozen=True):
    pass


class Announce(Struct, frozen=True):
    pass


class Say(Struct, frozen=True):
    level: int
    text: str


Action = Start | Install | Send | CloseRing | Migrate | Announce | Say
Decision = tuple[State, list[Action]]


def name(key: Key) -> str:
    return name_of(*key)

"""Rasher: starts the process tree, watches it, and does what the policy says.

`processors/policy.py` holds the state machine, as prose, table and a pure function; `Tree` feeds it
what the processes, the signals and the clock say, and does what it answers. The start, in order,
each step's failure being an exit code of its own (2 settings, 3 can't start):

    settings, data dir held, database file looked at, ring attached or made (whoever of a killed run
    still lives is ended here, before any hand, the database or the port is given out), database
    migrated, port bound, workers started, orders of a ring of other settings moved into this one,
    connections listened for, fronts started

The verbs live with their packages; this file only dispatches them.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from setproctitle import setproctitle

from ingest.listen import BACKLOG, listen, scheme, url
from processors.datadir import (
    CannotStart,
    count_orders,
    hold_data_dir,
    is_in_place,
    open_rings,
    read_link,
    remove_ring,
)
from processors.doubt import EXIT_DOUBT
from processors.journal import journal_dir
from processors.keys import load_keys, reload_keys
from processors.logs import set_up_logging
from processors.mortem import PostMortem
from processors.moving import Mover
from processors.parent import (
    RESHAPING,
    Command,
    Heard,
    HeardEnd,
    HeardReady,
    HeardSignal,
    Key,
    Processes,
    module_command,
)
from processors.policy import begin, decide, wants_relay
from processors.premises import (
    check_database_file,
    check_exposure,
    check_processor,
    prepare_journal,
    raise_file_limit,
)
from processors.recovery import Recovery
from processors.settings import (
    HELP_FLAGS,
    Settings,
    SettingsError,
    load_settings,
    reload_webhooks,
    split_flags,
    unknown_flag,
)
from processors.spill import spill
from processors.tree import (
    Action,
    Announce,
    Asked,
    CloseFailed,
    CloseRing,
    Ended,
    Event,
    Install,
    Left,
    Migrate,
    Migrated,
    Moved,
    Ready,
    Recovered,
    RingLost,
    Say,
    Send,
    Start,
    Tick,
    Unreachable,
)
from processors.usage import usage, version
from processors.visits import asked, migrated, name_of_database, tidy
from ringbuf import Ring, RingError

EXIT_USAGE = 2
# The longest sleep: how late a lost ring file is noticed, and all that an idle tree wakes for.
TICK_S = 1.0
# How long moving orders into a full ring keeps the tree from hearing anything else.
MOVE_S = 0.05

Verb = Callable[[Settings, list[str]], int]

log = logging.getLogger("supervisor")


class Tree:
    """Feeds the policy and does what it says, until it says finish."""

    def __init__(
        self,
        settings: Settings,
        ring: Ring,
        processes: Processes,
        has_schema: bool,
        *,
        mover: Mover,
        recovery: Recovery,
    ) -> None:
        self.settings = settings
        self.ring = ring
        self.processes = processes
        self.mover = mover
        self.recovery = recovery
        self.state = begin(
            settings, time.monotonic(), migrated=has_schema,
            moving=not mover.done, recovering=not recovery.done,
        )  # fmt: skip
        self.post_mortem = PostMortem(ring)
        self.looked = time.monotonic()
        self.ask_at = 0.0  # when the database is asked (again) what of the journal it knows
        if not recovery.done:
            processes.hold_fronts()

    def run(self) -> int:
        """-> the exit code."""
        while not self.ended():
            for heard in self.processes.wait(self.patience()):
                self.feed(self.event(heard))
            self.look_at_file()
            self.feed(Tick(**self.seen()))
            self.move()
            self.recover()
        return self.finish()

    def ended(self) -> bool:
        return self.state.phase == "ended"

    def seen(self) -> dict[str, Any]:
        left = self.left() if self.state.wants_left else Left()
        return {"now": time.monotonic(), "left": left}

    def left(self) -> Left:
        arriving = self.mover.left() + self.recovery.left()
        return Left(self.ring.depth + arriving, self.hands())

    def hands(self) -> tuple[int, ...]:
        held = self.ring.held_count
        return tuple(index for index in range(self.ring.readers) if held(index))

    def free(self) -> tuple[int, ...]:
        # In this order: whoever works off a hand of nobody's leaves it after it is empty.
        full = self.hands()
        owned = {
            one.index for one in self.ring.participants() if one.role == "reader" and one.alive()
        }
        return tuple(index for index in range(self.ring.readers) if index not in {*full, *owned})

    def move(self) -> None:
        """What fits of the orders of other settings; draining waits for them, stopping does not."""
        if not self.state.moving or self.state.phase not in ("running", "draining"):
            return
        self.mover.step(MOVE_S)
        if self.mover.done:
            try:
                self.processes.listener.listen(BACKLOG)
            except OSError as error:  # it was bound, but somebody else listens now
                raise CannotStart(f"--port {self.settings.http.port}: {error.strerror}") from error
            self.feed(Moved(**self.seen()))

    def recover(self) -> None:
        """What fits of the journal's orders, after those of other settings, which are older."""
        state, recovery = self.state, self.recovery
        if not state.recovering or state.moving or state.phase not in ("running", "draining"):
            return
        if not recovery.looked and not self.ask_database():
            return
        recovery.step(MOVE_S)
        if recovery.done:
            self.processes.release_fronts()
            self.feed(Recovered(**self.seen()))

    def ask_database(self) -> bool:
        """Whether it said what is to be put back."""
        now = time.monotonic()
        if not self.state.migrated or now < self.ask_at:
            return False
        self.ask_at = now + TICK_S
        asked(self.settings, self.recovery.look)
        return self.recovery.looked

    def look_at_file(self) -> None:
        now = time.monotonic()
        if now - self.looked >= TICK_S and not self.state.lost:
            self.looked = now
            if not is_in_place(self.ring):
                self.feed(RingLost(**self.seen()))

    def patience(self) -> float:
        """Seconds until the clock itself has something to say."""
        if self.state.moving or (self.state.recovering and self.recovery.looked):
            return 0.0  # it waits in move, in recover
        kids = self.state.kids.values()
        due = [kid.since for kid in kids if kid.phase == "down" and self.state.migrated]
        due += [self.state.deadline] if self.state.deadline is not None else []
        return max(0.0, min([TICK_S, *(moment - time.monotonic() for moment in due)]))

    def event(self, heard: Heard) -> Event:
        match heard:
            case HeardReady():
                return Ready(**self.seen(), key=heard.key, heir=heard.heir)
            case HeardSignal():
                if heard.number == signal.SIGHUP:
                    self.reread_keys()
                    self.processes.settings = reload_webhooks(self.processes.settings)
                left = msgspec.structs.replace(self.left(), free=self.free())
                relay = wants_relay(self.processes.settings)
                return Asked(now=time.monotonic(), left=left, number=heard.number, relay=relay)
            case HeardEnd():
                ended, code = ending(heard.returncode), heard.returncode
                how = f"pid {heard.pid} {ended}"
                blamed = heard.key[0] == "worker" and not heard.heir and self.post_mortem.examine(
                    heard.key[1], code, ended, heard.words
                )  # fmt: skip
                return Ended(
                    **self.seen(), key=heard.key, how=how, clean=not code, heir=heard.heir,
                    doubt=code == EXIT_DOUBT, blamed=blamed,
                )  # fmt: skip

    def reread_keys(self) -> None:
        """For the fronts that are started from now on. Read here, once: a front that is started
        anew between two HUPs has the keys of the others, whatever has become of the file."""
        self.processes.api_keys = reload_keys(self.settings, self.processes.api_keys)

    def feed(self, event: Event) -> None:
        self.state, actions = decide(self.state, event)
        for action in actions:
            self.do(action)

    def do(self, action: Action) -> None:
        match action:
            case Start():
                self.start(action)
            case Install():
                self.processes.install(action.key, self.to_adopt(action.key))
            case Send():
                self.processes.signal(action.key, action.number, action.heir)
            case CloseRing():
                self.close_ring()
            case Migrate():
                done = migrated(self.settings)
                if done:
                    self.name_database()
                self.feed((Migrated if done else Unreachable)(**self.seen()))
            case Announce():
                self.announce()
            case Say():
                log.log(action.level, "%s", action.text)

    def name_database(self) -> None:
        """For the segments that are made from now on."""
        self.processes.database = name_of_database(self.settings) or self.processes.database

    def to_adopt(self, key: Key) -> list[int]:
        """Hands that no worker owns, for more workers once took part: worker 0 works them off."""
        if key != ("worker", 0):
            return []
        return [index for index in self.hands() if ("worker", index) not in self.state.kids]

    def start(self, action: Start) -> None:
        key, heir = action.key, action.heir
        adopt = [] if heir else self.to_adopt(key)
        try:
            self.processes.start(key, adopt, heir=heir, work_off=action.work_off)
        except OSError as error:
            how = f"could not be started ({error})"
            self.feed(Ended(**self.seen(), key=key, how=how, clean=False, heir=heir))

    def close_ring(self) -> None:
        try:
            self.ring.close()
        except RingError as error:
            log.warning("the ring can't be closed yet: %s", error)
            self.feed(CloseFailed(**self.seen()))

    def announce(self) -> None:
        settings = self.settings
        address = url(self.processes.listener.getsockname(), scheme(settings.http))
        log.info(
            "ready on %s: fronts %d, workers %d, capacity %d, durability %s, data in %s; "
            "try: curl -i %s/readyz",
            address, settings.http.fronts, settings.work.workers, settings.ring.capacity,
            settings.durability, settings.data_dir, address,
        )  # fmt: skip

    def finish(self) -> int:
        count = count_orders(self.ring) + self.mover.left()
        rings = [*self.mover.rings, self.ring]
        spilled = not count or self.spill(rings)
        if self.state.migrated and not self.state.doubted:  # in doubt, nothing is synced again
            tidy(self.settings, empty=not (count or self.recovery.left()))
        if count:
            self.tell_of_left(count, spilled=spilled)
        elif not self.state.lost:
            remove_ring(self.settings, self.ring)
            log.info("stopped, no order is left in the ring")
        if not self.recovery.done:
            log.warning("stopped before all that the journal holds was put back; it stays there "
                        "for the next start: %s", journal_dir(self.settings))  # fmt: skip
        if self.state.lost:
            log.error("stopped because %s is gone", self.ring.path)
        return EXIT_DOUBT if self.state.lost or self.state.doubted else 0

    def spill(self, rings: Sequence[Ring]) -> bool:
        """Whether what they hold is on disk."""
        try:
            spill(self.settings, rings, self.processes.database)
        except OSError as error:
            log.error("what is in the ring can't be written to the journal: %s", error)
            return False
        return True

    def tell_of_left(self, count: int, *, spilled: bool) -> None:
        paths = [] if self.state.lost else list(map(str, read_link(self.settings)))
        paths += [str(journal_dir(self.settings))] if spilled else []
        until = "" if spilled else ": it must be before the machine restarts"
        log.warning(
            "stopped; %d orders remain in %s for the next start on %s%s",
            count, ", ".join(paths) or "nothing", self.settings.data_dir, until,
        )  # fmt: skip


def ending(returncode: int) -> str:
    """subprocess's returncode in words."""
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-returncode).name}"
    return f"was ended by signal {-returncode}"


def run(settings: Settings, command: Command = module_command) -> int:
    """Runs Rasher until it is asked to end. Raises SettingsError, CannotStart."""
    setproctitle("rasher supervisor")
    set_up_logging(settings.log, "supervisor")
    raise_file_limit(settings)
    for number in RESHAPING:  # there is nothing to reshape yet
        signal.signal(number, signal.SIG_IGN)
    check_processor(settings)
    keys = load_keys(settings)
    check_exposure(settings)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, hold_data_dir(settings))
        check_database_file(settings)
        prepare_journal(settings)
        ring, older = open_rings(settings)
        stack.callback(ring.detach)
        mover = Mover(settings, ring, older)
        stack.callback(mover.close)
        try:
            recovery = Recovery(settings, ring, {one.epoch for one in (ring, *older)})
            # Only now nobody of the run before writes to the database, or holds the port.
            has_schema = migrated(settings)
            listener = stack.enter_context(listen(settings.http, bound_only=not mover.done))
        except CannotStart:
            if not count_orders(ring):
                remove_ring(settings, ring)
            raise
        processes = Processes(settings, ring, listener, command)
        processes.api_keys = keys
        stack.callback(processes.close)
        with processes.hearing_signals():
            tree = Tree(settings, ring, processes, has_schema, mover=mover, recovery=recovery)
            if has_schema:
                tree.name_database()
            gc.freeze()  # as in a child
            return tree.run()


VERBS = {
    "audit": ("processors.audit", "proves that no order was lost or done twice; --ledger FILE"),
    "backup": ("processors.backup", "TARGET_DIR: copies a running or stopped system there"),
    "status": ("ingest.status_verb", "how it is, and whether it would take an order in; --json"),
    "ring": ("processors.inspector", "shows what a live ring and its journal hold; --json"),
    "lots": ("processors.lots_verb", "add --file FILE, list, adjust LOT_ID DELTA: the stock"),
    "dead-letters": ("ingest.dead_letter_verb", "list, show, replay, discard orders that died"),
    "keys": ("processors.keys_verb", "add, list, revoke: the file of API keys (--keys)"),
    "webhooks": ("processors.webhooks_verb", "list, show, resend, enable, test: who is told"),
    "load": ("ingest.load", "posts orders at a steady rate; --rate --duration --connections"),
    "demo": ("ingest.demo", "a flash sale to watch; --seconds --customers --lots --plot FILE"),
    "version": ("", "prints the version"),
}


def dispatch(argv: Sequence[str]) -> int:
    words = split_flags(argv)[1]
    if words and words[0] in (*HELP_FLAGS, "version"):  # whatever the settings are
        return tell(words[0])
    settings, rest = load_settings(argv)
    if not rest:
        return run(settings)
    verb, *arguments = rest
    if verb.startswith("-"):
        raise unknown_flag(verb)
    if verb not in VERBS:
        raise SettingsError(f"{verb}: no such verb, there are {', '.join(VERBS)} (--help)")
    main_of_verb: Verb = importlib.import_module(VERBS[verb][0]).main
    return main_of_verb(settings, arguments)


def tell(word: str) -> int:
    verbs = {verb: line for verb, (_, line) in VERBS.items()}
    print(version() if word == "version" else usage(verbs))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The program; argv without its name. -> 0, or 2, 3, 4 as above, or what the verb says."""
    try:
        return dispatch(sys.argv[1:] if argv is None else argv)
    except SettingsError as error:
        return failed(error, EXIT_USAGE)
    except CannotStart as error:
        return failed(error, error.code)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def failed(error: Exception, code: int) -> int:
    print(f"rasher: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

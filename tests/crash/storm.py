"""The whole program under load and blows: SIGKILL, SIGSTOP, HUP, at instants that a seed chose."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from processors.policy import SHORT_LIFE_S
from ringbuf import Ring
from tests.crash.clients import Adjuster, Load, Prober, lots_of, steady_port
from tests.crash.findings import Findings, Kill, Recoveries
from tests.program import Rasher, Start, has_ended, verb

SKUS = [f"SKU-{number}" for number in range(10)]
LOTS_OF_A_SKU = 20
STOP_S_MAX = 0.8
DIED_YOUNG_MAX = 3
AIM_S_MAX, AIMING_S_MAX = 0.005, 0.2
ENDED_BY_KILL = -signal.SIGKILL


@dataclass(frozen=True)
class Plan:
    """How many of each blow; `pause_s`: the mean time between two; `relapses`: how likely it is
    that a supervisor is killed again as it starts."""

    kills: dict[str, int]
    stops: dict[str, int]
    hups: int
    fronts: int
    workers: int
    rate: int
    pause_s: float
    relapses: float = 0

    def blows(self, chance: random.Random) -> list[tuple[str, str]]:
        """All of them, as (what, whom), shuffled."""
        dealt = [("kill", whom) for whom, count in self.kills.items() for _ in range(count)]
        dealt += [("stop", whom) for whom, count in self.stops.items() for _ in range(count)]
        dealt += [("hup", "supervisor")] * self.hups
        chance.shuffle(dealt)
        return dealt


@dataclass
class Times:
    """Seconds. accepting: from a supervisor's start to the first order that is answered 202."""

    accepting: list[float] = field(default_factory=list)
    outage: list[float] = field(default_factory=list)  # from the kill on


class Storm:
    """Carries out a plan; the same seed deals the same blows in the same order."""

    def __init__(self, start: Start, folder: Path, plan: Plan, seed: int, stack: ExitStack) -> None:
        self.plan, self.seed, self._start, self._folder = plan, seed, start, folder
        self.chance = random.Random(seed)
        self.port = steady_port(self.chance)
        self.done: Counter[str] = Counter()
        self.times, self.findings = Times(), Findings()
        self.sessions: list[int] = []
        self.ledger = folder / "ledger.txt"
        self.run = self.start().ready()
        self.descriptors = self.count_descriptors()
        self.enter_lots()
        self.ring: Ring = stack.enter_context(self.run.ring())
        self.recoveries = stack.enter_context(Recoveries(self.ring))
        self.load = Load(self.port, SKUS, plan.rate, self.ledger, seed)
        stack.callback(self.load.kill)
        self.adjuster = Adjuster(self.port, self.lots, seed)
        self.adjuster.start()
        stack.callback(self.adjuster.stop)
        self.prober = Prober(self.port, SKUS[0], folder / "probes.txt")
        self.prober.until_accepted()
        self.begun = time.monotonic()

    def start(self) -> Rasher:
        """A supervisor, on the same data dir and port each time."""
        self.died_young: Counter[str] = Counter()
        words = ["--fronts", str(self.plan.fronts), "--workers", str(self.plan.workers)]
        run = self._start(*words, "--port", str(self.port))
        self.sessions.append(run.popen.pid)
        return run

    def enter_lots(self) -> None:
        lots = lots_of(SKUS, LOTS_OF_A_SKU, pounds=500)
        self.lots = [lot["lot_id"] for lot in lots]
        file = self._folder / "lots.ndjson"
        file.write_text("".join(json.dumps(lot) + "\n" for lot in lots))
        assert verb(self.run, "lots", "add", "--file", str(file)).returncode == 0

    # ---- blows -----------------------------------------------------------------------------------

    def rage(self) -> None:
        deeds: dict[tuple[str, str], Callable[[], None]] = {
            ("kill", "worker"): self.kill_worker,
            ("kill", "front"): self.kill_front,
            ("kill", "supervisor"): lambda: self.kill_tree(everybody=False),
            ("kill", "all"): lambda: self.kill_tree(everybody=True),
            ("hup", "supervisor"): self.hup,
        }
        for what, whom in self.plan.blows(self.chance):
            self.pass_time(self.chance.uniform(0, 2 * self.plan.pause_s))
            deeds.get((what, whom), partial(self.stop, whom))()
            self.done[f"{what} {whom}"] += 1
        self.recoveries.wait()

    def kill_worker(self) -> None:
        self.run.until(self.serving, "a front that takes orders in")
        index, victim = self.victim("worker")
        if self.chance.random() < 0.5:
            self.aim(index)
        moment = time.monotonic()
        end([victim])
        self.recoveries.begin(Kill(index, moment, self.ring.head))
        self.findings.look(self.run, self.ring, {index})

    def aim(self, index: int) -> None:
        """Returns a little after the worker took something: in its transaction, mostly."""
        after_s, give_up = self.chance.uniform(0, AIM_S_MAX), time.monotonic() + AIMING_S_MAX
        while not self.ring.held_count(index) and time.monotonic() < give_up:
            pass  # what is waited for lasts milliseconds
        due = time.monotonic() + after_s
        while time.monotonic() < due:
            pass

    def kill_front(self) -> None:
        if self.serving() < 2:  # without orders no worker could show that it is back
            self.recoveries.wait()
        end([self.victim("front")[1]])

    def serving(self) -> int:
        """How many fronts live and have joined the ring."""
        return sum(one.alive() for one in self.ring.participants() if one.role == "writer")

    def kill_tree(self, *, everybody: bool) -> None:
        """The supervisor, whose children end with it, or all of them in any order."""
        if self.chance.random() < 0.7:
            self.recoveries.wait()
        self.recoveries.cut_all()
        moment = time.monotonic()
        self.end_tree(everybody)
        while self.chance.random() < self.plan.relapses:
            self.kill_young()
        started = time.monotonic()
        self.run = self.start()
        accepted = self.prober.until_accepted()
        self.times.accepting.append(accepted - started)
        self.times.outage.append(accepted - moment)

    def kill_young(self) -> None:
        """A supervisor in the midst of its start, with as many children as it may have by then."""
        self.run = self.start()
        wanted = self.chance.randint(0, self.plan.fronts + self.plan.workers)
        self.run.until(lambda: len(self.run.process.children()) >= wanted, f"{wanted} children")
        self.end_tree(everybody=False)
        self.done["kill supervisor, starting"] += 1

    def end_tree(self, everybody: bool) -> None:
        children = self.run.process.children()
        victims = [self.run.process, *(children if everybody else [])]
        self.chance.shuffle(victims)
        end(victims)
        assert self.run.end() == ENDED_BY_KILL
        self.run.until(lambda: not any(map(lives, children)), "children end with their supervisor")
        self.findings.look(self.run, self.ring, set(range(self.plan.workers)))

    def stop(self, whom: str) -> None:
        """SIGSTOP, a while, then SIGCONT or, one time in three, death in that state."""
        self.recoveries.wait()
        index, victims = self.victims(whom)
        for victim in victims:
            with suppress(psutil.NoSuchProcess):
                victim.suspend()
        self.pass_time(self.chance.uniform(0, STOP_S_MAX))
        if self.chance.random() < 1 / 3:
            self.kill_stopped(whom, index, victims)
            return
        for victim in reversed(victims):
            with suppress(psutil.NoSuchProcess):
                victim.resume()

    def victims(self, whom: str) -> tuple[int, list[psutil.Process]]:
        if whom in ("worker", "front"):
            index, victim = self.victim(whom)
            return index, [victim]
        children = self.run.children().values() if whom == "all" else []
        return 0, [self.run.process, *children]

    def kill_stopped(self, whom: str, index: int, victims: list[psutil.Process]) -> None:
        self.done[f"kill {whom}, stopped"] += 1
        if whom in ("supervisor", "all"):
            self.kill_tree(everybody=whom == "all")
            return
        end(victims)
        if whom == "worker":
            self.findings.look(self.run, self.ring, {index})

    def hup(self) -> None:
        self.recoveries.wait()
        self.run.signal(signal.SIGHUP)

    def victim(self, role: str) -> tuple[int, psutil.Process]:
        """Whose end makes the supervisor wait a moment at most before it starts another: it lived
        long enough, or few of its forerunners died young."""
        self.run.until(lambda: self.ripe(role), f"a {role} to be killed without much back-off")
        title, process = self.chance.choice(self.ripe(role))
        young = time.time() - process.create_time() < SHORT_LIFE_S
        self.died_young[title] = self.died_young[title] + 1 if young else 0
        return int(title.split()[-1]), process

    def ripe(self, role: str) -> list[tuple[str, psutil.Process]]:
        born = time.time() - SHORT_LIFE_S
        return [
            (title, process)
            for title, process in self.run.children(role).items()
            if self.died_young[title] < DIED_YOUNG_MAX or process.create_time() < born
        ]

    @staticmethod
    def pass_time(seconds: float) -> None:
        """The storm's own clock: blows come at instants that nothing else decides."""
        threading.Event().wait(seconds)

    # ---- afterwards ------------------------------------------------------------------------------

    def calm(self) -> None:
        """The load ends, everybody is back, what is in is worked off."""
        self.seconds = time.monotonic() - self.begun
        self.report = self.load.stop()
        self.adjuster.stop()
        wanted = self.plan.fronts + self.plan.workers
        self.run.until(lambda: len(self.run.children()) == wanted, "everybody back")
        self.run.until(lambda: self.run.left() == 0, "all worked off")
        self.run.until(lambda: self.count_descriptors() <= self.descriptors, "descriptors closed")
        probes = (self._folder / "probes.txt").read_text()
        with self.ledger.open("a") as file:
            file.write(probes)

    def count_descriptors(self) -> int:
        """Of the supervisor."""
        return int(self.run.process.num_fds())

    def left_processes(self) -> list[int]:
        """Every process that any of the supervisors started, and that still lives."""
        there = [one for one in psutil.process_iter() if session(one.pid) in self.sessions]
        return [one.pid for one in there if lives(one)]


def session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def end(victims: list[psutil.Process]) -> None:
    """SIGKILL to all of them, then waits for the kernel to say that they are gone, reaped or not.

    Whoever was reaped meanwhile, for a supervisor before him was killed, is gone, too.
    """
    pidfds = []
    for victim in victims:
        with suppress(ProcessLookupError):
            pidfd = os.pidfd_open(victim.pid)
            pidfds.append(pidfd)
            if victim.is_running():  # that very process, not a later one of its number
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            else:
                os.close(pidfds.pop())
    for pidfd in pidfds:
        gone = has_ended(pidfd)
        os.close(pidfd)
        assert gone, "it outlives SIGKILL"

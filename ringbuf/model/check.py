"""Searches every state of the ring's model (ring.pml) for a broken promise.

``python ringbuf/model/check.py [--short] [--trace MISTAKE]``; needs spin and gcc. Exit 1 when the
protocol breaks a promise, when a seeded mistake is not found, or when a search was cut short.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MODEL = Path(__file__).with_name("ring.pml")
MEMORY_MIB_MAX = 2800  # of one search
DEPTH_MAX = 500_000
SEARCH_S_MAX = 300.0


@dataclass(frozen=True)
class Case:
    """One search. ``width``: capacity, cells per hand, most items per take and per put."""

    name: str
    writers: int
    readers: int
    width: int
    puts: int
    options: str = ""  # further -D for the model
    kills: int | None = None  # None: any number
    mistake: str = ""  # the seeded mistake that must be found
    long: bool = True

    @property
    def title(self) -> str:
        mistake = self.mistake.lower().replace("_", " ")
        return f"{self.name}: {mistake}" if mistake else self.name

    @property
    def defines(self) -> list[str]:
        sizes = {"WRITERS": self.writers, "READERS": self.readers, "PUTS": self.puts}
        sizes |= dict.fromkeys(("CAPACITY", "HAND", "TAKE", "BATCH"), self.width)
        words = [f"{name}={value}" for name, value in sizes.items()] + self.options.split()
        if self.kills is not None:
            words.append(f"KILLS={self.kills}")
        if self.mistake:
            words.append(f"BUG_{self.mistake}")
        return [f"-D{word}" for word in words]


@dataclass(frozen=True)
class Outcome:
    case: Case
    states: int
    depth: int
    seconds: float
    broken: str  # the promise that does not hold in some state
    cut_short: str  # why not every state was looked at

    @property
    def good(self) -> bool:
        return bool(self.broken) if self.case.mistake else not (self.broken or self.cut_short)

    @property
    def verdict(self) -> str:
        if self.case.mistake:
            return "found" if self.broken else f"NOT FOUND {self.cut_short}".rstrip()
        if self.broken:
            return f"BROKEN: {self.broken}"
        return f"CUT SHORT: {self.cut_short}" if self.cut_short else "holds"


PROMISES = [
    Case("kills", 1, 1, 1, 3, long=False),
    Case("kills", 2, 2, 1, 3),
    Case("kills", 2, 2, 2, 3),
    Case("kills", 2, 1, 2, 4),
    Case("kills", 1, 2, 2, 3),
    Case("kills, seats left empty", 1, 2, 1, 3, "GONE"),
    Case("kills, released twice", 1, 1, 1, 3, "TWICE"),
    Case("kills, closed", 1, 2, 1, 2, "CLOSERS=1"),
    Case("kills, looked for", 1, 1, 1, 3, "LOOKERS=1"),
    Case("kills, looked for", 1, 2, 1, 2, "LOOKERS=1", kills=1),
    Case("sleep", 1, 1, 1, 2, "WAIT", long=False),
    Case("sleep", 1, 1, 2, 3, "WAIT"),
    Case("sleep", 2, 1, 1, 3, "WAIT", kills=0),
    Case("sleep", 2, 1, 1, 2, "WAIT", kills=2),
    Case("sleep", 1, 2, 1, 3, "WAIT", kills=0),
    Case("sleep", 1, 2, 1, 2, "WAIT", kills=1),
    Case("sleep", 2, 2, 1, 2, "WAIT", kills=0),
    Case("sleep, seats left empty", 1, 1, 1, 2, "WAIT GONE"),
    Case("sleep, closed", 1, 1, 1, 2, "WAIT CLOSERS=1"),
    Case("sleep, closed", 1, 2, 1, 2, "WAIT CLOSERS=1", kills=0),
    Case("buffers", 2, 1, 1, 3, "TSO"),
    Case("buffers", 1, 2, 1, 2, "TSO"),
    Case("buffers", 2, 2, 1, 2, "TSO", kills=1),
    Case("buffers, looked for", 1, 1, 1, 2, "TSO LOOKERS=1"),
    Case("buffers, sleep", 1, 1, 1, 2, "TSO WAIT", long=False),
    Case("buffers, sleep", 1, 1, 2, 3, "TSO WAIT", kills=1),
    Case("buffers, sleep", 2, 1, 1, 3, "TSO WAIT", kills=0),
    Case("buffers, sleep", 2, 1, 1, 2, "TSO WAIT", kills=1),
    Case("buffers, sleep", 1, 2, 1, 2, "TSO WAIT", kills=1),
    Case("buffers, sleep, closed", 1, 1, 1, 2, "TSO WAIT CLOSERS=1", kills=1),
]
MISTAKES = [
    Case("kills", 1, 1, 1, 3, mistake="NO_REPAIR", long=False),
    Case("kills", 1, 1, 1, 3, mistake="REPAIR_OFF_BY_ONE"),
    Case("kills", 1, 1, 1, 3, mistake="REPAIR_CLEARS_ALL"),
    Case("kills", 1, 1, 1, 3, mistake="REPAIR_DISOWNS_FIRST"),
    Case("kills", 1, 1, 1, 3, mistake="NO_OWNER"),
    Case("kills", 1, 1, 1, 3, mistake="OWNER_CLEARED_FIRST"),
    Case("kills", 1, 1, 1, 3, mistake="LOCK_NOT_ROBUST"),
    Case("kills", 1, 1, 1, 3, mistake="HEAD_FIRST"),
    Case("kills", 1, 1, 1, 3, mistake="TAIL_FIRST"),
    Case("kills", 1, 1, 1, 3, mistake="ADOPT_UNLOCKED", long=False),
    Case("no kill", 1, 1, 1, 3, kills=0, mistake="ONE_TOO_MANY"),
    Case("no kill", 1, 2, 1, 2, kills=0, mistake="HAND_SHARED"),
    Case("kills, released twice", 1, 1, 1, 3, "TWICE", mistake="RELEASE_BLIND"),
    Case("no kill, closed", 1, 1, 1, 2, "CLOSERS=1", kills=0, mistake="CLOSED_READ_LAST"),
    Case("no kill, closed", 1, 1, 1, 2, "CLOSERS=1", kills=0, mistake="CLOSED_LOOKED_EARLY"),
    Case("no kill, closed", 1, 1, 1, 2, "CLOSERS=1", kills=0, mistake="CLOSE_UNLOCKED"),
    Case("no kill, closed", 1, 1, 1, 2, "CLOSERS=1", kills=0, mistake="HANDS_NOT_ASKED"),
    Case("no kill, closed", 1, 1, 1, 2, "CLOSERS=1", kills=0, mistake="HANDS_ASKED_FIRST"),
    Case("no kill, looked for", 1, 1, 1, 3, "LOOKERS=1", kills=0, mistake="SLOT_NOT_MARKED"),
    Case("no kill, looked for", 1, 1, 1, 3, "LOOKERS=1", kills=0, mistake="HANDS_FIRST"),
    Case("sleep", 1, 1, 1, 3, "WAIT", kills=0, mistake="NO_WAKE_AFTER_PUT", long=False),
    Case("sleep", 1, 1, 1, 3, "WAIT", kills=0, mistake="NO_WAKE_AFTER_TAKE"),
    Case("sleep", 1, 1, 1, 2, "WAIT CLOSERS=1", kills=0, mistake="NO_WAKE_AFTER_CLOSE"),
    Case("sleep", 1, 1, 1, 2, "WAIT", mistake="NO_WAKE_AFTER_REPAIR"),
    Case("sleep", 1, 1, 1, 3, "WAIT", kills=0, mistake="NO_SECOND_LOOK"),
    Case("sleep", 2, 1, 1, 3, "WAIT", kills=0, mistake="WAKE_ONE"),
    Case("buffers, sleep", 1, 1, 1, 3, "TSO WAIT", kills=0, mistake="NO_FENCE", long=False),
]
CASES = PROMISES + MISTAKES


def build(case: Case, folder: Path, *flags: str) -> Path:
    """The search program for one case."""
    spin = ["spin", "-a", *case.defines, str(MODEL)]
    made = subprocess.run(spin, cwd=folder, capture_output=True, text=True, check=False)
    program = folder / "pan"
    if made.returncode or not (folder / "pan.c").exists():
        raise RuntimeError(f"spin refuses the model: {made.stdout}{made.stderr}")
    # Small searches take less time than gcc would need to make them fast.
    speed = "-O1" if case.long and not case.mistake else "-O0"
    words = ["gcc", speed, "-w", "-DSAFETY", "-DNOFAIR", f"-DMEMLIM={MEMORY_MIB_MAX}", *flags]
    subprocess.run([*words, "-o", str(program), "pan.c"], cwd=folder, check=True)
    return program


def search(case: Case, depth_max: int = DEPTH_MAX) -> Outcome:
    """Builds and runs one case; every state is kept (compressed, nothing hashed away)."""
    with tempfile.TemporaryDirectory(prefix="ring-model-") as name:
        folder = Path(name)
        words = [str(build(case, folder, "-DCOLLAPSE")), "-E", "-n", f"-m{depth_max}"]
        begun = time.monotonic()
        try:
            done = subprocess.run(
                words, cwd=folder, capture_output=True, text=True, check=False, timeout=SEARCH_S_MAX
            )
        except subprocess.TimeoutExpired:
            return Outcome(case, 0, 0, SEARCH_S_MAX, "", f"more than {SEARCH_S_MAX:.0f} s")
        return read(case, done.stdout + done.stderr, time.monotonic() - begun)


def read(case: Case, said: str, seconds: float) -> Outcome:
    """What pan printed."""
    found = re.search(r"^pan:1: assertion violated (.*) \(at depth", said, re.MULTILINE)
    broken = found[1].strip() if found else ""
    cut_short = "" if broken else reason(said)
    if "buffered[" in broken:
        broken, cut_short = "", "the model's store buffer is too short"
    return Outcome(
        case,
        states=int(float(number(r"^\s*(\S+) states, stored", said))),
        depth=int(number(r"depth reached (\d+)", said)),
        seconds=seconds,
        broken=broken,
        cut_short=cut_short,
    )


def number(pattern: str, said: str) -> str:
    found = re.search(pattern, said, re.MULTILINE)
    return found[1] if found else "0"


def reason(said: str) -> str:
    """Why pan did not look at every state; empty when it did."""
    for sign in ("max search depth too small", "reached -DMEMLIM bound", "out of memory"):
        if sign in said:
            return sign
    finished = "errors: 0" in said and "Search not completed" not in said
    return "" if finished else f"pan stopped: {said[-300:]}"


HEAD = f"{'what':<44} w r n puts kills {'states':>11} {'depth':>7} {'s':>6}  result"


def row(outcome: Outcome) -> str:
    case = outcome.case
    kills = "any" if case.kills is None else case.kills
    return (
        f"{case.title:<44} {case.writers} {case.readers} {case.width} {case.puts:>4} {kills:>5} "
        f"{outcome.states:>11,} {outcome.depth:>7,} {outcome.seconds:>6.1f}  {outcome.verdict}"
    )


def trace(case: Case) -> str:
    """The shortest way to the broken promise, step by step."""
    with tempfile.TemporaryDirectory(prefix="ring-model-") as name:
        folder = Path(name)
        words = [str(build(case, folder, "-DBFS")), "-E"]
        subprocess.run(words, cwd=folder, capture_output=True, check=False, timeout=SEARCH_S_MAX)
        shutil.copy(MODEL, folder)
        replay = ["spin", "-t", "-p", "-g", *case.defines, MODEL.name]
        shown = subprocess.run(replay, cwd=folder, capture_output=True, text=True, check=False)
        return shown.stdout


def main(argv: list[str]) -> int:
    mistakes = {case.mistake.lower(): case for case in MISTAKES}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="only the small ones")
    parser.add_argument("--trace", choices=mistakes, help="how this mistake comes to light")
    arguments = parser.parse_args(argv)
    for program in ("spin", "gcc"):
        if shutil.which(program) is None:
            print(f"{program} is not installed: apt-get install {program}", file=sys.stderr)
            return 2
    if arguments.trace:
        print(trace(mistakes[arguments.trace]))
        return 0
    return report(case for case in CASES if not (case.long and arguments.short))


def report(cases: Iterable[Case]) -> int:
    """Prints the table; 1 when a row is not as it must be."""
    print(HEAD, flush=True)
    begun, count, bad = time.monotonic(), 0, 0
    for case in cases:
        outcome = search(case)
        print(row(outcome), flush=True)
        count += 1
        bad += not outcome.good
    seconds = time.monotonic() - begun
    print(f"{count} searches, {bad} not as they must be; {seconds:.0f} s with building")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

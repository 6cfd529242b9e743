"""How a benchmark measures: sides in interleaved rounds, CPU of process trees, the machine.

A benchmark has sides that do the same work. Each round runs every side once, and the order is
rotated from round to round, so that whatever else the machine does meets all sides alike. Two sides
are compared within each round; of these ratios the median counts, shown with min and max.

    sides = [Side("ours", run_ours), Side("zmq", run_zmq, install=missing_package("zmq", "pyzmq"))]
    rounds = list(interleave("one by one", sides, count=5))
    ratio(rounds, "one by one", "messages_per_s", "ours", "zmq").median
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from msgspec import Struct

Figures = dict[str, float]

RESULTS = Path(__file__).parent / "results"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
VERSION_S_MAX = 10.0


class Side(Struct, frozen=True):
    """One of those compared. `run` does one round and returns its figures, the unit at the end of
    each name; it raises when the work was not done whole. `install`: the command that would bring
    what is missing here, then the side is not run; empty when nothing is missing."""

    name: str
    run: Callable[[], Figures]
    install: str = ""


class Round(Struct, frozen=True):
    """One side's run. `number`: of the round, from 0; `place`: its place in it, from 0; `failure`:
    why it has no figures."""

    table: str
    number: int
    place: int
    side: str
    figures: Figures
    failure: str = ""


class Spread(Struct, frozen=True):
    """Median, lowest and highest of `count` values, none of them left out."""

    median: float
    low: float
    high: float
    count: int


class SideFailed(Exception):
    """A side did not do its work, or not as it should."""


class Options(Struct, frozen=True):
    """quick: seconds instead of minutes, to see that it runs; its figures mean nothing."""

    quick: bool
    rounds: int
    folder: Path
    only: list[str]
    sides: list[str] = []


class Machine(Struct, frozen=True):
    """What was measured on, and with. load_1m: the load average as the run began."""

    cpu: str
    cores: int
    memory_bytes: int
    kernel: str
    virtual: bool
    python: str
    load_1m: float
    versions: dict[str, str]


def parse_options(
    description: str | None, argv: Sequence[str] | None = None, *, rounds: int = 5
) -> Options:
    """The flags that every benchmark has; --quick does one round unless --rounds says more."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n\n")[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="a few seconds: shows that it runs, no more")
    add("--rounds", type=int, help=f"interleaved rounds (default {rounds}, quick 1)")
    add("--results", type=Path, default=RESULTS, help="folder for JSON and plots")
    add("--only", action="append", default=[], metavar="TABLE", help="that table (repeatable)")
    add("--side", action="append", default=[], metavar="SIDE", help="that side (repeatable)")
    given = parser.parse_args(argv)
    count = given.rounds if given.rounds is not None else 1 if given.quick else rounds
    if count < 1:
        parser.error(f"--rounds {count}: must be at least 1")
    return Options(given.quick, count, given.results, given.only, given.side)


def interleave(table: str, sides: Sequence[Side], count: int) -> Iterator[Round]:
    """Runs every side that is installed once per round, rotating who comes first.

    A side that raises SideFailed does not run again.
    """
    present = [side for side in sides if not side.install]
    for number in range(count):
        turn = number % max(1, len(present))
        for place, side in enumerate(present[turn:] + present[:turn]):
            try:
                yield Round(table, number, place, side.name, side.run())
            except SideFailed as error:
                present.remove(side)
                yield Round(table, number, place, side.name, {}, failure=str(error))


def values(rounds: Iterable[Round], table: str, figure: str, side: str) -> dict[int, float]:
    """A side's figure in each round, by the round's number."""
    return {
        one.number: one.figures[figure]
        for one in rounds
        if (one.table, one.side) == (table, side) and figure in one.figures
    }


def spread(numbers: Iterable[float]) -> Spread | None:
    """None of nothing."""
    found = list(numbers)
    if not found:
        return None
    return Spread(statistics.median(found), min(found), max(found), len(found))


def ratio(
    rounds: Sequence[Round], table: str, figure: str, side: str, against: str
) -> Spread | None:
    """`side` over `against`, pair by pair of the same round; None when either did not run."""
    ours, theirs = values(rounds, table, figure, side), values(rounds, table, figure, against)
    return spread(ours[n] / theirs[n] for n in ours if theirs.get(n))


def cpu_s(*pids: int) -> float:
    """Seconds of CPU, user and system, that these processes and their descendants have used.

    Children that have ended and been waited for are in it, so the difference of two calls holds
    while processes come and go. Counted in ticks of the kernel, 10 ms each: measure over seconds.
    """
    stats = _stats()
    tree = set(pids)
    fresh = set(pids)
    while fresh:
        fresh = {pid for pid, (parent, _) in stats.items() if parent in fresh} - tree
        tree |= fresh
    return sum(stats[pid][1] for pid in tree if pid in stats) / TICKS_PER_S


def rss_bytes(*pids: int) -> int:
    """Resident memory of these processes together; pages they share count once for each."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = 0
    for pid in pids:
        with suppress(OSError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
    return total


def descendants(pid: int) -> list[int]:
    """The living processes below that one, itself not among them."""
    stats = _stats()
    found: list[int] = []
    fresh = {pid}
    while fresh:
        fresh = {child for child, (parent, _) in stats.items() if parent in fresh} - set(found)
        found += sorted(fresh)
    return found


def machine(packages: Sequence[str] = (), programs: Sequence[Sequence[str]] = ()) -> Machine:
    """Facts of this machine, and versions of `packages` (names on PyPI) and of `programs`, each a
    command that prints its own, as `["nginx", "-v"]`."""
    versions = {name: _package_version(name) for name in packages}
    versions |= {command[0]: _program_version(command) for command in programs}
    info = Path("/proc/cpuinfo").read_text()
    return Machine(
        cpu=_field(info, "model name") or platform.machine(),
        cores=os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=platform.release(),
        virtual="hypervisor" in (_field(info, "flags") or "").split(),
        python=platform.python_version(),
        load_1m=os.getloadavg()[0],
        versions=versions,
    )


def missing_package(module: str, package: str) -> str:
    """The command that installs it, or nothing when it is there."""
    return "" if importlib.util.find_spec(module) else f"pip install {package}"


def missing_program(program: str, package: str) -> str:
    """The same for a program from Debian's packages; sbin counts as on the path."""
    return "" if find_program(program) else f"apt-get install {package}"


def find_program(program: str) -> str | None:
    """Where it is; servers lie in sbin, which is not on everybody's path."""
    path = os.environ.get("PATH", os.defpath)
    return shutil.which(program, path=f"{path}:/usr/sbin:/usr/local/sbin")


def _stats() -> dict[int, tuple[int, int]]:
    """Parent and ticks of every process."""
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):
                # The name in parentheses may hold anything, blanks and parentheses too.
                fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                found[int(entry.name)] = int(fields[1]), sum(map(int, fields[11:15]))
    return found


def _field(text: str, name: str) -> str | None:
    lines = [line for line in text.splitlines() if line.startswith(name)]
    return lines[0].partition(":")[2].strip() if lines else None


def _package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _program_version(command: Sequence[str]) -> str:
    program = find_program(command[0])
    if program is None:
        return "not installed"
    done = subprocess.run(
        [program, *command[1:]], capture_output=True, text=True, check=False, timeout=VERSION_S_MAX
    )
    said = (done.stdout + done.stderr).strip()
    return said.splitlines()[0] if said else "of unknown version"

"""What does Rasher cost when nothing comes, and how fast is it awake when something does?

The CPU of all its processes over a minute in which nobody asks anything, and the time from a put in
one process to the return of the take in another that slept, one message at a time, against other
ways to tell another process something. The ends have a core each.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cores import run_s
from benchmarks.measure import (
    Figures,
    Options,
    Side,
    Spread,
    machine,
    missing_package,
    parse_options,
    spread,
)
from benchmarks.orders import BODIES
from benchmarks.program import MEMORY, Program, running, scratch
from benchmarks.report import Bench
from benchmarks.stock import NotDone
from benchmarks.wakes import SHAPE, MpWay, Nanoseconds, OursWay, PipeWay, Way, ZmqWay, wake
from processors.settings import default_workers

QUIET_S, QUICK_QUIET_S = 60.0, 0.5
# Starting, and the last order, are over by then; no connection is idle any more.
SETTLE_S, QUICK_SETTLE_S = 10.0, 0.2
WAKES, QUICK_WAKES = 1_000, 30
COMMIT_S_MAX, POLL_S = 30.0, 0.02
QUIET, AWAKE = "a quiet minute", "waking up"
TWO, DEFAULT = "1 front, 2 workers", "as it comes"
OURS = "ours"
CPU = "cpu_percent_of_a_core"
CURVE = (10, 25, 50, 75, 90, 95, 98, 99, 99.5, 99.9)
NS_PER_US = 1e3


def run_quiet(options: Options, workers: int) -> Figures:
    """One round: one order to the end, so that all has been at work once, then nothing."""
    quiet_s = QUICK_QUIET_S if options.quick else QUIET_S
    with scratch("idle", options.folder) as folder, running(folder, workers=workers) as program:
        settle_one(program)
        time.sleep(QUICK_SETTLE_S if options.quick else SETTLE_S)
        pids, start_s = program.pids, time.monotonic()
        cpu_s, switches = run_s(pids), switches_of(pids)
        time.sleep(quiet_s)
        cpu_s, switches = run_s(pids) - cpu_s, switches_of(pids) - switches
        quiet_s = time.monotonic() - start_s
        if program.pids != pids:
            raise NotDone(f"processes {pids} at the start, {program.pids} at the end")
    return {
        CPU: cpu_s / quiet_s * 100,
        "wakes_per_s": switches / quiet_s,
        "processes": len(pids),
    }


def settle_one(program: Program) -> None:
    """Posts an order and waits for its row. Raises NotDone."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{program.port}/orders", BODIES[0], {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=COMMIT_S_MAX):
        pass
    deadline = time.monotonic() + COMMIT_S_MAX
    with closing(sqlite3.connect(program.data_dir / "rasher.db")) as database:
        while not database.execute("SELECT count(*) FROM orders").fetchone()[0]:
            if time.monotonic() > deadline:
                raise NotDone(f"an order was not committed within {COMMIT_S_MAX:g} s")
            time.sleep(POLL_S)


def switches_of(pids: Sequence[int]) -> int:
    """How often the threads of these processes have gone to sleep."""
    total = 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                for line in (thread / "status").read_text().splitlines():
                    if line.startswith("voluntary_ctxt_switches:"):
                        total += int(line.split()[1])
    return total


class Awake:
    """Rounds of waking. `found`: of each side, what all its rounds took."""

    def __init__(self, options: Options) -> None:
        self._count = QUICK_WAKES if options.quick else WAKES
        self.found: dict[str, list[Nanoseconds]] = {}

    def side(self, name: str, way: type[Way], install: str = "") -> Side:
        """Of that way."""
        return Side(name, partial(self.run, name, way), install)

    def run(self, name: str, way: Any) -> Figures:
        """One round."""
        with tempfile.TemporaryDirectory(prefix="rasher-bench-", dir=MEMORY) as folder:
            channel: Way = way(Path(folder), SHAPE)
            try:
                took_ns = wake(channel, self._count)
            finally:
                channel.close()
        self.found.setdefault(name, []).append(took_ns)
        return {
            f"{label}_us": float(np.percentile(took_ns, percent)) / NS_PER_US
            for label, percent in (("p50", 50), ("p90", 90), ("p99", 99))
        }

    def draw(self, bench: Bench) -> None:
        """The distributions, over all rounds."""
        series: dict[str, dict[float, Spread | None]] = {}
        for name, rounds in self.found.items():
            both = np.concatenate(rounds)
            series[name] = {
                1 / (1 - percent / 100): spread([float(np.percentile(both, percent)) / NS_PER_US])
                for percent in CURVE
            }
        bench.lines("percentiles", "one of so many takes at least", "us", series)


def run_awake(bench: Bench) -> None:
    """The second table."""
    awake = Awake(bench.options)
    sides = [
        awake.side(OURS, OursWay),
        awake.side("os.pipe", PipeWay),
        awake.side("multiprocessing.Queue", MpWay),
        awake.side("pyzmq", ZmqWay, missing_package("zmq", "pyzmq")),
    ]
    bench.run(AWAKE, sides)
    for side in sides[1:]:
        bench.compare(AWAKE, "p50_us", OURS, side.name)
    awake.draw(bench)


def run(options: Options) -> int:
    """All of it; the exit code of the benchmark."""
    options.folder.mkdir(parents=True, exist_ok=True)
    bench = Bench("idle", __doc__, options, machine(["pyzmq", "uvloop"]))
    if bench.wants(QUIET):
        counts = {TWO: 2, DEFAULT: default_workers()}
        bench.note(f"{DEFAULT}: 1 front, {counts[DEFAULT]} workers on this machine")
        sides = [Side(name, partial(run_quiet, options, count)) for name, count in counts.items()]
        bench.run(QUIET, sides)
        for side in sides:
            bench.limit(QUIET, CPU, side.name, at_most=1)
    if bench.wants(AWAKE):
        run_awake(bench)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(run(parse_options(__doc__, rounds=5)))

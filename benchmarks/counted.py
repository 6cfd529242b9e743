"""A BaconWorker in callgrind, which counts the instructions between two of its batches.

    counts = count_worker(folder)     # runs `python -m benchmarks.counted FOLDER LIBRARY` in it

The folder has `rasher.db` and `bench.ring`, closed, with orders for WARM_UP, the counted and STEPS.
Callgrind emulates the processor and counts what the process itself executes, Python, SQLite and
all, to the instruction; what the kernel does for it is not counted. A second run counts the same
within a thousandth, so nothing depends on what else the machine does.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from benchmarks.stock import NotDone, url_of
from processors.pipeline import fefo
from processors.stop import Stop
from processors.store import Store
from processors.upkeep import Upkeep
from processors.worker import BaconWorker, Rules
from ringbuf import Ring

BATCH = 64
# Orders before the counted ones, which compile statements and read pages, and after them, for
# which the steps of SQLite's virtual machine are counted.
WARM_UP = STEPS = 2 * BATCH
ROOT = Path(__file__).parent.parent
RUN_S_MAX = 600.0
# The emulation is slow; a worker that minded would take fewer orders at once.
ORDER_TIMEOUT_S = 3600.0
SQLITE = "libsqlite3"
SAID_CHARACTERS_MAX = 2000
COST = re.compile(r"[-+*\d]\S* (\d+)")
NAMED = re.compile(r"c?ob=\((\d+)\)(?: (.*))?")


class Counts(Struct, frozen=True):
    """Instructions of the counted orders by shared object; `steps`: of SQLite's virtual machine for
    the STEPS orders after them."""

    objects: dict[str, int]
    steps: int

    @property
    def instructions(self) -> int:
        """All of them."""
        return sum(self.objects.values())

    @property
    def in_sqlite(self) -> int:
        """Those in SQLite, where it is a library of its own."""
        return sum(count for name, count in self.objects.items() if SQLITE in name)


class Counting(Upkeep):
    """Switches between batches. Checkpoints come by orders alone: by the clock, an emulated worker
    would have more of them than orders in a second."""

    def __init__(self, store: Store, library: ctypes.CDLL, counted: int) -> None:
        super().__init__(store)
        self._sqlite = store
        self._library = library
        self._counted = counted
        self._settled = 0
        self.steps = 0

    def look(self) -> None:
        """Nothing is due for the clock."""

    def committed(self, orders: int) -> None:
        """After each commit."""
        super().committed(orders)
        self._settled += orders
        if self._settled == WARM_UP:
            self._library.counting_start()
        elif self._settled == WARM_UP + self._counted:
            self._library.counting_stop()
            self._count_steps()

    def _count_steps(self) -> None:
        with self._sqlite.reading() as connection:
            driver: Any = connection.connection.driver_connection
        driver.set_progress_handler(self._step, 1)

    def _step(self) -> int:
        self.steps += 1
        return 0


def work(folder: Path, library: Path) -> int:
    """Settles everything in the ring; the steps."""
    store = Store.open(url_of(folder / "rasher.db"), connections_max=1)
    rules = Rules(BATCH, order_timeout_s=ORDER_TIMEOUT_S)
    with Ring.attach(folder / "bench.ring") as ring:
        counted = ring.capacity - WARM_UP - STEPS
        counting = Counting(store, ctypes.CDLL(str(library)), counted)
        with Stop() as stop, ring.reader(0) as reader:
            BaconWorker(ring, store, fefo(), rules, stop, upkeep=counting).run(reader)
    store.close()
    return counting.steps


def count_worker(folder: Path) -> Counts:
    """What callgrind counts. Raises NotDone."""
    library, output = compile_switches(folder), folder / "callgrind.out"
    callgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no"]
    said = _run(
        [
            *callgrind, f"--callgrind-out-file={output}", f"--log-file={folder / 'valgrind.log'}",
            *(sys.executable, "-m", "benchmarks.counted", str(folder), str(library)),
        ]
    )  # fmt: skip
    with output.open(encoding="utf-8", errors="replace") as lines:
        objects = by_object(lines)
    return Counts(objects, msgspec.json.decode(said, type=int))


def compile_switches(folder: Path) -> Path:
    """The shared library of counting.c. Raises NotDone."""
    library = folder / "counting.so"
    source = Path(__file__).with_name("counting.c")
    _run(["cc", "-O2", "-shared", "-fPIC", str(source), "-o", str(library)])
    return library


def by_object(lines: Iterable[str]) -> dict[str, int]:
    """Instructions by shared object, from callgrind's output: what functions cost themselves."""
    found: Counter[str] = Counter()
    names: dict[str, str] = {}
    current = ""
    inclusive = False  # the line behind "calls=" has what the called functions cost
    for line in lines:
        if named := NAMED.match(line):
            name = names.setdefault(named[1], named[2] or "")
            current = name if line.startswith("ob=") else current
        elif cost := COST.match(line):
            found[current] += 0 if inclusive else int(cost[1])
        inclusive = line.startswith("calls=")
    return dict(found)


def _run(command: list[str]) -> str:
    """What it prints. Hashes are the same in each run. Raises NotDone."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "0"}, capture_output=True,
            text=True, check=False, timeout=RUN_S_MAX,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NotDone(f"{command[0]} has not ended within {RUN_S_MAX:g} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout)[-SAID_CHARACTERS_MAX:]
        raise NotDone(f"{command[0]} ended with {done.returncode}: {said}")
    return done.stdout


if __name__ == "__main__":
    print(work(Path(sys.argv[1]), Path(sys.argv[2])))

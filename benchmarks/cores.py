"""Which core runs what, and the CPU of single processes.

Where a server is judged, it has the first of our cores and the load the last, so that neither takes
the other's time; on a machine of one core both are the same.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

NS_PER_S = 1e9


def server_core() -> int:
    """What is measured runs there."""
    return min(os.sched_getaffinity(0))


def load_core() -> int:
    """Who sends runs there."""
    return max(os.sched_getaffinity(0))


def on_core(core: int, command: Sequence[str]) -> list[str]:
    """That command, and all that it starts, on one core."""
    return ["taskset", "-c", str(core), *command]


def own_cpu_s(pids: Sequence[int]) -> float:
    """Seconds of CPU, user and system, of these processes alone; what they started is not in it."""
    ticks = 0
    for pid in pids:
        # The name in parentheses may hold anything, blanks and parentheses too.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def run_s(pids: Sequence[int]) -> float:
    """Seconds of CPU that the living threads of these processes have had, exact to nanoseconds:
    for processes that do next to nothing, of which ticks of 10 ms would tell nothing."""
    total_ns = 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                total_ns += int((thread / "schedstat").read_text().split()[0])
    return total_ns / NS_PER_S

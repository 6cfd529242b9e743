"""How much of the cores that this process shares is idle: of the machine's, and of those that its
control group may use, if that is less."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from processors.control_group import group_counter, group_file

STAT = Path("/proc/stat")
# user, nice, system, idle, iowait, irq, softirq, steal; guests are in user.
FIELDS, IDLE = 8, 3


class Cores:
    """`count`: cores that may be used, by all who share them. Linux; where it can't be known, all
    are idle. Neither a limit of a group above this process's own is seen, nor a choice of CPUs."""

    def __init__(
        self,
        stat: Path = STAT,
        group: Callable[[str], Path | None] = group_file,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stat = stat
        self._machine = os.cpu_count() or 1
        quota, self._usage = _quota(group("cpu.max")), group("cpu.stat")
        if quota is None or quota >= self._machine:
            quota, self._usage = None, None
        self.count = float(self._machine) if quota is None else quota
        self._now_s = now_s
        self._ticks, self._used = self._read_ticks(), self._read_usage()

    def idle(self) -> float:
        """Cores, on average since the last time that this was asked; 0 to `count`."""
        return max(0.0, min(self.count, self._idle_of_machine(), self._idle_of_group()))

    def _idle_of_machine(self) -> float:
        before, self._ticks = self._ticks, self._read_ticks()
        idle, whole = (now - then for now, then in zip(self._ticks, before, strict=True))
        return idle / whole * self._machine if whole > 0 else self.count

    def _idle_of_group(self) -> float:
        before, self._used = self._used, self._read_usage()
        if before is None or self._used is None or self._used[0] <= before[0]:
            return self.count
        return self.count - (self._used[1] - before[1]) / (self._used[0] - before[0])

    def _read_ticks(self) -> tuple[int, int]:
        """Idle ones, and all."""
        try:
            with self._stat.open(encoding="ascii") as file:
                ticks = [int(word) for word in file.readline().split()[1 : 1 + FIELDS]]
        except (OSError, ValueError):
            return 0, 0
        return (ticks[IDLE], sum(ticks)) if len(ticks) > IDLE else (0, 0)

    def _read_usage(self) -> tuple[float, float] | None:
        """Now, and the CPU time that the group has used; seconds."""
        used_us = group_counter(self._usage, "usage_usec") if self._usage else None
        return None if used_us is None else (self._now_s(), used_us / 1e6)


def _quota(path: Path | None) -> float | None:
    """Cores that a group may use; None: no limit."""
    try:
        allowed, period = path.read_text(encoding="ascii").split() if path else ("max", "1")
        return None if allowed == "max" else int(allowed) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None

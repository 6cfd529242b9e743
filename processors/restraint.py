"""How the relay leaves the cores to orders: while hardly anything of them is idle, it runs for one
part in twenty of one core's time and no more, whatever its niceness would get it.

A process of niceness 15 still takes what it finds between two wake-ups of others, a third of a core
in a rush that fills two. Partners hear of that rush a little later instead. Nothing is held back
while cores are idle, and what was held back is let go as soon as they are.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path

# Of one core, while the cores are wanted; and from which part of all of them on they are not.
SHARE = 0.05
IDLE_MIN = 0.15
LOOK_EVERY_S = 0.25
STAT = Path("/proc/stat")


class Cores:
    """What part of the machine's cores was idle since the last look."""

    def __init__(self, stat: Path = STAT) -> None:
        self._stat = stat
        self._idle, self._all = self._read()

    def idle_share(self) -> float:
        """0 to 1; 1 where it can't be known."""
        idle, whole = self._read()
        before, self._idle, self._all = (self._idle, self._all), idle, whole
        return (idle - before[0]) / (whole - before[1]) if whole > before[1] else 1.0

    def _read(self) -> tuple[int, int]:
        try:
            numbers = [int(word) for word in self._stat.read_text().split("\n", 1)[0].split()[1:9]]
        except (OSError, ValueError):
            return 0, 0
        return (numbers[3], sum(numbers)) if len(numbers) > 3 else (0, 0)


class Restraint:
    """Of one process. `cpu_s`: what it has used; `idle_share`: of all cores since it was asked."""

    def __init__(
        self,
        idle_share: Callable[[], float] | None = None,
        cpu_s: Callable[[], float] = time.process_time,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._idle_share = idle_share or Cores().idle_share
        self._cpu_s, self._now_s = cpu_s, now_s
        self._used_s = cpu_s()
        self._looked_s = now_s()
        self._wanted = False
        self._free_s = 0.0

    async def give_way(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        """Before something is begun that takes time. `sleep` returns at once when it is to end."""
        self._owe()
        while (left_s := self._free_s - self._now_s()) > 0:
            begun_s, asked_s = self._now_s(), min(left_s, LOOK_EVERY_S)
            await sleep(asked_s)
            if self._now_s() - begun_s < asked_s / 2:
                return  # cut short: it is to end, and would not sleep the next time either
            self._look()

    def _owe(self) -> None:
        self._look()
        used_s, self._used_s = self._cpu_s() - self._used_s, self._cpu_s()
        if self._wanted:
            self._free_s = max(self._free_s, self._now_s()) + used_s * (1 / SHARE - 1)

    def _look(self) -> None:
        now_s = self._now_s()
        if now_s - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s = now_s
        self._wanted = self._idle_share() < IDLE_MIN
        if not self._wanted:
            self._free_s = 0.0

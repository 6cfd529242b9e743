"""How the relay leaves the cores to orders: it runs while cores are idle, a part of them apart, and
when they are not it has three hundredths of one core, whatever its niceness would get it.

A process of niceness 15 still takes what it finds between two wake-ups of others, a third of a core
in a rush that fills two. Partners hear of that rush a little later instead.

It looks at the cores now and then. If more than the reserve was idle, it may have the rest on top
of what it had; what was missing of the reserve it gives back several times over, so a rush has the
cores at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from processors.cores import Cores

# Of one core, whatever there is to do; and the part of all of them that it leaves idle.
SHARE = 0.03
RESERVE = 0.15
GIVEN_BACK = 3
# The kernel counts in hundredths of a second.
LOOK_EVERY_S = 0.1


class Restraint:
    """Of one process. `idle`: cores that were, since it was asked before; `count`: that there are;
    `cpu_s`: what the process has used."""

    def __init__(
        self,
        idle: Callable[[], float],
        count: float,
        cpu_s: Callable[[], float] = time.process_time,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._idle, self._count = idle, count
        self._cpu_s, self._now_s = cpu_s, now_s
        self._share = count  # in cores
        self._left_s = 0.0  # of CPU time; what is not used is not kept
        self._settled_s, self._settled_cpu_s = now_s(), cpu_s()
        self._looked_s, self._looked_cpu_s = self._settled_s, self._settled_cpu_s
        self._turn = asyncio.Lock()

    @classmethod
    def of_cores(cls) -> Restraint:
        """Of this process, and the cores that it shares."""
        cores = Cores()
        return cls(cores.idle, cores.count)

    async def give_way(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        """Before something is begun that takes time. `sleep` returns at once when it is to end."""
        async with self._turn:  # one looks at the clock for all, for that takes time, too
            self._settle()
            while self._left_s < 0:
                begun_s, asked_s = self._now_s(), min(-self._left_s / self._share, LOOK_EVERY_S)
                await sleep(asked_s)
                if self._now_s() - begun_s < asked_s / 2:
                    return  # cut short: it is to end, and would not sleep the next time either
                self._settle()

    def _settle(self) -> None:
        now_s, cpu_s = self._now_s(), self._cpu_s()
        earned_s = (now_s - self._settled_s) * self._share
        self._left_s = min(0.0, self._left_s + earned_s - (cpu_s - self._settled_cpu_s))
        self._settled_s, self._settled_cpu_s = now_s, cpu_s
        if now_s - self._looked_s >= LOOK_EVERY_S:
            had = (cpu_s - self._looked_cpu_s) / (now_s - self._looked_s)
            spare = self._idle() - RESERVE * self._count
            share = had + spare * (1 if spare > 0 else GIVEN_BACK)
            self._share = min(max(SHARE, share), self._count)
            self._looked_s, self._looked_cpu_s = now_s, cpu_s

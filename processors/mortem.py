"""What is learned from the end of a worker: whether it ended by itself, and for which order's sake.

Whoever is killed from outside is a victim, and so is the order that it was at: a storm of kills
makes no dead letters. A signal of its own making, an exit that nobody asked for, its time being up
and the kernel's want of memory are put down to the order that it had begun alone. A batch is of
nobody in particular: the next worker runs its orders one by one.
"""

from __future__ import annotations

import logging
import signal
from pathlib import Path

from processors.control_group import group_counter, group_file
from ringbuf import Ring

CRASHED = "worker_crashed"
TIMED_OUT = "timed_out"
OUT_OF_MEMORY = "out_of_memory"

OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP})
OOM_KEY = "oom_kill"
# What the interpreter tells beyond the traceback.
EXTENSIONS = "\n\nExtension modules:"

log = logging.getLogger("supervisor")


class PostMortem:
    """Of the workers of one ring, of which none lives yet."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        for index in range(ring.readers):  # how those of before ended nobody knows
            ring.acquit(index)
        self._oom_kills = count_oom_kills()

    def examine(self, index: int, returncode: int, how: str, words: str) -> bool:
        """Worker `index` has ended and has no follower yet -> whether an order is blamed.

        `returncode` as in subprocess; `how` says the same in words, `words` are its own last ones.
        """
        reason = self._reason(returncode)
        words = words.split(EXTENSIONS, maxsplit=1)[0].strip()
        if words:
            log.error("worker %d left a traceback: %s", index, words)
        if reason is None:
            self._ring.acquit(index)
            return False
        note = f"{reason}\na worker that ran this order alone {how}\n\n{words}"
        blamed = self._ring.blame(index, note, late=reason == TIMED_OUT)
        if blamed:
            log.warning("worker %d: the order that it had begun alone is blamed: %s", index, reason)
        return blamed

    def _reason(self, returncode: int) -> str | None:
        before, self._oom_kills = self._oom_kills, count_oom_kills()
        if returncode == -signal.SIGKILL and self._oom_kills > before:
            return OUT_OF_MEMORY
        if returncode == -signal.SIGALRM:
            return TIMED_OUT
        return None if -returncode in OUTSIDE else CRASHED


def count_oom_kills() -> int:
    """Processes that the kernel has killed for want of memory: of this control group, where it can
    be asked, else of the machine; 0 where neither tells."""
    for path in (group_file("memory.events"), Path("/proc/vmstat")):
        if path is not None and (count := group_counter(path, OOM_KEY)) is not None:
            return count
    return 0

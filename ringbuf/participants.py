"""Who takes part in a ring, and whether he still lives.

A participant is one 64-bit word in the mapping, so that it is whole at any instant: the pid in the
low 22 bits (Linux's limit) and the process's start time, in clock ticks since boot, above. Pids
come round again; pid and start time together do not within one boot, and a ring never outlives one.
"""

from __future__ import annotations

import errno
import os
import select
import signal
from dataclasses import dataclass
from pathlib import Path

PID_BITS = 22
# The number of one of some process's threads, which a pid may have become, is ENOENT or EINVAL.
NO_PROCESS = (errno.ESRCH, errno.ENOENT, errno.EINVAL)


def boot_id() -> bytes:
    """The 16 bytes that name this boot of the machine."""
    text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    return bytes.fromhex(text.strip().replace("-", ""))


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name (field 2) may hold spaces and brackets: count from the last bracket. 22 is the start.
    return int(stat.rpartition(b")")[2].split()[19])


def own_identity() -> int:
    """The word that names this process."""
    # Not cached: a forked child would inherit it, and its pid may be that of a dead ancestor.
    pid = os.getpid()
    ticks = start_ticks(pid)
    assert ticks is not None, "a running process has an entry under /proc"
    return pid | ticks << PID_BITS


@dataclass(frozen=True)
class Participant:
    """A reader or writer recorded in the ring. ``index`` counts within the role."""

    role: str
    index: int
    pid: int
    start_ticks: int

    @classmethod
    def from_identity(cls, role: str, index: int, identity: int) -> Participant:
        return cls(role, index, identity & ((1 << PID_BITS) - 1), identity >> PID_BITS)

    @property
    def identity(self) -> int:
        return self.pid | self.start_ticks << PID_BITS

    def _pidfd(self) -> int | None:
        """A handle on that very process, None when it is gone."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except OSError as error:
            if error.errno in NO_PROCESS:
                return None
            raise
        if start_ticks(self.pid) == self.start_ticks:
            return pidfd
        os.close(pidfd)
        return None

    def gone_within(self, timeout_s: float) -> bool:
        """Waits until every thread of it has ended: only then can it store nothing any more."""
        pidfd = self._pidfd()
        if pidfd is None:
            return True
        try:
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            return bool(poller.poll(timeout_s * 1000))
        finally:
            os.close(pidfd)

    def alive(self) -> bool:
        return not self.gone_within(0)

    def kill(self) -> None:
        """SIGKILL, aimed through a pidfd so that a reused pid is never hit."""
        pidfd = self._pidfd()
        if pidfd is None:
            return
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        finally:
            os.close(pidfd)

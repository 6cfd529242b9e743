"""Asked to stop: a flag that a signal handler may raise and a sleeper wakes up from."""

from __future__ import annotations

import os
import select
from typing import Self


class Stop:
    """Without locks, unlike threading.Event: a handler runs inside the main thread, and a lock that
    the interrupted code holds could never be had by it."""

    def __init__(self) -> None:
        self.requested = False
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def request(self, *_signal: object) -> None:
        """Raises the flag; fit for a signal handler, and twice is harmless."""
        self.requested = True
        os.eventfd_write(self._fd, 1)

    def wait(self, seconds: float) -> bool:
        """Sleeps until the request, and `seconds` at most. Returns whether there is one."""
        if not self.requested:
            self._poll.poll(max(0.0, seconds) * 1000)
        return self.requested

    def wait_for(self, fd: int) -> bool:
        """Sleeps until `fd` can be read or has ended, or the request. Returns whether there is one;
        the request goes first."""
        poll = select.poll()
        for one in (fd, self._fd):
            poll.register(one, select.POLLIN)
        poll.poll()
        return self.requested

    def close(self) -> None:
        """Gives the descriptor back; nobody may request or wait from then on."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

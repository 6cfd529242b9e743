"""How long orders may take: what ends a worker that hangs, and how many orders it takes at once.

An order that never ends blocks whoever was taken with it. They shall wait for one `--order-timeout`
at most until they are settled, so it is spent in parts:

    a batch                          a half: nobody is blamed, its orders are run one by one
    each of them alone, the first    a quarter: that one is run again behind the others
    time
    ... again, or an order that      all of it: a crash of that order
    came alone

No batch should come near a half of it only because its orders are slow: so as many are taken at
once as should be done within an eighth.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import traceback

BATCH_SHARE = 1 / 2
TRIAL_SHARE = 1 / 4
TAKEN_SHARE = 1 / 8
# How fast a pace that was too slow is forgotten.
EASE = 0.25


class Alarm:
    """Ends this process when a time is up, whatever it is at: also C code that holds the GIL, for
    the kernel does it. `fd`: where the traceback goes that it, or any fatal signal, leaves. One of
    a process, for the timer is the process's own."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        faulthandler.enable(fd, all_threads=False)
        faulthandler.register(signal.SIGALRM, fd, all_threads=False, chain=True)

    def arm(self, seconds: float) -> None:
        """SIGALRM comes then."""
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def disarm(self) -> None:
        """It does not come."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def tell(self, error: BaseException) -> None:
        """Leaves the traceback of what ends this process without a signal."""
        text = repr(error) + "\n" + "".join(traceback.format_tb(error.__traceback__))
        os.write(self._fd, text.encode("utf-8", "replace"))


class Pace:
    """What an order takes in the processor, as far as it was seen. `taken_s`: for a batch."""

    def __init__(self, taken_s: float) -> None:
        self._taken_s = taken_s
        self._order_s = 0.0

    def note(self, orders: int, seconds: float) -> None:
        """Slow orders count at once, quick ones little by little."""
        seen_s = seconds / orders
        self._order_s = max(seen_s, self._order_s + EASE * (seen_s - self._order_s))

    def most(self, batch: int) -> int:
        """How many of at most `batch` orders should be taken at once; at least 1."""
        if self._order_s * batch <= self._taken_s:
            return batch
        return max(1, int(self._taken_s / self._order_s))

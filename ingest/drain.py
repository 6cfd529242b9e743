"""How fast the ring drains, measured when somebody asks or waits; costs nothing when idle."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

SAMPLES_MAX = 16
SAMPLE_SPACING_S = 1.0
WINDOW_S = 15.0
RETRY_AFTER_MAX_S = 60


class DrainMeter:
    """Orders taken out of the ring per second, over the last 15 s at most.

    `head` gives the ring's head: how many orders were ever taken.
    """

    def __init__(
        self, head: Callable[[], int], clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._head = head
        self._clock_s = clock_s
        self._samples: deque[tuple[float, int]] = deque(maxlen=SAMPLES_MAX)

    def note(self) -> None:
        """Take a sample, unless one was taken within the last second."""
        now = self._clock_s()
        if not self._samples or now - self._samples[-1][0] >= SAMPLE_SPACING_S:
            self._samples.append((now, self._head()))

    def rate(self) -> float | None:
        """Orders per second, or None as long as nothing can be said."""
        now = self._clock_s()
        while self._samples and now - self._samples[0][0] > WINDOW_S:
            self._samples.popleft()
        if not self._samples or now <= self._samples[0][0]:
            return None
        since, head = self._samples[0]
        return (self._head() - head) / (now - since)

    def retry_after_s(self, ahead: int) -> int:
        """Whole seconds until `ahead` orders are gone, 1 to 60; 60 when nothing moves."""
        rate = self.rate()
        if not rate:
            return RETRY_AFTER_MAX_S
        return max(1, min(RETRY_AFTER_MAX_S, math.ceil(ahead / rate)))

"""Order ids that the server makes: UUIDv7, ever larger within the process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

RANDOM_BITS = 74  # rand_a and rand_b of RFC 9562 taken together


class OrderIds:
    """A source of UUIDv7 keys of 16 bytes.

    Within a millisecond (and while the clock stands behind) the random part grows by a random
    step, as RFC 9562 6.2 method 2 has it; when it overflows, the millisecond moves on by one.
    """

    def __init__(
        self,
        clock_ns: Callable[[], int] = time.time_ns,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._clock_ns = clock_ns
        self._entropy = entropy
        self._last = 0  # milliseconds << RANDOM_BITS | random

    def __call__(self) -> bytes:
        """The next key; never smaller than the one before."""
        fresh = self._clock_ns() // 1_000_000 << RANDOM_BITS
        if fresh > self._last:
            self._last = fresh | self._random(RANDOM_BITS - 1)
        else:
            self._last += 1 + self._random(32)
        return _layout(self._last)

    def _random(self, bits: int) -> int:
        return int.from_bytes(self._entropy((bits + 7) // 8), "big") & ((1 << bits) - 1)


def _layout(value: int) -> bytes:
    milliseconds = value >> RANDOM_BITS & (1 << 48) - 1
    rand_a = value >> 62 & 0xFFF
    rand_b = value & (1 << 62) - 1
    return (milliseconds << 80 | 7 << 76 | rand_a << 64 | 2 << 62 | rand_b).to_bytes(16, "big")

"""Order ids that the server makes: UUIDv7, ever larger within the process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from struct import Struct

from ingest._bulk import next_keys

# RFC 9562: 48 bits of milliseconds, version, 12 of rand_a; then variant, 62 of rand_b.
VERSION = 7 << 12
VARIANT = 2 << 62
RAND_B_MAX = (1 << 62) - 1
POOL_BYTES = 4096  # asking the kernel for a few bytes costs as much as for many

_pack = Struct(">QQ").pack


class OrderIds:
    """A source of UUIDv7 keys of 16 bytes.

    Within a millisecond (and while the clock stands behind) rand_b grows by a random step, as
    RFC 9562 6.2 method 2 has it; when it overflows, the millisecond moves on by one.
    """

    def __init__(
        self,
        clock_ns: Callable[[], int] = time.time_ns,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._clock_ns = clock_ns
        self._entropy = entropy
        self._pool: Iterator[int] = iter(())
        self._ms = -1
        self._high = self._rand_b = 0

    def __call__(self) -> bytes:
        """The next key; never smaller than the one before."""
        ms = self._clock_ns() // 1_000_000
        if ms <= self._ms:
            rand_b = self._rand_b + 1 + self._word()
            if rand_b <= RAND_B_MAX:
                self._rand_b = rand_b
                return _pack(self._high, VARIANT | rand_b)
            ms = self._ms + 1
        return self._begin(ms)

    def many(self, count: int) -> list[bytes]:
        """The next keys, in one go."""
        keys: list[bytes] = []
        while len(keys) < count:
            keys.append(self())
            more, self._rand_b = next_keys(
                self._high, self._rand_b, self._entropy(4 * (count - len(keys)))
            )
            keys += more
        return keys

    def _begin(self, ms: int) -> bytes:
        self._ms = ms
        self._high = (ms & (1 << 48) - 1) << 16 | VERSION | self._word() & 0xFFF
        # Of its 62 bits the first is 0, so that there is room to grow.
        self._rand_b = (self._word() << 32 | self._word()) >> 3
        return _pack(self._high, VARIANT | self._rand_b)

    def _word(self) -> int:
        """32 random bits."""
        word = next(self._pool, None)
        if word is None:
            self._pool = iter(memoryview(self._entropy(POOL_BYTES)).cast("I"))
            word = next(self._pool)
        return word

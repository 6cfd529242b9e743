"""The messages of the ring benchmark, and the proof that they arrived."""

from __future__ import annotations

from operator import itemgetter

from benchmarks.measure import SideFailed

BATCH = 64
POOL_BATCHES = 16
POOL = POOL_BATCHES * BATCH

first_byte = itemgetter(0)


class NotWhole(SideFailed):
    """What was received is not what was sent."""


class Pool:
    """POOL different messages of `payload_bytes`, sent again and again in the same order, so that
    making them costs nothing while the clock runs. `keys`: 16 bytes each, for who needs keys."""

    def __init__(self, payload_bytes: int) -> None:
        self.payload_bytes = payload_bytes
        self.payloads = [_payload(number, payload_bytes) for number in range(POOL)]
        self.keys = [number.to_bytes(16, "big") for number in range(POOL)]
        starts = range(0, POOL, BATCH)
        self.batches = [
            (self.payloads[at : at + BATCH], self.keys[at : at + BATCH]) for at in starts
        ]

    def sum_of(self, count: int) -> int:
        """The sum of the first bytes of the first `count` messages sent."""
        cycles, rest = divmod(count, POOL)
        firsts = [payload[0] for payload in self.payloads]
        return cycles * sum(firsts) + sum(firsts[:rest])


class Whole:
    """Compares every message, whole and in order."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.count = 0

    def __call__(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            if payload != self._pool.payloads[self.count % POOL]:
                raise NotWhole(f"message {self.count} is not the one that was sent")
            self.count += 1

    def wrong(self, count: int) -> str:
        """What is wrong with `count` messages sent; empty when nothing is."""
        return "" if self.count == count else f"{self.count} messages received, {count} sent"


class Summed:
    """Counts the messages and sums up their first bytes: cheap enough to be done by all."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.count = 0
        self.sum = 0

    def __call__(self, payloads: list[bytes]) -> None:
        self.count += len(payloads)
        self.sum += sum(map(first_byte, payloads))

    def wrong(self, count: int) -> str:
        """What is wrong with `count` messages sent; empty when nothing is."""
        if (self.count, self.sum) == (count, self._pool.sum_of(count)):
            return ""
        return f"{self.count} messages with sum {self.sum} received, {count} sent"


def _payload(number: int, payload_bytes: int) -> bytes:
    head = bytes([number * 7 % 251]) + number.to_bytes(4, "little")
    return (head * (payload_bytes // len(head) + 1))[:payload_bytes]

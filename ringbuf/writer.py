"""Putting: at once, blocking, in batches, or on an event loop."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Self

from ringbuf._kernel import Putter
from ringbuf.errors import Full
from ringbuf.parking import TaskTurn, ThreadTurn

if TYPE_CHECKING:
    from ringbuf.ring import Ring

TIMEOUT_MAX_S = threading.TIMEOUT_MAX / 2  # no wait is longer than this, about 146 years
Payload = bytes | bytearray | memoryview


class Writer(Putter):
    """A process's way into the ring, from ``Ring.writer()``.

    ``try_put(payload, key, header=b"", round=0, accepted_ns=0)`` (in the kernel) returns the
    sequence, or None when the ring is full or somebody of this process already waits. Every put
    raises Closed on a closed ring and TooLarge for what no slot can hold. ``key`` has 16 bytes;
    ``header`` and ``payload`` share ``ring.room`` bytes.
    """

    def __new__(cls, ring: Ring, _index: int) -> Self:
        return super().__new__(cls, ring.mapping)

    def __init__(self, ring: Ring, index: int) -> None:
        self._ring = ring
        self.index = index
        self._open = True

    @property
    def parked(self) -> int:
        """Pending puts of this process."""
        return len(self._ring.line)

    def put(
        self,
        payload: Payload,
        key: bytes,
        header: bytes = b"",
        round: int = 0,
        timeout: float | None = None,
        *,
        accepted_ns: int = 0,
    ) -> int:
        """Puts, waiting up to ``timeout`` seconds for room, and returns the sequence.

        ``accepted_ns``: when it was accepted, for an item moved from another ring; 0: now.

        Not for the thread of an event loop: pending puts of that loop would wait for each other.
        """
        deadline = _deadline(timeout)
        sequence = self.try_put(payload, key, header, round, accepted_ns)
        if sequence is not None:
            return sequence
        turn = ThreadTurn()
        try:
            self._ring.line.join(turn)
            if not turn.wait(_left(deadline)):
                raise self._full(timeout)
            left = _left(deadline)
            while self._ring.mapping.wait_room(left):
                sequence = self.put_in_turn(payload, key, header, round, accepted_ns)
                if sequence is not None:
                    return sequence
                if left == 0:  # there was room, but others are always faster
                    break
                left = _left(deadline)
            raise self._full(timeout)
        finally:
            try:
                self._ring.line.leave(turn)
            finally:
                # A signal handler may have raised inside it; to leave twice is harmless.
                self._ring.line.leave(turn)

    async def put_async(
        self, payload: Payload, key: bytes, header: bytes = b"", round: int = 0
    ) -> int:
        """put on an event loop: does not suspend when there is room; cancelled, puts nothing."""
        sequence = self.try_put(payload, key, header, round)
        if sequence is not None:
            return sequence
        line, turn = self._ring.line, TaskTurn()
        try:
            line.join(turn)
            while True:
                await turn.wait()
                sequence = self.put_in_turn(payload, key, header, round)
                if sequence is not None:
                    return sequence
                turn.rearm()
                line.watch(turn)
        finally:
            line.leave(turn)

    def put_many(
        self,
        payloads: Iterable[bytes],
        keys: Iterable[bytes],
        headers: Sequence[bytes] | None = None,
    ) -> int:
        """Puts as many as fit now, from the first on; returns how many. One lock for them all."""
        payload_list, key_list = list(payloads), list(keys)
        header_list = None if headers is None else list(headers)
        header_count = len(key_list) if header_list is None else len(header_list)
        if not len(payload_list) == len(key_list) == header_count:
            raise ValueError(f"{len(payload_list)} payloads, {len(key_list)} keys, headers alike")
        return self.put_batch(payload_list, key_list, header_list)[1]

    def close(self) -> None:
        """Leaves the ring; what was put stays."""
        if self._open:
            self.shut()
            self._open = False
            self._ring.forget("writer", self.index)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _full(self, timeout: float | None) -> Full:
        capacity = self._ring.capacity
        return Full(f"no room within {timeout} s: all {capacity} slots are taken (capacity)")


def _deadline(timeout_s: float | None) -> float | None:
    if timeout_s is None:
        return None
    if math.isnan(timeout_s):
        raise ValueError("timeout is NaN")
    return time.monotonic() + min(timeout_s, TIMEOUT_MAX_S)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())

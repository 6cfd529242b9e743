"""UUIDv7 made by the server."""

from __future__ import annotations

import itertools
import uuid

from ingest.ids import POOL_BYTES, RAND_B_MAX, OrderIds

MILLISECOND = 1_000_000


def test_an_id_carries_the_time_the_version_and_the_variant() -> None:
    order_ids = OrderIds(clock_ns=lambda: 1_700_000_000_123 * MILLISECOND)
    made = uuid.UUID(bytes=order_ids())
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == 1_700_000_000_123


def test_ids_rise_within_a_millisecond_and_when_the_clock_steps_back() -> None:
    clock = iter([5, 5, 5, 3, 1, 5, 6])
    order_ids = OrderIds(clock_ns=lambda: next(clock) * MILLISECOND)
    made = [order_ids() for _ in range(7)]
    assert made == sorted(set(made))


def test_an_overflow_of_the_random_part_moves_the_millisecond_on() -> None:
    order_ids = OrderIds(clock_ns=lambda: 5 * MILLISECOND, entropy=lambda count: b"\xff" * count)
    made = [order_ids() for _ in range(3)]
    order_ids._rand_b = RAND_B_MAX
    after = order_ids()
    assert after > max(made)
    assert uuid.UUID(bytes=after).version == 7
    assert int.from_bytes(after, "big") >> 80 == 6


def test_a_used_up_pool_is_filled_again_and_no_part_of_it_comes_twice() -> None:
    order_ids = OrderIds(clock_ns=lambda: 5 * MILLISECOND)
    made = [int.from_bytes(order_ids(), "big") for _ in range(POOL_BYTES)]
    steps = {after - before for before, after in itertools.pairwise(made)}
    assert len(steps) > POOL_BYTES * 0.99


def test_ids_of_two_processes_differ_at_the_same_moment() -> None:
    one, other = (OrderIds(clock_ns=lambda: 5 * MILLISECOND) for _ in range(2))
    assert one() != other()

"""Many processes at once, nobody killed: each item once, in order, whole, and nothing rescued."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ringbuf import Ring
from tests.ringbuf.actors import WRITER_SPAN, records
from tests.ringbuf.conftest import MakeRing
from tests.ringbuf.kit import PATIENCE_S, is_whole, key, message, number, wait_for
from tests.ringbuf.nursery import Actor, Nursery

WRITERS, READERS = 3, 3


def path_of(ring: Ring) -> str:
    assert ring.path is not None
    return ring.path


def start_readers(nursery: Nursery, ring: Ring, max_items: int) -> dict[Path, Actor]:
    logs = [Path(f"{ring.path}.read{index}") for index in range(READERS)]
    return {
        log: nursery.start("read", path_of(ring), index, max_items, str(log))
        for index, log in enumerate(logs)
    }


@pytest.mark.parametrize(
    ("capacity", "each", "max_items"), [(1, 1500, 1), (3, 2000, 2), (64, 3000, 64)]
)
def test_each_item_is_taken_exactly_once_and_in_its_writers_order(
    make_ring: MakeRing, nursery: Nursery, capacity: int, each: int, max_items: int
) -> None:
    ring = make_ring(capacity=capacity, readers=READERS, hand=64)
    readers = start_readers(nursery, ring, max_items)
    writers = [
        nursery.start("write", path_of(ring), w, each, f"{ring.path}.wrote{w}")
        for w in range(WRITERS)
    ]
    assert [writer.result() for writer in writers] == [each] * WRITERS
    ring.close()
    assert sum(reader.result() for reader in readers.values()) == WRITERS * each
    taken = [record for log in readers for record in records(log)]
    put = [record for w in range(WRITERS) for record in records(Path(f"{ring.path}.wrote{w}"))]
    assert sorted(taken) == sorted(put)
    assert len({n for n, _, _ in taken}) == WRITERS * each
    assert sorted(sequence for _, sequence, _ in taken) == list(range(WRITERS * each))
    for w in range(WRITERS):
        mine = [n for sequence, n in sorted((s, n) for n, s, _ in put) if n // WRITER_SPAN == w]
        assert mine == [w * WRITER_SPAN + i for i in range(each)]
    for log in readers:
        sequences = [sequence for _, sequence, _ in records(log)]
        assert sequences == sorted(sequences)
    assert ring.drained
    assert (ring.rescues, ring.repairs) == (0, 0)


def test_a_hundred_thousand_rounds_of_ping_pong_lose_no_wake(
    make_ring: MakeRing, nursery: Nursery
) -> None:
    rounds = 100_000
    there, back = make_ring(capacity=1, hand=1), make_ring(capacity=1, hand=1)
    echo = nursery.start("echo", path_of(there), path_of(back), rounds)
    assert nursery.start("serve", path_of(back), path_of(there), rounds).result() == rounds
    assert echo.result() == 0
    assert (there.rescues, back.rescues) == (0, 0)


def test_a_modest_writer_is_not_starved_by_greedy_ones(
    make_ring: MakeRing, nursery: Nursery
) -> None:
    ring = make_ring(capacity=2, readers=READERS)
    start_readers(nursery, ring, 2)
    for w in range(2):
        nursery.start("write", path_of(ring), w, None, f"{ring.path}.wrote{w}")
    modest = nursery.start("write", path_of(ring), 2, 300, f"{ring.path}.wrote2")
    assert modest.result() == 300


def test_a_loop_with_many_pending_puts_shares_a_ring_with_another_process(
    make_ring: MakeRing, nursery: Nursery
) -> None:
    ring = make_ring(capacity=2, readers=READERS)
    readers = start_readers(nursery, ring, 2)
    other = nursery.start("write", path_of(ring), 1, 500, f"{ring.path}.wrote1")

    async def main() -> list[int]:
        with ring.writer() as writer:
            return await asyncio.gather(*(writer.put_async(*message(n)) for n in range(1000)))

    sequences = asyncio.run(asyncio.wait_for(main(), 60))
    assert sequences == sorted(sequences)  # oldest first within this process
    assert other.result() == 500
    ring.close()
    assert sum(reader.result() for reader in readers.values()) == 1500
    assert ring.rescues == 0


def test_an_item_put_is_never_missed_by_find_before_its_release(
    make_ring: MakeRing, nursery: Nursery
) -> None:
    count, ring = 20_000, make_ring(capacity=5, hand=3)
    mover = nursery.start("release_after_commit", path_of(ring), 0, count)
    places = {"ring": 0, "hand": 0, "released": 0}
    with ring.writer() as writer:
        put = 0
        while put < count:
            while put < count and writer.try_put(*message(put)) is not None:
                put += 1
            for n in range(max(0, put - 6), put):
                found = ring.find(key(n))
                if found is None:
                    assert ring.commits > n, f"{n} was missed"
                    places["released"] += 1
                    continue
                assert number(found.item) == n
                assert is_whole(found.item)
                assert found.position is None or 0 <= found.position < ring.capacity
                places[found.place] += 1
    assert mover.result() is None
    assert all(places.values()), places


def test_a_snapshot_holds_each_moving_item_once(make_ring: MakeRing, nursery: Nursery) -> None:
    count, ring = 20_000, make_ring(capacity=5, hand=3)
    mover = nursery.start("release_after_commit", path_of(ring), 0, count)
    with ring.writer() as writer:
        put = 0
        while put < count:
            while put < count and writer.try_put(*message(put)) is not None:
                put += 1
            seen = ring.snapshot()
            items = seen.waiting + [item for _, item in seen.held]
            sequences = [item.sequence for item in items]
            assert len(set(sequences)) == len(sequences)
            assert set(range(ring.commits, put)) <= set(sequences)
            assert all(map(is_whole, items))
    mover.result()


def test_lookers_never_see_a_torn_item(make_ring: MakeRing, nursery: Nursery) -> None:
    """More lookers than cores and messages of a megabyte: many a look is suspended half way."""
    payload_bytes = (1 << 20) - 64
    ring = make_ring(capacity=1, slot_bytes=1 << 20, readers=1, hand=1)
    nursery.start("lap", path_of(ring), payload_bytes)
    seen: list[str] = []

    def look(first: int) -> None:
        deadline, n = time.monotonic() + PATIENCE_S, first
        while n < 1500 or (len(set(seen)) < 2 and time.monotonic() < deadline):
            n += 1
            found = ring.find(key(n % 2))
            items = [found.item] if found else []
            if n % 10 == 0:
                snapshot = ring.snapshot()
                items += snapshot.waiting + [item for _, item in snapshot.held]
            for item in items:
                assert not item.damaged
                assert item.payload == item.payload[:1] * payload_bytes
            if found:
                seen.append(found.place)

    with ThreadPoolExecutor(6) as pool:
        for looked in [pool.submit(look, first) for first in range(6)]:
            looked.result()
    assert set(seen) == {"ring", "hand"}


def test_depth_stays_within_the_capacity_while_everything_moves(
    make_ring: MakeRing, nursery: Nursery
) -> None:
    ring = make_ring(capacity=3, readers=READERS)
    readers = start_readers(nursery, ring, 2)
    writer = nursery.start("write", path_of(ring), 0, 3000, f"{ring.path}.wrote0")
    seen: set[int] = set()
    while not writer.ended(0):
        seen.update(ring.depth for _ in range(1000))
    ring.close()
    wait_for(lambda: all(reader.ended(0) for reader in readers.values()), "readers end")
    assert seen <= {0, 1, 2, 3}
    assert (ring.depth, ring.drained) == (0, True)

"""Takes and puts that stopped half way: made by hand, under the real lock, by a process that dies.

Kills at instants that nobody chose seldom meet these states, and never the same one twice.
"""

from __future__ import annotations

import struct

import pytest

from ringbuf import Ring
from tests.ringbuf.conftest import MakeRing
from tests.ringbuf.kit import is_whole, message, number, raw, slot_at
from tests.ringbuf.nursery import Nursery


def ring_of(make_ring: MakeRing, waiting: int) -> Ring:
    ring = make_ring(capacity=4, readers=2, hand=8)
    with ring.writer() as writer:
        for n in range(waiting):
            writer.put(*message(n))
    return ring


def die_in_take(nursery: Nursery, ring: Ring, copied: int, *, moved: bool) -> None:
    """Reader 0 dies with so many items copied into its hand, before or after head moved."""
    nursery.start("die_in_take", str(ring.path), 0, copied, moved).ended()
    assert ring.repairs == 0


@pytest.mark.parametrize("copied", [0, 1, 3])
def test_a_take_that_died_before_head_moved_is_undone_by_the_next_reader(
    make_ring: MakeRing, nursery: Nursery, copied: int
) -> None:
    ring = ring_of(make_ring, waiting=3)
    die_in_take(nursery, ring, copied, moved=False)
    with ring.reader(1) as reader:
        items = [*reader.take(timeout=1), *reader.take(timeout=1)]
        assert [number(item) for item in items] == [0, 1, 2]
        assert all(map(is_whole, items))
        assert {item.attempts for item in items} == {0}
        assert [ring.held_count(0), ring.repairs, ring.mapping.cleared] == [0, 1, copied]
    with ring.reader(0) as heir:
        assert heir.held() == []


@pytest.mark.parametrize("copied", [0, 1, 3])
def test_a_take_that_died_before_head_moved_leaves_its_heir_nothing(
    make_ring: MakeRing, nursery: Nursery, copied: int
) -> None:
    ring = ring_of(make_ring, waiting=3)
    die_in_take(nursery, ring, copied, moved=False)
    with ring.reader(0) as heir:
        assert heir.held() == []
        assert [ring.depth, ring.repairs, ring.mapping.cleared] == [3, 1, copied]
        items = heir.take(timeout=1)
        assert [(number(item), item.attempts) for item in items] == [(n, 0) for n in range(3)]
        heir.release(items)
        assert ring.held_count(0) == 0


def test_a_take_that_died_after_head_moved_belongs_to_its_heir(
    make_ring: MakeRing, nursery: Nursery
) -> None:
    ring = ring_of(make_ring, waiting=3)
    die_in_take(nursery, ring, 2, moved=True)
    with ring.reader(1) as reader, ring.reader(0) as heir:
        assert [number(item) for item in reader.take(timeout=1)] == [2]
        items = heir.take(timeout=1)
        assert [(number(item), item.attempts) for item in items] == [(0, 1), (1, 1)]
        assert all(map(is_whole, items))
        assert [ring.repairs, ring.mapping.cleared] == [1, 0]


def test_a_put_that_died_half_way_leaves_no_trace(make_ring: MakeRing, nursery: Nursery) -> None:
    ring = ring_of(make_ring, waiting=2)
    with raw(ring) as memory:  # what was copied when it died: stamp 0, the rest in doubt
        memory[slot_at(ring, 2) : slot_at(ring, 3)] = struct.pack("<Q", 0) + b"\x5a" * 120
    nursery.start("die_in_put", str(ring.path)).ended()
    with ring.writer() as writer, ring.reader(0) as reader:
        assert ring.depth == 2
        assert writer.put(*message(2), timeout=1) == 2
        items = reader.take(timeout=1)
        assert [number(item) for item in items] == [0, 1, 2]
        assert all(map(is_whole, items))
        assert ring.repairs == 1

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from ringbuf import Ring
from ringbuf.layout import SLOT_HEAD_BYTES, slot_dtype
from tests.ringbuf.conftest import MakeRing
from tests.ringbuf.kit import cell_at, key, message, number, raw, slot_at
from tests.ringbuf.nursery import ROOT

KEY_AT, LENGTH_AT, ROUND_AT, CRC_AT = 8, 32, 40, 44


def test_a_slot_is_as_large_as_the_geometry_says() -> None:
    assert slot_dtype(192).itemsize == 192
    assert slot_dtype(192).fields["data"][1] == SLOT_HEAD_BYTES  # type: ignore[index]


def test_the_view_agrees_with_what_was_put_and_follows_it(make_ring: MakeRing) -> None:
    ring = make_ring(capacity=3)
    view = ring.slots
    assert view.shape == (3,)
    with ring.writer() as writer, ring.reader(0) as reader:
        for n in range(5):
            payload, name = message(n)
            writer.put(payload, name, header=b"h%d" % n, round=n)
            slot = view[n % 3]
            item = reader.take()[0]
            assert slot["stamp"] == n + 1 == item.sequence + 1
            assert bytes(slot["key"]) == name
            assert slot["accepted_ns"] == item.accepted_ns
            assert (slot["payload_bytes"], slot["header_bytes"]) == (len(payload), 2)
            assert slot["round"] == n
            assert slot["data"][: 2 + len(payload)].tobytes() == b"h%d" % n + payload
            reader.release([item])


def test_the_view_cannot_be_written(ring: Ring) -> None:
    view = ring.slots
    with pytest.raises(ValueError, match="read-only"):
        view["stamp"][0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        view.flags.writeable = True
    with pytest.raises(ValueError, match="WRITEABLE"):
        np.asarray(view).setflags(write=True)


@pytest.mark.parametrize(
    ("offset", "what"),
    [
        (KEY_AT + 15, "key"),
        (24, "accepted_ns"),
        (LENGTH_AT, "payload length"),
        (LENGTH_AT + 3, "payload length, far beyond the slot"),
        (36, "header length"),
        (37, "header length, far beyond the slot"),
        (38, "header version"),
        (ROUND_AT, "round"),
        (CRC_AT, "checksum"),
        (SLOT_HEAD_BYTES, "header byte"),
        (SLOT_HEAD_BYTES + 6, "first payload byte"),
        (SLOT_HEAD_BYTES + 13, "last payload byte"),
    ],
)
@pytest.mark.parametrize("where", ["slot", "hand"])
def test_a_flipped_bit_marks_the_item_damaged_and_others_flow(
    ring: Ring, offset: int, what: str, where: str
) -> None:
    with ring.writer() as writer:
        for n in range(3):
            writer.put(b"12345678", key(n), header=b"header")
        first = ring.reader(0)
        if where == "hand":
            held = first.take(3)
            at = cell_at(ring, 0, held[1].cell) + 64
        else:
            at = slot_at(ring, 1)
        with raw(ring) as memory:
            memory[at + offset] ^= 0x10
        first.close()
        with ring.reader(0) as reader:
            items = reader.take(3)
            assert [item.damaged for item in items] == [False, True, False]
            assert [item.sequence for item in items] == [0, 1, 2]
            assert b"12345678"[:7] in items[1].payload or "payload" in what or what == "key"
            assert len(items[1].payload) <= ring.room
            reader.release(items)
            writer.put(*message(7))
            assert [number(item) for item in reader.take()] == [7]


def test_a_damaged_item_in_a_slot_is_seen_as_such_by_lookers(ring: Ring) -> None:
    with ring.writer() as writer:
        writer.put(*message(3))
        with raw(ring) as memory:
            memory[slot_at(ring, 0) + SLOT_HEAD_BYTES] ^= 1
        found = ring.find(key(3))
        assert found is not None
        assert found.item.damaged
        assert [item.damaged for item in ring.snapshot().waiting] == [True]


def test_an_item_in_another_slot_than_its_own_is_damaged(make_ring: MakeRing) -> None:
    """The checksum covers the sequence: old bytes in the place of new ones do not pass."""
    ring = make_ring(capacity=2)
    with ring.writer() as writer, ring.reader(0) as reader:
        for n in range(2):
            writer.put(*message(n))
        with raw(ring) as memory:
            old, new = slot_at(ring, 0), slot_at(ring, 1)
            memory[new + 8 : new + ring.slot_bytes] = memory[old + 8 : old + ring.slot_bytes]
        assert [item.damaged for item in reader.take()] == [False, True]


def test_numpy_is_loaded_only_by_who_looks_through_it() -> None:
    script = "import sys, ringbuf; sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)

from __future__ import annotations

import copy
import pickle
import random
import struct
import subprocess
import sys
import threading
from typing import Any

import pytest

from ringbuf import Item, Ring
from ringbuf._kernel import Mapping, Putter, Taker
from tests.ringbuf.conftest import MakeRing
from tests.ringbuf.kit import key, message, raw, slot_at
from tests.ringbuf.nursery import ROOT


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


def run_to_the_end(script: str, *args: str) -> None:
    """A process of its own that must end by itself, without a word."""
    ran = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", script, *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_the_reference_crc_is_crc32c() -> None:
    assert crc32c(b"123456789") ^ 0xFFFFFFFF == 0xE3069283


@pytest.mark.parametrize("payload_bytes", [0, 1, 7, 8, 9, 59])
def test_the_checksum_covers_head_record_header_payload_and_sequence(
    ring: Ring, payload_bytes: int
) -> None:
    with ring.writer() as writer:
        writer.put(b"ab", key(1))
        writer.put(bytes(range(payload_bytes)), key(2), header=b"h\0h", round=9)
    with raw(ring) as memory:
        at = slot_at(ring, 1)
        head, data = memory[at + 8 : at + 44], memory[at + 64 : at + 64 + 3 + payload_bytes]
        found = struct.unpack_from("<I", memory, at + 44)[0]
    assert data == b"h\0h" + bytes(range(payload_bytes))
    assert found == crc32c(head + data + struct.pack("<Q", 2))


def test_the_checksum_of_every_length_is_crc32c(make_ring: MakeRing) -> None:
    """It is summed in three parts at once, of so many words as the length allows."""
    chance = random.Random(4)
    ring = make_ring(capacity=1, slot_bytes=4096)
    with ring.writer() as writer, ring.reader(0) as reader:
        for sequence, payload_bytes in enumerate([*range(400), *range(990, 1040), 2100, 4000]):
            payload = chance.randbytes(payload_bytes)
            writer.put(payload, key(sequence))
            slot = ring.slots[0]
            head, stamp = slot.tobytes()[8:44], struct.pack("<Q", sequence + 1)
            assert slot["crc"] == crc32c(head + payload + stamp), payload_bytes
            (item,) = reader.take()
            assert (item.payload, item.damaged) == (payload, False)
            reader.release([item])


@pytest.mark.parametrize("name", ["payload", "key", "sequence", "attempts", "header", "round"])
def test_items_that_differ_are_unequal(name: str) -> None:
    fields: dict[str, Any] = {"payload": b"a", "key": key(1), "header": b"", "sequence": 0}
    others = {"payload": b"b", "key": key(2), "header": b"h"}
    assert Item(**fields) == Item(**fields)
    assert Item(**fields) != Item(**{**fields, name: others.get(name, 7)})
    assert Item(**fields) != object()


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": b"short"},
        {"key": "text"},
        {"payload": "text"},
        {"payload": bytearray(1)},
        {"header": None},
        {"sequence": "1"},
        {"cell": 1 << 40},
        {"colour": 1},
    ],
)
def test_an_item_is_made_of_what_take_gives(wrong: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError, OverflowError)):
        Item(**{"payload": b"", "key": bytes(16), **wrong})


def test_an_item_is_a_plain_value(ring: Ring) -> None:
    with ring.writer() as writer, ring.reader(0) as reader:
        writer.put(*message(1))
        (item,) = reader.take()
        assert pickle.loads(pickle.dumps(item)) == copy.copy(item) == item
        assert len({item, copy.copy(item)}) == 1
        assert item == Item(
            item.payload, item.key, 0, 0, item.accepted_ns, item.header, 0, False, item.cell
        )
        with pytest.raises(AttributeError):
            item.sequence = 5  # type: ignore[misc]
        reader.release([copy.copy(item)])


@pytest.mark.parametrize("wrong", [None, 1, object(), Item])
def test_writers_and_readers_are_made_of_mappings_only(wrong: object) -> None:
    with pytest.raises(TypeError):
        Putter(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Taker(wrong, 0, False, 1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Mapping()


def test_two_attachments_of_one_process_are_two_participants(ring: Ring) -> None:
    with Ring.attach(ring.fd) as other, ring.writer() as writer, other.reader(0) as reader:
        assert len(ring.participants()) == 2
        writer.put(*message(1))
        assert len(reader.take()) == 1
        ring.detach()
        assert other.held_count(0) == 1
        assert [each.role for each in other.participants()] == ["reader"]


def test_detaching_while_others_look_never_reads_unmapped_memory(make_ring: MakeRing) -> None:
    ring = make_ring(capacity=64)
    with ring.writer() as writer:
        for n in range(64):
            writer.put(*message(n))
    started = threading.Barrier(3)
    refusals: list[str] = []

    def look(attached: Ring) -> None:
        started.wait(60)
        try:
            while True:
                attached.find(key(1000))
                attached.snapshot()
        except Exception as refused:
            refusals.append(str(refused))

    for round_ in range(1, 21):
        attached = Ring.attach(ring.fd)
        lookers = [threading.Thread(target=look, args=(attached,)) for _ in range(2)]
        for looker in lookers:
            looker.start()
        started.wait(60)
        attached.detach()
        for looker in lookers:
            looker.join()
        assert refusals == ["this ring is detached"] * 2 * round_


def test_the_interpreter_ends_with_threads_asleep_in_the_kernel(make_ring: MakeRing) -> None:
    ring = make_ring(capacity=1)
    assert ring.path is not None
    run_to_the_end(
        """if True:
        import asyncio, sys, threading
        from ringbuf import Ring
        ring = Ring.attach(sys.argv[1])
        writer, reader, idle = ring.writer(), ring.reader(0), ring.reader(1)
        threading.Thread(target=idle.take, daemon=True).start()
        threading.Thread(target=ring.wait_commits, args=(0,), daemon=True).start()

        async def park_and_go():
            writer.try_put(b"", bytes(16)) or writer.try_put(b"", bytes(16))
            task = asyncio.create_task(writer.put_async(b"", bytes(16)))
            await asyncio.sleep(0)

        asyncio.run(park_and_go())
        """,
        ring.path,
    )


def test_a_dropped_ring_and_its_parts_are_collected(make_ring: MakeRing) -> None:
    ring = make_ring()
    assert ring.path is not None
    run_to_the_end(
        """if True:
        import gc, os, sys, weakref
        from ringbuf import Ring

        def maps():
            with open("/proc/self/maps") as lines:
                return sum(sys.argv[1] in line for line in lines)

        ring = Ring.attach(sys.argv[1])
        reader, writer = ring.reader(0), ring.writer()
        writer.put(b"x", bytes(16))
        items, view = reader.take(), ring.slots
        seen = [weakref.ref(each) for each in (ring, reader, writer)]
        assert maps() == 2
        os.close(ring.fd)
        del ring, reader, writer
        gc.collect()
        assert not any(each() for each in seen)
        assert maps() == 1
        del view
        assert maps() == 0
        assert items[0].payload == b"x"
        """,
        ring.path,
    )


@pytest.mark.parametrize("call", ["take", "release", "try_put", "find", "snapshot", "refused"])
def test_no_call_leaks_references(make_ring: MakeRing, call: str) -> None:
    ring = make_ring()
    assert ring.path is not None
    run_to_the_end(
        """if True:
        import gc, sys
        from ringbuf import Ring, RingError
        call = sys.argv[2]
        with Ring.attach(sys.argv[1]) as ring, ring.writer() as writer, ring.reader(0) as reader:
            def once():
                payload, key = bytes(bytearray(40)), bytes(bytearray(16))
                writer.try_put(payload, key, b"header", 3)
                if call in ("find", "snapshot"):
                    ring.find(key), ring.find(bytes(range(16))), ring.snapshot()
                items = reader.take()
                if call == "refused":
                    for refused in (
                        lambda: writer.try_put(bytes(999), key),
                        lambda: writer.try_put(bytearray(8), b"short"),
                        lambda: writer.try_put(b"", key, round=-1),
                        lambda: writer.put_many([b"", b""], [key, b"short"], [b"", b""]),
                        lambda: reader.release([items[0], items[0]]),
                        lambda: reader.release([None]),
                        lambda: reader.take(timeout=0),
                        lambda: reader.take(max_items=0),
                        lambda: ring.find(b""),
                        lambda: ring.held_count(99),
                        lambda: Ring.attach(0),
                    ):
                        try:
                            refused()
                        except (RingError, ValueError, OverflowError, TypeError, OSError):
                            pass
                reader.release(items)

            def blocks():
                gc.collect()
                return sys.getallocatedblocks()

            for _ in range(50):
                once()
            before = blocks()
            for _ in range(500):
                once()
            assert blocks() - before < 100, blocks() - before
        """,
        ring.path,
        call,
    )

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ringbuf import Closed, InUse, Misfit, Ring, RingError
from tests.ringbuf.conftest import MakeRing
from tests.ringbuf.kit import (
    COMMIT_EVENT,
    READERS_EVENT,
    WRITERS_EVENT,
    key,
    message,
    number,
    raw,
    somebody_sleeps,
    state,
    wait_for,
)
from tests.ringbuf.nursery import Nursery

CRC_SAFE_LABEL = "/srv/däta"


def numbers(ring: Ring) -> tuple[list[int], list[tuple[int, int]]]:
    seen = ring.snapshot()
    return [number(item) for item in seen.waiting], [(i, number(item)) for i, item in seen.held]


def test_a_ring_tells_its_geometry_alike_to_creator_and_joiner(ring_dir: Path) -> None:
    path = ring_dir / "a.ring"
    with Ring.create(path, 3, 192, 2, 5, writers=7, label=CRC_SAFE_LABEL) as made:
        with Ring.attach(path) as joined:
            for ring in (made, joined):
                assert (ring.capacity, ring.slot_bytes, ring.room) == (3, 192, 128)
                assert (ring.readers, ring.hand, ring.writers) == (2, 5, 7)
                assert (ring.label, ring.path) == (CRC_SAFE_LABEL, str(path))
            assert made.epoch == joined.epoch


def test_two_rings_have_two_epochs(make_ring: MakeRing) -> None:
    assert make_ring().epoch != make_ring().epoch


def test_joining_by_descriptor_needs_no_path_and_keeps_the_given_one_open(ring: Ring) -> None:
    ring.unlink()
    with Ring.attach(ring.fd) as joined:
        assert joined.epoch == ring.epoch
        assert joined.path is None
        with pytest.raises(RingError, match="descriptor"):
            joined.unlink()
    os.fstat(ring.fd)


def test_creating_where_a_ring_is_refuses_and_leaves_it_alone(ring: Ring) -> None:
    assert ring.path is not None
    ring.writer().put(*message(1))
    with pytest.raises(FileExistsError):
        Ring.create(ring.path)
    with Ring.attach(ring.path) as joined:
        assert joined.depth == 1


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"capacity": 0}, "capacity 0"),
        ({"capacity": -1}, "capacity -1"),
        ({"capacity": 2**24 + 1}, "capacity 16777217"),
        ({"capacity": 2**64 + 3}, "capacity 18446744073709551619"),
        ({"slot_bytes": 64}, "slot_bytes 64"),
        ({"slot_bytes": 100}, "slot_bytes 100"),
        ({"slot_bytes": 2**32 + 128}, "slot_bytes 4294967424"),
        ({"readers": 0}, "readers 0"),
        ({"readers": 4097}, "readers 4097"),
        ({"writers": 0}, "writers 0"),
        ({"hand": 0}, "hand 0"),
        ({"hand": 2**32 + 8}, "hand 4294967304"),
    ],
)
def test_a_size_out_of_range_is_refused_with_its_value(
    ring_dir: Path, sizes: dict[str, int], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        Ring.create(ring_dir / "a.ring", **sizes)  # type: ignore[arg-type]
    assert not list(ring_dir.iterdir())


def test_a_ring_that_the_file_system_cannot_hold_is_an_error_at_creation(ring_dir: Path) -> None:
    with pytest.raises(OSError, match="no room for a ring of"):
        Ring.create(ring_dir / "a.ring", capacity=2**24, slot_bytes=2**24)
    assert not list(ring_dir.iterdir())


def test_a_label_that_is_too_long_is_refused(ring_dir: Path) -> None:
    with pytest.raises(ValueError, match="1025"):
        Ring.create(ring_dir / "a.ring", label="x" * 1025)
    assert not list(ring_dir.iterdir())


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (0, bytes(8), "no magic"),
        (8, b"\x63", "layout 99 found, 2 wanted"),
        (24, b"\x05", "checksum"),
        (64, b"?", "checksum"),
    ],
)
def test_a_header_that_does_not_fit_is_refused_with_the_reason(
    ring: Ring, offset: int, value: bytes, reason: str
) -> None:
    assert ring.path is not None
    with raw(ring) as memory:
        memory[offset : offset + len(value)] = value
    with pytest.raises(Misfit, match=f"{ring.path}: .*{reason}"):
        Ring.attach(ring.path)


@pytest.mark.parametrize("bytes_left", [0, 100, 4096, -1])
def test_a_file_of_another_size_is_refused_with_both_sizes(ring: Ring, bytes_left: int) -> None:
    assert ring.path is not None
    content = Path(ring.path).read_bytes()
    cut = Path(f"{ring.path}.cut")
    cut.write_bytes(content[:bytes_left])
    found = len(content[:bytes_left])
    with pytest.raises(Misfit, match=rf"{found} bytes (found, {len(content)} wanted|are no ring)"):
        Ring.attach(cut)


def test_a_half_made_file_is_refused(ring_dir: Path) -> None:
    path = ring_dir / "half.ring"
    path.write_bytes(bytes(1 << 16))
    with pytest.raises(Misfit, match="half made"):
        Ring.attach(path)


def test_a_ring_of_another_boot_is_refused(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringbuf.ring.boot_id", lambda: bytes(16))
    with pytest.raises(Misfit, match="another boot"):
        Ring.attach(ring.fd)


def test_cursors_further_apart_than_the_capacity_are_refused(ring: Ring) -> None:
    with raw(ring) as memory:
        memory[4096 + 128] = 5
    with pytest.raises(Misfit, match="cursors"):
        Ring.attach(ring.fd)


def test_joining_a_ring_at_work_never_takes_it_for_damaged(
    make_ring: MakeRing, nursery: Nursery
) -> None:
    there, back = make_ring(capacity=1), make_ring(capacity=1)
    assert there.path is not None
    assert back.path is not None
    rounds = 4000
    nursery.start("echo", there.path, back.path, rounds)
    playing = nursery.start("serve", back.path, there.path, rounds)
    while not playing.ended(patience_s=0):
        for ring in (there, back):
            Ring.attach(ring.fd).detach()
    assert playing.result() == rounds


def test_everything_refuses_after_detach_and_a_second_detach_is_harmless(ring: Ring) -> None:
    writer, reader = ring.writer(), ring.reader(0)
    slots = ring.slots
    ring.detach()
    ring.detach()
    for call in (
        lambda: ring.depth,
        lambda: ring.find(key(1)),
        ring.snapshot,
        ring.close,
        ring.participants,
        ring.bump_commits,
        lambda: ring.wait_commits(0),
        lambda: writer.try_put(*message(1)),
        reader.take,
        reader.held,
        lambda: ring.reader(1),
        ring.writer,
    ):
        with pytest.raises(RingError, match="detached"):
            call()
    assert slots["stamp"][0] == 0  # its own mapping
    writer.close()
    reader.close()


def refused_as_detached(calls: list[Callable[[], object]]) -> list[threading.Thread]:
    """Makes each call in a thread of its own, whose join raises unless the call was refused so."""

    def make(call: Callable[[], object]) -> None:
        with pytest.raises(RingError, match="detached"):
            call()

    threads = [threading.Thread(target=make, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    return threads


def test_detach_ends_the_takes_and_commit_waits_of_other_threads(ring: Ring) -> None:
    threads = refused_as_detached([ring.reader(1).take, lambda: ring.wait_commits(0)])
    for event in (READERS_EVENT, COMMIT_EVENT):
        wait_for(lambda event=event: somebody_sleeps(ring, event), "a sleeper")  # type: ignore[misc]
    with Ring.attach(ring.fd) as other:
        ring.detach()
        for thread in threads:
            thread.join()
        assert other.participants() == []


def test_detach_ends_the_pending_puts_of_other_threads(make_ring: MakeRing) -> None:
    ring = make_ring(capacity=1)
    writer = ring.writer()
    writer.put(*message(0))
    threads = refused_as_detached(
        [lambda: writer.put(*message(1)), lambda: writer.put(*message(2))]
    )
    wait_for(lambda: writer.parked == 2, "two puts are parked")
    wait_for(lambda: somebody_sleeps(ring, WRITERS_EVENT), "the first of them sleeps")
    with Ring.attach(ring.fd) as other:
        ring.detach()
        for thread in threads:
            thread.join()
        assert (other.tail, other.participants()) == (1, [])


def test_a_detached_owner_of_a_hand_can_be_followed_at_once(ring: Ring) -> None:
    with Ring.attach(ring.fd) as first:
        first.reader(0)
        with pytest.raises(InUse, match=f"reader 0 is process {os.getpid()}"):
            ring.reader(0)
    with ring.reader(0) as reader:
        assert reader.held() == []


def test_participants_are_recorded_until_they_leave(ring: Ring) -> None:
    with ring.writer() as writer, ring.reader(1) as reader:
        found = {(each.role, each.index): each for each in ring.participants()}
        assert set(found) == {("writer", writer.index), ("reader", reader.index)}
        assert {each.pid for each in found.values()} == {os.getpid()}
        assert all(each.alive() for each in found.values())
    assert ring.participants() == []


def test_more_writers_than_the_ring_has_entries_for_are_refused(make_ring: MakeRing) -> None:
    ring = make_ring(writers=2)
    first = ring.writer()
    with ring.writer(), pytest.raises(InUse, match="all 2 writers"):
        ring.writer()
    first.close()
    ring.writer().close()


@pytest.mark.parametrize("index", [-1, 2, 2**40])
def test_a_reader_that_the_ring_does_not_have_is_refused(ring: Ring, index: int) -> None:
    with pytest.raises(ValueError, match=f"reader {index} of 2"):
        ring.reader(index)


def test_depth_counts_what_waits_and_nothing_else(make_ring: MakeRing) -> None:
    ring = make_ring(capacity=3)
    with ring.writer() as writer, ring.reader(0) as reader:
        depths = [ring.depth]
        for n in range(3):
            writer.put(*message(n))
            depths.append(ring.depth)
        items = reader.take(2)
        depths.append(ring.depth)
        reader.release(items)
        depths.append(ring.depth)
        assert depths == [0, 1, 2, 3, 1, 1]


def test_find_and_snapshot_tell_the_place(ring: Ring) -> None:
    with ring.writer() as writer, ring.reader(1) as reader:
        for n in range(3):
            writer.put(*message(n))
        held = reader.take(1)
        assert ring.find(key(9)) is None
        found = [ring.find(key(n)) for n in range(3)]
        assert [f and (f.place, f.position) for f in found] == [
            ("hand", None), ("ring", 0), ("ring", 1),
        ]  # fmt: skip
        assert [f and number(f.item) for f in found] == [0, 1, 2]
        assert numbers(ring) == ([1, 2], [(1, 0)])
        assert [ring.held_count(i) for i in range(2)] == [0, 1]
        reader.release(held)
        assert ring.find(key(0)) is None
        assert numbers(ring) == ([1, 2], [])


@pytest.mark.parametrize("bad", [b"", bytes(15), bytes(17)])
def test_a_key_of_another_size_is_refused_by_find(ring: Ring, bad: bytes) -> None:
    with pytest.raises(ValueError, match=f"this one has {len(bad)}"):
        ring.find(bad)


def test_closed_and_drained_are_told_apart(ring: Ring) -> None:
    with ring.writer() as writer, ring.reader(0) as reader:
        writer.put(*message(1))
        states = [(ring.closed, ring.drained)]
        ring.close()
        ring.close()
        states.append((ring.closed, ring.drained))
        items = reader.take()
        states.append((ring.closed, ring.drained))
        reader.release(items)
        states.append((ring.closed, ring.drained))
        assert states == [(False, False), (True, False), (True, False), (True, True)]


def test_a_reopened_ring_takes_puts_again(ring: Ring) -> None:
    with ring.writer() as writer, ring.reader(0) as reader:
        ring.close()
        with pytest.raises(Closed):
            writer.try_put(*message(1))
        ring.reopen()
        writer.put(*message(2))
        assert [number(item) for item in reader.take()] == [2]


def test_a_wait_for_commits_ends_at_the_next_commit(ring: Ring, nursery: Nursery) -> None:
    assert ring.path is not None
    seen = ring.commits
    assert ring.wait_commits(seen, timeout=0) == seen
    nursery.start("bump", ring.path, 1)
    assert ring.wait_commits(seen) == seen + 1
    assert ring.wait_commits(seen) == seen + 1
    assert ring.rescues == 0


@pytest.mark.alone
def test_one_signal_wakes_everybody_who_sleeps_long_before_the_recheck(ring: Ring) -> None:
    """A lone wake would leave three of four to their re-check of 100 ms in each of 50 rounds."""
    rounds, met = 50, threading.Barrier(5)
    answers: list[int] = []

    def follow() -> None:
        for seen in range(rounds):
            answers.append(ring.wait_commits(seen))
            met.wait(60)

    threads = [threading.Thread(target=follow) for _ in range(4)]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    for _ in range(rounds):
        wait_for(
            lambda: all(state(thread.native_id or 0) == "S" for thread in threads), "four sleepers"
        )
        ring.bump_commits()
        met.wait(60)
    assert time.monotonic() - began < rounds * 0.1 * 0.6
    for thread in threads:
        thread.join()
    assert sorted(answers) == sorted([*range(1, rounds + 1)] * 4)
    assert ring.rescues == 0

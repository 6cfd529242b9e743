from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ringbuf import Participant, Ring
from ringbuf.participants import own_identity, start_ticks
from tests.ringbuf.conftest import MakeRing
from tests.ringbuf.kit import message, number
from tests.ringbuf.nursery import Nursery

READER = 0  # its entry among the participants: readers come first


@contextmanager
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield process


def recorded(pid: int, ticks: int | None = None) -> Participant:
    found = start_ticks(pid) if ticks is None else ticks
    assert found is not None
    return Participant("reader", 0, pid, found)


def test_a_participant_is_one_word_and_back() -> None:
    here = recorded(os.getpid())
    assert here.identity == own_identity()
    assert Participant.from_identity("reader", 0, here.identity) == here
    assert here.identity < 2**64


def test_a_living_process_is_alive_and_a_killed_one_is_not_even_before_it_is_reaped() -> None:
    with child() as process:
        participant = recorded(process.pid)
        assert participant.alive()
        assert not participant.gone_within(0)
        participant.kill()
        assert participant.gone_within(60)
        assert not participant.alive()
        participant.kill()
    assert process.returncode == -9
    assert not participant.alive()
    participant.kill()


def test_a_reused_pid_is_neither_taken_for_the_old_process_nor_killed() -> None:
    with child() as process:
        ticks = start_ticks(process.pid)
        assert ticks is not None
        earlier = recorded(process.pid, ticks - 1)
        assert not earlier.alive()
        earlier.kill()
        assert process.poll() is None
        assert recorded(process.pid).alive()


def test_a_pid_that_now_numbers_a_thread_is_dead() -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        for ticks in (1, start_ticks(thread.native_id)):
            gone = recorded(thread.native_id, ticks)
            assert not gone.alive()
            gone.kill()
    finally:
        end.set()
        thread.join()


def test_a_name_with_brackets_and_spaces_does_not_hide_the_start_time() -> None:
    script = "import pathlib,sys;pathlib.Path('/proc/self/comm').write_text(') 1 2 (');input()"
    with subprocess.Popen(["python3", "-c", script], stdin=subprocess.PIPE) as process:
        before = start_ticks(process.pid)
        assert before is not None
        process.communicate(b"\n")
    assert start_ticks(os.getpid()) is not None


@pytest.mark.parametrize("earlier_by", [0, 1])
def test_an_index_goes_on_only_from_an_owner_that_is_gone(ring: Ring, earlier_by: int) -> None:
    """The entry names this very pid: with its own start time, or with that of an earlier tenant."""
    with ring.writer() as writer, ring.reader(0) as reader:
        writer.put(*message(1))
        reader.take()
    ticks = start_ticks(os.getpid())
    assert ticks is not None
    owner = Participant("reader", 0, os.getpid(), ticks - earlier_by)
    assert ring.mapping.swap_participant(READER, 0, owner.identity)
    if not earlier_by:
        with pytest.raises(Exception, match=f"reader 0 is process {os.getpid()}"):
            ring.reader(0)
        assert ring.mapping.swap_participant(READER, owner.identity, 0)
        return
    with ring.reader(0) as heir:
        assert [(number(item), item.attempts) for item in heir.take()] == [(1, 1)]


def test_only_deaths_are_counted_as_attempts(make_ring: MakeRing, nursery: Nursery) -> None:
    ring = make_ring(capacity=4)
    assert ring.path is not None
    with ring.writer() as writer:
        for n in range(4):
            writer.put(*message(n))
    actor = nursery.start("take_and_hold", ring.path, 0, 2, f"{ring.path}.log")
    ring.wait_commits(0, timeout=0)
    while ring.held_count(0) < 2:
        assert not actor.ended(0.001), actor.result()
    actor.kill()
    attempts = []
    for _ in range(2):  # the second owner follows one that left
        with ring.reader(0) as heir:
            attempts.append([(number(item), item.attempts) for item in heir.take()])
    assert attempts == [[(0, 1), (1, 1)]] * 2
    assert ring.depth == 2

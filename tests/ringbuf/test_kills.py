"""SIGKILL and SIGSTOP at instants that nobody chose; what was promised holds all the same."""

from __future__ import annotations

import random
import signal
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ringbuf import Closed, Empty, Full, Item, Ring
from tests.ringbuf.actors import WRITER_SPAN, records
from tests.ringbuf.conftest import MakeRing
from tests.ringbuf.kit import (
    READERS_EVENT,
    READERS_LOCK,
    TID_MASK,
    WRITERS_EVENT,
    WRITERS_LOCK,
    key,
    message,
    number,
    somebody_sleeps,
    state,
    wait_for,
    word,
)
from tests.ringbuf.nursery import Actor, Nursery


def path_of(ring: Ring) -> str:
    assert ring.path is not None
    return ring.path


@dataclass
class Line:
    """Writers that get a new id at each start, readers that keep their index, and their logs."""

    nursery: Nursery
    ring: Ring
    writers: dict[int, Actor] = field(default_factory=dict)
    readers: dict[int, Actor] = field(default_factory=dict)
    started: int = 0
    kills: int = 0

    def acknowledged(self, writer: int) -> Path:
        return Path(f"{self.ring.path}.wrote{writer}")

    def taken(self, reader: int) -> Path:
        return Path(f"{self.ring.path}.read{reader}")

    def start_writer(self) -> None:
        log = str(self.acknowledged(self.started))
        actor = self.nursery.start("write", path_of(self.ring), self.started, None, log)
        self.writers[self.started] = actor
        self.started += 1

    def start_reader(self, index: int, max_items: int) -> None:
        log = str(self.taken(index))
        self.readers[index] = self.nursery.start("read", path_of(self.ring), index, max_items, log)

    def kill_writer(self, writer: int) -> None:
        self.writers.pop(writer).kill()
        self.kills += 1

    def kill_reader(self, index: int) -> None:
        self.readers.pop(index).kill()
        self.kills += 1

    def redelivered(self) -> int:
        logs = [records(self.taken(index)) for index in range(self.ring.readers)]
        return sum(attempts > 0 for log in logs for _, _, attempts in log)

    def check(self) -> None:
        """Everything acknowledged was taken once; all else is one unanswered put per writer."""
        deliveries: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for index in range(self.ring.readers):
            log = records(self.taken(index))
            first_time = [sequence for _, sequence, attempts in log if attempts == 0]
            assert first_time == sorted(first_time)
            for n, sequence, attempts in log:
                deliveries[n].append((index, sequence, attempts))
        for n, found in deliveries.items():
            assert len({(index, sequence) for index, sequence, _ in found}) == 1, (n, found)
            counts = [attempts for _, _, attempts in found]
            assert counts == sorted(set(counts)), (n, found)  # none twice but after a death
            assert counts[-1] <= self.kills
        sequence_of = {n: found[0][1] for n, found in deliveries.items()}
        assert sorted(sequence_of.values()) == list(range(self.ring.tail))
        for writer in range(self.started):
            self._check_writer(writer, sequence_of)

    def _check_writer(self, writer: int, sequence_of: dict[int, int]) -> None:
        answered = [(n, sequence) for n, sequence, _ in records(self.acknowledged(writer))]
        taken = sorted(n for n in sequence_of if n // WRITER_SPAN == writer)
        assert taken == [writer * WRITER_SPAN + i for i in range(len(taken))]
        assert len(taken) - len(answered) in (0, 1)
        assert all(sequence_of[n] == sequence for n, sequence in answered)
        in_order = [sequence_of[n] for n in taken]
        assert in_order == sorted(in_order)


@pytest.mark.parametrize(("seed", "capacity", "max_items"), [(1, 1, 1), (2, 5, 4), (3, 64, 8)])
def test_random_kills_lose_nothing_double_nothing_and_tear_nothing(
    make_ring: MakeRing, nursery: Nursery, seed: int, capacity: int, max_items: int
) -> None:
    chance = random.Random(seed)
    ring = make_ring(capacity=capacity, readers=3, hand=8, writers=8)
    line = Line(nursery, ring)
    for index in range(3):
        line.start_writer()
        line.start_reader(index, max_items)
    rounds = 0
    while rounds < 50 or (rounds < 1000 and not line.redelivered()):
        rounds += 1
        goal = ring.head + chance.randrange(1, 60)
        wait_for(lambda goal=goal: ring.head >= goal, "progress after a kill")  # type: ignore[misc]
        if chance.random() < 0.5:
            line.kill_writer(chance.choice(list(line.writers)))
            line.start_writer()
        else:
            index = chance.choice(list(line.readers))
            line.kill_reader(index)
            line.start_reader(index, max_items)
    for writer in list(line.writers):
        line.kill_writer(writer)
    ring.close()
    for reader in line.readers.values():
        reader.result()
    line.check()
    assert line.redelivered(), "no kill found anything in a hand"
    assert ring.drained


def test_killed_holders_of_the_locks_are_repaired_and_counted(
    make_ring: MakeRing, nursery: Nursery
) -> None:
    """Batches so large that a kill mostly hits a lock: slots half filled, hands half filled."""
    chance = random.Random(4)
    batch, payload_bytes = 128, 16_000
    ring = make_ring(capacity=batch, slot_bytes=16_384, readers=1, hand=2 * batch)
    log, released = Path(f"{ring.path}.released"), 0
    for _ in range(300):
        if ring.repairs >= 20 and ring.mapping.cleared >= 3 * batch:
            break
        actor = nursery.start("churn", path_of(ring), batch, payload_bytes, str(log))
        goal = ring.tail + chance.randrange(2, 6) * batch
        wait_for(lambda goal=goal: ring.tail >= goal, "churning")  # type: ignore[misc]
        actor.kill()
        released = max([released, *(sequence for _, sequence, _ in records(log))])
        with ring.reader(0) as heir:
            items: list[Item] = []
            while ring.depth or len(items) < ring.held_count(0):
                items += heir.take(2 * batch)
            sequences = [item.sequence for item in items]
            assert sequences == list(range(ring.tail - len(items), ring.tail))
            assert set(range(released, ring.tail)) <= set(sequences)
            assert all(item.payload == bytes(payload_bytes) for item in items)
            assert not any(item.damaged for item in items)
            heir.release(items)
            released = ring.tail
    assert ring.repairs >= 20
    assert ring.mapping.cleared >= 3 * batch


@pytest.mark.parametrize("victim", [0, 1])
def test_a_sleeping_reader_that_is_killed_swallows_no_wake(
    ring: Ring, nursery: Nursery, victim: int
) -> None:
    line = Line(nursery, ring)
    for index in range(2):
        line.start_reader(index, 1)
    wait_for(lambda: somebody_sleeps(ring, READERS_EVENT), "a sleeping reader")
    wait_for(lambda: {state(each.pid) for each in line.readers.values()} == {"S"}, "both asleep")
    line.kill_reader(victim)
    with ring.writer() as writer:
        for n in range(5):
            writer.put(*message(n))
            wait_for(lambda n=n: ring.head == n + 1, "taken")  # type: ignore[misc]
    ring.close()
    assert line.readers[1 - victim].result() == 5
    assert ring.rescues == 0


@pytest.mark.parametrize("victim", [0, 1])
def test_a_sleeping_writer_that_is_killed_swallows_no_wake(
    make_ring: MakeRing, nursery: Nursery, victim: int
) -> None:
    ring = make_ring(capacity=1)
    with ring.writer() as writer, ring.reader(0) as reader:
        writer.put(*message(9))
        line = Line(nursery, ring)
        for _ in range(2):
            line.start_writer()
        wait_for(lambda: somebody_sleeps(ring, WRITERS_EVENT), "a sleeping writer")
        wait_for(
            lambda: {state(each.pid) for each in line.writers.values()} == {"S"}, "both asleep"
        )
        line.kill_writer(victim)
        for _ in range(5):
            reader.release(reader.take(1))
        survivor = line.acknowledged(1 - victim)
        wait_for(lambda: len(records(survivor)) == 5, "the other one goes on")
        line.kill_writer(1 - victim)
        assert number(reader.take(1)[0]) == (1 - victim) * WRITER_SPAN + 4
    assert ring.rescues == 0


def test_after_everybody_was_killed_new_processes_drain_the_backlog(
    make_ring: MakeRing, nursery: Nursery
) -> None:
    ring = make_ring(capacity=8, readers=3)
    line = Line(nursery, ring)
    for _ in range(3):
        line.start_writer()
    for index in range(2):
        log = str(line.taken(index))
        line.readers[index] = nursery.start("take_and_hold", path_of(ring), index, 6, log)
    wait_for(lambda: ring.head == 12 and ring.depth == 8, "full hands and a full ring")
    for actor in [*line.writers.values(), *line.readers.values()]:
        actor.send(signal.SIGKILL)
    for actor in [*line.writers.values(), *line.readers.values()]:
        assert actor.ended()
    line.kills = 5
    backlog = ring.snapshot()
    assert [len(backlog.waiting), len(backlog.held)] == [8, 12]
    for index in range(3):
        line.start_reader(index, 4)
    ring.close()
    assert sum(reader.result() for reader in line.readers.values()) == 20
    line.check()
    assert ring.drained


def test_a_stopped_reader_keeps_its_item_and_holds_up_nobody(ring: Ring, nursery: Nursery) -> None:
    with ring.writer() as writer, ring.reader(1) as reader:
        writer.put(*message(0))
        stopped = nursery.start("hold_on", path_of(ring), 0)
        wait_for(lambda: state(stopped.pid) == "T", "stopped with an item in its hand")
        for n in range(1, 20):
            writer.put(*message(n))
            items = reader.take(1)
            assert number(items[0]) == n
            reader.release(items)
        ring.close()
        with pytest.raises(Closed):
            reader.take()
        assert ring.held_count(0) == 1
        with pytest.raises(Exception, match=f"reader 0 is process {stopped.pid}"):
            ring.reader(0)
        stopped.send(signal.SIGCONT)
        assert stopped.result() == 0
    assert ring.drained


@pytest.mark.parametrize("side", ["writers", "readers"])
def test_the_lock_of_a_stopped_holder_is_waited_for_never_taken(
    make_ring: MakeRing, nursery: Nursery, side: str
) -> None:
    chance, batch, payload_bytes = random.Random(5), 256, 16_000
    ring = make_ring(capacity=batch, slot_bytes=16_384, readers=2, hand=batch)
    with ring.writer() as writer, ring.reader(1) as reader:
        log = f"{ring.path}.released"
        actor = nursery.start("churn", path_of(ring), batch, payload_bytes, log)
        for _ in range(1000):
            moved = ring.head + ring.tail
            wait_for(lambda moved=moved: ring.head + ring.tail > moved, "churning")  # type: ignore[misc]
            for _ in range(chance.randrange(5000)):  # else every stop hits the same phase
                moved = ring.head
            actor.send(signal.SIGSTOP)
            wait_for(lambda: state(actor.pid) == "T", "stopped")
            if stalls(ring, side):
                break
            actor.send(signal.SIGCONT)
        else:
            pytest.fail("no stop hit a holder in a thousand tries")
        repairs, seen = ring.repairs, (ring.head, ring.tail)
        for _ in range(3):
            if side == "writers":
                assert writer.try_put(b"", key(1)) is None
                with pytest.raises(Full):
                    writer.put(b"", key(1), timeout=0.05)
                assert writer.put_many([b""], [key(1)]) == 0
            else:
                with pytest.raises(Empty):
                    reader.take(timeout=0.05)
        assert (ring.head, ring.tail, ring.repairs) == (*seen, repairs)
        actor.send(signal.SIGCONT)
        if side == "writers":
            writer.put(b"", key(1))
        else:
            reader.release(reader.take())
        assert (ring.repairs, actor.ended(0)) == (0, False)


def stalls(ring: Ring, side: str) -> bool:
    """Whether somebody holds that side's lock now, where its work could go on but for that."""
    if side == "writers":
        return ring.depth < ring.capacity and word(ring, WRITERS_LOCK) & TID_MASK != 0
    return ring.depth > 0 and word(ring, READERS_LOCK) & TID_MASK != 0

"""Room in the journal, by any course of events: what was promised is there, and who waits for room
that there is has it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from ringbuf import Journal, JournalRules, RoomGone
from ringbuf import journal as journal_module
from ringbuf.segment import PAGE_BYTES, SEGMENT_BYTES_MIN, group_bytes, segment_paths
from tests.ringbuf.segments import HEADER, order, read
from tests.ringbuf.stand_ins import Disk, InlineExecutor, InlineSyncer

RECORD_OVERHEAD = 44 + 2
# Tiny, about a page, about the largest slot of the smallest segment, as large as can be.
sizes = (
    st.integers(1, 200)
    | st.integers(3900, 4200)
    | st.integers(12_000, 16_384)
    | st.integers(1, SEGMENT_BYTES_MIN - PAGE_BYTES - group_bytes(0))
)
steps = st.lists(
    st.tuples(st.just("append"), sizes.filter(lambda size: size > RECORD_OVERHEAD))
    | st.tuples(st.just("reserve"), sizes.filter(lambda size: size > RECORD_OVERHEAD))
    | st.tuples(st.sampled_from(["use", "use", "give back", "cancel"]), st.integers(0, 9))
    | st.tuples(st.sampled_from(["turn", "sync", "sync", "fill", "free"]), st.just(0)),
    max_size=80,
)


@dataclass
class Waiter:
    size: int
    task: asyncio.Task[int]


@dataclass
class Course:
    """A journal and what became of it; nothing in it takes time, nor follows from any."""

    journal: Journal
    disk: Disk
    syncer: InlineSyncer
    waiters: list[Waiter] = field(default_factory=list)
    told: list[int] = field(default_factory=list)
    appended: list[int] = field(default_factory=list)  # payload bytes of each

    def append(self, size: int) -> None:
        number = len(self.appended)
        self.appended.append(size - RECORD_OVERHEAD)
        record = order(number, self.appended[-1]).encode()
        assert len(record) == size
        self.journal.append(record)
        self.journal.after_sync(lambda: self.told.append(number))

    def reserve(self, size: int) -> None:
        self.waiters.append(Waiter(size, asyncio.ensure_future(self.journal.reserve(size))))

    def end_one(self, which: int, use: bool) -> None:
        """Of those that have room: it uses it, or not."""
        having = [one for one in self.waiters if one.task.done()]
        if having:
            one = having[which % len(having)]
            self.waiters.remove(one)
            if one.task.exception() is not None:
                assert isinstance(one.task.exception(), RoomGone)
                return
            if use:
                self.append(one.size)
            self.journal.release(one.task.result())

    async def step(self, name: str, value: int) -> None:
        match name:
            case "append":
                if self.journal.has_room(value):
                    self.append(value)
            case "reserve":
                self.reserve(value)
            case "use" | "give back":
                self.end_one(value, name == "use")
            case "cancel":
                pending = [one for one in self.waiters if not one.task.done()]
                if pending:
                    one = pending[value % len(pending)]
                    one.task.cancel()
                    self.waiters.remove(one)
            case "sync":
                self.syncer.let_go()
            case "fill":
                self.disk.fill()
            case "free":
                self.disk.free()
        if name == "turn":
            await asyncio.sleep(0)

    async def finish(self) -> None:
        """Nothing is in the way any more: whoever waits has room or was told that there is none,
        and all that was appended is told."""
        self.disk.free()
        for _ in range(40 + 12 * (len(self.waiters) + len(self.appended))):
            self.syncer.let_go()
            self.end_one(0, use=True)
            await asyncio.sleep(0)
        assert not self.waiters, "there is room, and somebody waits for it"
        assert self.told == list(range(len(self.appended)))


def written(directory: Path) -> list[int]:
    """Payload bytes of all orders, which are in order and whole."""
    found: list[int] = []
    for path in segment_paths(directory):
        orders, damage = read(path)
        assert not damage
        for one in orders:
            assert one == order(len(found), len(one.payload))
            found.append(len(one.payload))
        path.unlink()
    return found


async def play(directory: Path, disk: Disk, course_steps: list[tuple[str, int]]) -> None:
    mistakes: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: mistakes.append(told))
    failures: list[OSError] = []
    rules = JournalRules(directory, HEADER, SEGMENT_BYTES_MIN, segments_max=1000)
    journal = await Journal.open(rules, failures.append)
    assert isinstance(journal._syncer, InlineSyncer)
    course = Course(journal, disk, journal._syncer)
    for name, value in course_steps:
        await course.step(name, value)
    await course.finish()
    await journal.close()
    assert (mistakes, failures) == ([], [])
    assert written(directory) == course.appended


def check_any_course(directory: Path, examples: int) -> None:
    @given(steps)
    @settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=examples < 1000,
    )
    def check(course_steps: list[tuple[str, int]]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk()
            patch.setattr(journal_module, "Syncer", InlineSyncer)
            patch.setattr(journal_module, "ThreadPoolExecutor", InlineExecutor)
            patch.setattr(journal_module, "make_segment", disk.make_segment)
            patch.setattr(journal_module, "RETRY_S", 0)
            asyncio.run(play(directory, disk, course_steps))
        event(f"segments: {min(disk.made, 5)}")

    check()


def test_room_that_was_promised_is_there_and_is_had_by_who_waits_for_it(ring_dir: Path) -> None:
    check_any_course(ring_dir, 400)


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_room_that_was_promised_is_there_by_thousands_of_courses(ring_dir: Path) -> None:
    check_any_course(ring_dir, 5000)


@pytest.mark.parametrize("payload_bytes", [1, 4000, 4006, 4007, 12_000, 16_320, 20_000])
def test_records_of_one_size_never_fail_to_find_the_room_they_were_promised(
    ring_dir: Path, payload_bytes: int
) -> None:
    """As many as there is room for, in each turn, through many segments."""
    size = payload_bytes + RECORD_OVERHEAD
    fill: list[tuple[str, int]] = [("append", size)] * 20
    course: list[tuple[str, int]] = []
    for n in range(60):
        course += [*fill, *[("sync", 0), ("turn", 0)] * (n % 7)]
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk()
        patch.setattr(journal_module, "Syncer", InlineSyncer)
        patch.setattr(journal_module, "ThreadPoolExecutor", InlineExecutor)
        patch.setattr(journal_module, "make_segment", disk.make_segment)
        asyncio.run(play(ring_dir, disk, course))
    assert disk.made > 3

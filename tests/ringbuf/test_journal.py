"""The journal of one process: told only what is on disk, in order; room that was told is there."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ringbuf import Journal, JournalRules, RoomGone
from ringbuf import journal as journal_module
from ringbuf.segment import PAGE_BYTES, SEGMENT_BYTES_MIN, group_bytes, segment_paths
from tests.ringbuf.conftest import Run
from tests.ringbuf.kit import PATIENCE_S
from tests.ringbuf.segments import HEADER, heads, order, read
from tests.ringbuf.stand_ins import Disk, HeldSyncer

PAGES = SEGMENT_BYTES_MIN // PAGE_BYTES - 1  # for groups, in the smallest segment
BIG = 9 * PAGE_BYTES  # more than half of it
OPENED = 200


class Desk:
    """A journal of the smallest segments, and what it said."""

    def __init__(self, directory: Path, segment_bytes: int = SEGMENT_BYTES_MIN) -> None:
        self.directory = directory
        self.segment_bytes = segment_bytes
        self.segments_max = 20
        self.told: list[int] = []
        self.failures: list[OSError] = []
        self.appended = 0

    async def open(self) -> Journal:
        rules = JournalRules(self.directory, HEADER, self.segment_bytes, self.segments_max)
        self.journal = await Journal.open(rules, self.failures.append)
        return self.journal

    def append(self, payload_bytes: int = 8) -> int:
        """The next order, which there must be room for -> its number."""
        number = self.appended
        record = order(number, payload_bytes).encode()
        assert self.journal.has_room(len(record))
        self.journal.append(record)
        self.journal.after_sync(lambda: self.told.append(number))
        self.appended += 1
        return number

    def fill_current(self) -> None:
        """Until only the spare one has room."""
        current = self.journal._current
        assert current is not None
        self.append(current.free - group_bytes(0) - 44 - 8)

    def numbers(self) -> list[int]:
        """Of all orders on disk, and nothing is damaged."""
        while True:
            try:
                found = {path.stem: read(path) for path in segment_paths(self.directory)}
                break
            except FileNotFoundError:  # sealed between the look at the directory and at it
                continue
        assert not [damage for _, damage in found.values() if damage]
        orders = [one for some, _ in found.values() for one in some]
        assert orders == [order(one.sequence, len(one.payload)) for one in orders]
        return [one.sequence for one in orders]

    def names(self) -> list[str]:
        return sorted(path.suffix for path in self.directory.iterdir())


@pytest.fixture
def desk(ring_dir: Path) -> Desk:
    return Desk(ring_dir)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Callable[[Journal], HeldSyncer]:
    """Journals that are opened from now on sync when they are told; -> how one is told."""
    monkeypatch.setattr(journal_module, "Syncer", HeldSyncer)

    def syncer_of(journal: Journal) -> HeldSyncer:
        assert isinstance(journal._syncer, HeldSyncer)
        return journal._syncer

    return syncer_of


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(journal_module, "make_segment", disk.make_segment)
    monkeypatch.setattr(journal_module, "RETRY_S", 0.001)
    return disk


async def until(seen: Callable[[], bool]) -> None:
    """Turns of the loop, for what happens in other threads and is told to nobody."""
    async with asyncio.timeout(PATIENCE_S):
        while not seen():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def refused(waiting: Awaitable[int]) -> str:
    with pytest.raises(RoomGone) as raised:
        await asyncio.wait_for(waiting, PATIENCE_S)
    return str(raised.value)


# ---- groups and callbacks ------------------------------------------------------------------------


def test_nobody_is_told_before_the_sync_returned_and_all_in_order(
    run: Run, desk: Desk, held: Callable[[Journal], HeldSyncer]
) -> None:
    async def main() -> None:
        syncer = held(await desk.open())
        for _ in range(5):
            desk.append()
        assert not syncer.waiting  # what else comes in this turn is in the same group
        await until(lambda: bool(syncer.waiting))
        for _ in range(10):
            await asyncio.sleep(0)
        assert desk.told == []
        syncer.let_go()
        await until(lambda: bool(desk.told))
        assert desk.told == [0, 1, 2, 3, 4]
        assert syncer.groups == 1
        await desk.journal.close()

    run(main())
    assert desk.numbers() == [0, 1, 2, 3, 4]


def test_a_group_widens_while_a_sync_is_under_way_and_follows_it_at_once(
    run: Run, desk: Desk, held: Callable[[Journal], HeldSyncer]
) -> None:
    async def main() -> None:
        journal = await desk.open()
        syncer, widths = held(journal), list[int]()
        journal.on_sync = lambda _ns, records: widths.append(records)
        desk.append()
        journal.after_sync(lambda: desk.told.append(len(syncer.waiting)))
        await until(lambda: bool(syncer.waiting))
        for _ in range(7):
            desk.append()
            await asyncio.sleep(0)
        assert syncer.groups == 1
        syncer.let_go()
        await until(lambda: bool(desk.told))
        assert desk.told == [1]  # the next one was under way when the first was told
        syncer.let_go()
        await until(lambda: len(desk.told) == 8)
        assert desk.told == [1, *range(1, 8)]
        assert widths == [1, 7]
        await journal.close()

    run(main())
    (path,) = segment_paths(desk.directory)
    places = [(at, synced) for at, synced, _ in heads(path.read_bytes())]
    assert places == [(PAGE_BYTES, PAGE_BYTES), (2 * PAGE_BYTES, 2 * PAGE_BYTES)]


def test_what_is_told_can_be_read_at_once(run: Run, desk: Desk) -> None:
    async def main() -> None:
        journal = await desk.open()
        for number in range(60):  # more than one segment holds
            assert await journal.reserve(100) == PAGE_BYTES
            journal.append(order(number).encode())
            journal.release(PAGE_BYTES)
            synced = asyncio.get_running_loop().create_future()
            journal.after_sync(lambda synced=synced: synced.set_result(desk.numbers()))
            assert await synced == list(range(number + 1))
        await journal.close()

    run(main())
    assert set(desk.names()) == {".sealed"}
    for path in segment_paths(desk.directory):
        groups = list(heads(path.read_bytes()))
        assert groups
        assert all(at == synced for at, synced, _ in groups)


def test_a_group_is_never_larger_than_it_may_be_but_a_record_may(
    run: Run, ring_dir: Path, held: Callable[[Journal], HeldSyncer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "GROUP_BYTES_MAX", 4 * PAGE_BYTES)
    desk = Desk(ring_dir, 64 * PAGE_BYTES)

    async def main() -> None:
        syncer = held(await desk.open())
        sizes = []
        for payload_bytes in (100, 6000, 6000, 3000, 30_000, 100, 16_000, 16_200, 1):
            desk.append(payload_bytes)
        while len(desk.told) < 9:
            await until(lambda: bool(syncer.waiting))
            sizes.append(len(syncer.waiting[0][2]) // PAGE_BYTES)
            told = len(desk.told)
            syncer.let_go()
            await until(lambda told=told: len(desk.told) > told)
        assert sizes == [4, 8, 4, 4]
        await desk.journal.close()

    run(main())
    assert desk.numbers() == list(range(9))


def test_a_callback_that_fails_keeps_nobody_from_being_told(
    run: Run, desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        journal = await desk.open()
        desk.append()
        desk.append()
        journal.after_sync(lambda: desk.told.append(1 // 0))
        journal.append(order(2).encode())  # nobody wants to know
        desk.appended += 1
        desk.append()
        await until(lambda: 3 in desk.told)
        assert desk.told == [0, 3]
        await journal.close()

    run(main())
    assert desk.numbers() == [0, 1, 2, 3]
    assert "a mistake of ours" in caplog.text


def test_what_a_callback_appends_is_written_too(run: Run, desk: Desk) -> None:
    async def main() -> None:
        journal = await desk.open()

        def again() -> None:
            if desk.append() < 5:
                journal.after_sync(again)

        again()
        await journal.close()

    run(main())
    assert desk.numbers() == [0, 1, 2, 3, 4, 5]
    assert desk.told == [5]


# ---- the first error -----------------------------------------------------------------------------


def test_after_the_first_error_nobody_is_told_anything_but_the_owner_once(
    run: Run, desk: Desk, held: Callable[[Journal], HeldSyncer]
) -> None:
    async def main() -> None:
        journal = await desk.open()
        syncer = held(journal)
        desk.append()
        await until(lambda: bool(syncer.waiting))
        desk.append()
        syncer.fail()
        await until(lambda: bool(desk.failures))
        assert not journal.has_room(1)
        assert "No space left" in await refused(journal.reserve(1))
        assert journal.trouble is not None
        journal.append(order(2).encode())
        journal.after_sync(lambda: desk.told.append(2))
        for _ in range(20):
            await asyncio.sleep(0)
        await asyncio.wait_for(journal.close(), PATIENCE_S)
        assert syncer.groups == 1

    run(main())
    assert desk.told == []
    assert [one.errno for one in desk.failures] == [errno.ENOSPC]


def test_an_error_tells_who_waits_for_room_and_who_waits_for_the_end(
    run: Run, desk: Desk, held: Callable[[Journal], HeldSyncer]
) -> None:
    async def main() -> None:
        journal = await desk.open()
        syncer = held(journal)
        taken = await journal.reserve(BIG)
        waiting = asyncio.create_task(journal.reserve(BIG))
        desk.append()
        await until(lambda: bool(syncer.waiting))
        closing = asyncio.create_task(journal.close())
        await asyncio.sleep(0)
        assert not waiting.done()
        syncer.fail()
        await refused(waiting)
        await asyncio.wait_for(closing, PATIENCE_S)
        journal.release(taken)

    run(main())
    assert len(desk.failures) == 1


@pytest.mark.parametrize("full", [False, True], ids=["made", "not made"])
def test_a_segment_that_was_being_made_at_the_error_brings_no_room_and_no_hope(
    run: Run, desk: Desk, held: Callable[[Journal], HeldSyncer], disk: Disk, full: bool
) -> None:
    async def main() -> None:
        journal = await desk.open()
        syncer, gate = held(journal), threading.Event()
        await until(lambda: journal._spare is not None)
        disk.gate = lambda: gate.wait(PATIENCE_S)
        desk.fill_current()
        await until(lambda: bool(syncer.waiting))
        syncer.let_go()
        desk.append()
        await until(lambda: bool(syncer.waiting))  # in the spare one; the next is being made
        syncer.fail()
        await until(lambda: bool(desk.failures))
        if full:
            disk.fill()
        tried = disk.tried
        gate.set()
        assert journal._making is not None
        await asyncio.wait({journal._making})
        assert "No space left" in await refused(journal.reserve(1))
        assert not journal.has_room(1)
        await journal.close()
        assert disk.tried == tried

    run(main())
    assert len(desk.failures) == 1
    assert desk.told == [0]


def test_an_error_of_the_disk_while_a_segment_is_made_is_the_end_too(
    run: Run, desk: Desk, disk: Disk
) -> None:
    disk.error = OSError(errno.EIO, os.strerror(errno.EIO))

    async def main() -> None:
        journal = await desk.open()
        assert [one.errno for one in desk.failures] == [errno.EIO]
        assert not journal.has_room(1)
        await refused(journal.reserve(1))
        await journal.close()

    run(main())
    assert disk.tried == 1
    assert desk.names() == []


# ---- room ----------------------------------------------------------------------------------------


def test_a_disk_that_is_full_is_felt_when_the_segment_is_and_room_comes_back_by_itself(
    run: Run, desk: Desk, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        journal = await desk.open()
        await until(lambda: journal._spare is not None)
        disk.fill()
        desk.fill_current()
        await until(lambda: desk.told == [0])
        desk.append()  # in the spare one: now there is none
        await until(lambda: desk.told == [0, 1])
        await until(lambda: journal.trouble is not None)
        for _ in range(PAGES - 1):
            assert await journal.reserve(1) == PAGE_BYTES
            journal.append(order(desk.appended).encode())
            desk.appended += 1
            journal.release(PAGE_BYTES)
            journal.after_sync(lambda: desk.told.append(-1))
            told = len(desk.told)
            await until(lambda told=told: len(desk.told) > told)
        assert not journal.has_room(1)
        assert "No space left" in await refused(journal.reserve(1))
        tried = disk.tried
        await until(lambda: disk.tried > tried + 2)
        assert not journal.has_room(1)
        disk.free()
        await until(lambda: journal.has_room(1))
        assert journal.trouble is None
        desk.append()
        await journal.close()

    run(main())
    assert desk.numbers() == list(range(PAGES + 2))
    assert caplog.text.count("trying on") == 1
    assert caplog.text.count("has room again") == 1
    assert desk.failures == []


@pytest.mark.parametrize(
    "error",
    [OSError(getattr(errno, name), name) for name in ("EMFILE", "EROFS", "EDQUOT", "EEXIST")]
    + [MemoryError()],
    ids=str,
)
def test_what_may_be_over_by_itself_is_waited_for(
    run: Run, desk: Desk, disk: Disk, error: Exception
) -> None:
    disk.error = error

    async def main() -> None:
        journal = await desk.open()
        assert journal.trouble
        await refused(journal.reserve(1))
        disk.free()
        await until(lambda: journal.has_room(1))
        desk.append()
        await journal.close()

    run(main())
    assert desk.told == [0]
    assert desk.failures == []


def test_there_are_no_more_segments_than_there_may_be(run: Run, desk: Desk, disk: Disk) -> None:
    desk.segments_max = 3

    async def main() -> None:
        journal = await desk.open()
        for _ in range(3):
            await until(lambda: journal.has_room(SEGMENT_BYTES_MIN - PAGE_BYTES - 1000))
            desk.append(SEGMENT_BYTES_MIN - PAGE_BYTES - 1000)
            await until(lambda: len(desk.told) == desk.appended)
            assert len(desk.names()) <= 3
        assert not journal.has_room(BIG)
        told = await refused(journal.reserve(BIG))
        assert "3 segments are full" in told
        assert str(desk.directory) in told
        segment_paths(desk.directory)[0].unlink()
        await until(lambda: journal.has_room(BIG))
        await journal.close()

    run(main())
    assert desk.numbers() == [1, 2]


def test_who_waits_for_room_has_it_when_the_next_segment_is_made(
    run: Run, desk: Desk, disk: Disk
) -> None:
    gate = threading.Event()

    async def main() -> None:
        journal = await desk.open()
        await until(lambda: journal._spare is not None)
        disk.gate = lambda: gate.wait(PATIENCE_S)
        desk.fill_current()
        await until(lambda: desk.told == [0])
        desk.append(BIG)
        waiting = [asyncio.create_task(journal.reserve(BIG)) for _ in range(2)]
        await until(lambda: len(desk.told) == 2)
        assert not any(one.done() for one in waiting)
        gate.set()
        assert await asyncio.wait_for(waiting[0], PATIENCE_S) == BIG + PAGE_BYTES
        await asyncio.sleep(0)
        assert not waiting[1].done()  # the same room is not promised twice
        journal.release(BIG + PAGE_BYTES)
        assert await asyncio.wait_for(waiting[1], PATIENCE_S) == BIG + PAGE_BYTES
        journal.release(BIG + PAGE_BYTES)
        await journal.close()

    run(main())


def test_who_waits_has_room_when_records_take_less_of_it_together(
    run: Run, desk: Desk, held: Callable[[Journal], HeldSyncer]
) -> None:
    async def main() -> None:
        journal = await desk.open()
        await until(lambda: journal._spare is not None)
        waiting = asyncio.create_task(journal.reserve(BIG))
        for _ in range(PAGES):  # written when he has found that there is no room
            desk.append()
        assert await asyncio.wait_for(waiting, PATIENCE_S) == BIG + PAGE_BYTES
        assert held(journal).groups == 1
        held(journal).let_go()
        await journal.close()

    run(main())


def test_a_cancelled_reserve_leaves_nothing(run: Run, desk: Desk) -> None:
    async def main() -> None:
        journal = await desk.open()
        await until(lambda: journal._spare is not None)
        taken = await journal.reserve(BIG)
        waiting = [asyncio.create_task(journal.reserve(BIG)) for _ in range(50)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        journal.release(taken)
        waiting[1].cancel()  # woken, but it has not run yet
        assert await asyncio.wait_for(waiting[2], PATIENCE_S) == taken
        for one in waiting[3:]:
            one.cancel()
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert [one for one in ends if not isinstance(one, asyncio.CancelledError)] == [taken]
        journal.release(taken)
        assert (journal._reserved, len(journal._waiting)) == (0, 0)
        assert journal.has_room(SEGMENT_BYTES_MIN - PAGE_BYTES - 44)
        await journal.close()

    run(main())
    assert desk.names() == []


def test_a_record_that_no_segment_can_hold_is_refused_at_once(run: Run, desk: Desk) -> None:
    async def main() -> None:
        journal = await desk.open()
        most = SEGMENT_BYTES_MIN - PAGE_BYTES - group_bytes(0)
        journal.release(await journal.reserve(most))
        assert not journal.has_room(SEGMENT_BYTES_MIN)
        with pytest.raises(ValueError, match="no segment of 65536 bytes has room"):
            await journal.reserve(SEGMENT_BYTES_MIN - PAGE_BYTES)
        await journal.close()

    run(main())


# ---- the end -------------------------------------------------------------------------------------


def test_close_waits_for_what_was_appended_seals_it_and_removes_what_is_unused(
    run: Run, desk: Desk, held: Callable[[Journal], HeldSyncer]
) -> None:
    async def main() -> None:
        journal = await desk.open()
        syncer = held(journal)
        await until(lambda: journal._spare is not None)
        desk.append()
        closing = asyncio.create_task(journal.close())
        await until(lambda: bool(syncer.waiting))
        desk.append()
        syncer.let_go()
        await until(lambda: desk.told == [0] and bool(syncer.waiting))
        assert not closing.done()
        assert desk.names() == [".journal", ".journal"]
        syncer.let_go()
        await closing
        assert desk.told == [0, 1]

    run(main())
    assert desk.names() == [".sealed"]
    assert desk.numbers() == [0, 1]


def test_a_full_segment_is_sealed_and_the_others_are_not(run: Run, desk: Desk) -> None:
    async def main() -> None:
        journal = await desk.open()
        await until(lambda: journal._spare is not None)
        desk.fill_current()
        await until(lambda: desk.told == [0])
        desk.append()
        await until(lambda: desk.told == [0, 1])
        await until(lambda: journal._spare is not None)
        assert desk.names() == [".journal", ".journal", ".sealed"]
        await journal.close()

    run(main())
    assert desk.names() == [".sealed", ".sealed"]


@pytest.mark.parametrize("full", [False, True], ids=["made", "not made"])
def test_what_is_made_while_it_closes_is_removed_and_not_tried_again(
    run: Run, desk: Desk, disk: Disk, full: bool, caplog: pytest.LogCaptureFixture
) -> None:
    gate, reached = threading.Event(), threading.Event()

    def stop_there() -> None:
        reached.set()
        gate.wait(PATIENCE_S)

    async def main() -> None:
        disk.fill()
        journal = await desk.open()
        disk.gate = stop_there
        await until(reached.is_set)  # it is tried again, to make the first one
        if not full:
            disk.free()
        closing = asyncio.create_task(journal.close())
        await asyncio.sleep(0)
        gate.set()
        await closing
        tried = disk.tried
        for _ in range(5):
            await asyncio.sleep(0.002)
        assert disk.tried == tried

    with caplog.at_level(logging.ERROR):
        run(main())
    assert desk.names() == []
    assert caplog.text == ""


def test_nothing_is_left_of_journals_that_were_opened_and_closed(run: Run, desk: Desk) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd")) + len(os.listdir("/proc/self/task"))  # noqa: PTH208

    async def main() -> None:
        await (await desk.open()).close()  # the loop itself opens what it keeps
        before = count()
        for number in range(OPENED):
            journal = await desk.open()
            if number % 2:
                desk.append()
                await until(lambda: len(desk.told) == desk.appended)
            await journal.close()
            for path in segment_paths(desk.directory):
                path.unlink()
        await until(lambda: count() <= before)  # a thread may take a moment to be gone

    run(main())
    assert desk.told == list(range(OPENED // 2))

"""The journal's segments: room that comes and goes, who waits for it, what is left at the end."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import threading
from collections.abc import Callable

import pytest

from ringbuf import Journal
from ringbuf.segment import PAGE_BYTES, SEGMENT_BYTES_MIN, group_bytes, segment_paths
from tests.ringbuf.conftest import Run
from tests.ringbuf.desk import BIG, OPENED, PAGES, Desk, refused, until
from tests.ringbuf.kit import PATIENCE_S
from tests.ringbuf.segments import order
from tests.ringbuf.stand_ins import Disk, HeldSyncer

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
            await until(lambda told=told: len(desk.told) > told)  # type: ignore[misc]
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

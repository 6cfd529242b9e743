"""The journal of one process: told only what is on disk, in order, and nothing after an error."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ringbuf import Journal
from ringbuf import journal as journal_module
from ringbuf.segment import PAGE_BYTES, segment_paths
from tests.ringbuf.conftest import Run
from tests.ringbuf.desk import BIG, Desk, refused, until
from tests.ringbuf.kit import PATIENCE_S
from tests.ringbuf.segments import heads, order
from tests.ringbuf.stand_ins import Disk, HeldSyncer

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
            journal.after_sync(lambda synced=synced: synced.set_result(desk.numbers()))  # type: ignore[misc]
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
            await until(lambda told=told: len(desk.told) > told)  # type: ignore[misc]
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

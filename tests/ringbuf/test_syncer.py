"""The thread that writes and syncs: one thing at a time, the first error is the last word."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ringbuf._journal import Syncer
from tests.ringbuf.conftest import Run
from tests.ringbuf.kit import PATIENCE_S, wait_for
from tests.ringbuf.nursery import ROOT

# Written in tens of milliseconds: what is asked right after the submit is asked meanwhile.
MUCH = bytes(range(256)) * 2**18
SUBMISSIONS = 20_000


@pytest.fixture
def fd(ring_dir: Path) -> Iterator[int]:
    fd = os.open(ring_dir / "written", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


@pytest.fixture
def syncer() -> Iterator[Syncer]:
    syncer = Syncer()
    yield syncer
    syncer.close()


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def ended(before: int) -> None:
    """All but so many: whoever joins a thread is told a moment before the kernel forgets it."""
    wait_for(lambda: threads() == before, f"{before} threads")


def awaited(syncer: Syncer) -> int:
    """The result, once there is one."""
    assert select.select([syncer.fileno()], [], [], PATIENCE_S)[0]
    result = syncer.result()
    assert result is not None
    return result


def test_what_was_submitted_is_written_where_it_belongs(syncer: Syncer, fd: int) -> None:
    for offset, data in ((4096, b"later"), (0, b"earlier"), (2, b""), (4096, b"over")):
        syncer.submit(fd, offset, data)
        assert awaited(syncer) >= 0
    assert os.pread(fd, 10_000, 0) == b"earlier".ljust(4096, b"\0") + b"overr"


def test_there_is_a_result_once_and_only_after_a_submit(syncer: Syncer, fd: int) -> None:
    assert syncer.result() is None
    syncer.submit(fd, 0, b"x")
    awaited(syncer)
    assert syncer.result() is None
    assert not select.select([syncer.fileno()], [], [], 0)[0]


def test_while_it_is_busy_there_is_no_result_and_nothing_else_is_taken(
    syncer: Syncer, fd: int
) -> None:
    syncer.submit(fd, 0, MUCH)
    assert syncer.result() is None
    with pytest.raises(RuntimeError, match="busy"):
        syncer.submit(fd, 0, b"not this")
    awaited(syncer)
    assert os.pread(fd, len(MUCH) + 1, 0) == MUCH
    syncer.submit(fd, 0, b"but now")
    awaited(syncer)
    assert os.pread(fd, 7, 0) == b"but now"


def test_what_it_writes_is_kept_until_then_and_no_longer(syncer: Syncer, fd: int) -> None:
    data = MUCH[1:]
    before = sys.getrefcount(data)
    syncer.submit(fd, 0, data)
    assert sys.getrefcount(data) == before + 1
    awaited(syncer)
    assert sys.getrefcount(data) == before


@pytest.mark.parametrize(
    ("path", "flags", "written", "number"),
    [
        ("/dev/full", os.O_WRONLY, (0, b"x"), errno.ENOSPC),
        ("/dev/zero", os.O_RDONLY, (0, b"x"), errno.EBADF),
        ("/dev/null", os.O_WRONLY, (0, b""), errno.EINVAL),  # nothing there that can be synced
        ("/dev/null", os.O_WRONLY, (-1, b"x"), errno.EINVAL),
    ],
)
def test_the_first_error_is_told_once_and_is_for_good(
    syncer: Syncer, path: str, flags: int, written: tuple[int, bytes], number: int
) -> None:
    wrong = os.open(path, flags)
    try:
        syncer.submit(wrong, *written)
        with pytest.raises(OSError, match=os.strerror(number)) as raised:
            awaited(syncer)
    finally:
        os.close(wrong)
    assert raised.value.errno == number
    assert syncer.result() is None
    with pytest.raises(RuntimeError, match="has failed"):
        syncer.submit(wrong, 0, b"never again")


def test_what_is_no_bytes_is_refused_and_does_no_harm(syncer: Syncer, fd: int) -> None:
    for data in (bytearray(b"x"), memoryview(b"x"), "x", None):
        with pytest.raises(TypeError):
            syncer.submit(fd, 0, data)  # type: ignore[arg-type]
    syncer.submit(fd, 0, b"x")
    awaited(syncer)


def test_close_waits_for_what_it_is_at_and_then_takes_nothing(fd: int) -> None:
    before, syncer = threads(), Syncer()
    assert threads() == before + 1
    syncer.submit(fd, 0, MUCH)
    syncer.close()
    ended(before)
    assert os.pread(fd, len(MUCH) + 1, 0) == MUCH
    assert syncer.fileno() == -1
    assert syncer.result() is None
    with pytest.raises(RuntimeError, match="closed"):
        syncer.submit(fd, 0, b"x")
    syncer.close()


def test_one_that_is_dropped_ends_like_one_that_is_closed(fd: int) -> None:
    before, descriptors = threads(), os.listdir("/proc/self/fd")  # noqa: PTH208
    syncer = Syncer()
    syncer.submit(fd, 0, MUCH)
    del syncer
    ended(before)
    assert os.listdir("/proc/self/fd") == descriptors  # noqa: PTH208
    assert os.pread(fd, len(MUCH) + 1, 0) == MUCH


def test_one_that_failed_can_be_closed_and_dropped(fd: int) -> None:
    before = threads()
    with Path("/dev/full").open("wb") as full:
        for result in (True, False):
            syncer = Syncer()
            syncer.submit(full.fileno(), 0, b"x")
            if result:
                with suppress(OSError):
                    awaited(syncer)
                syncer.close()
            del syncer
    ended(before)


def test_threads_that_close_one_at_the_same_time_do_it_once(fd: int) -> None:
    before = threads()
    for _ in range(20):
        syncer, barrier = Syncer(), threading.Barrier(4)

        def close(syncer: Syncer = syncer, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(PATIENCE_S)
            syncer.close()

        closers = [threading.Thread(target=close) for _ in range(3)]
        for closer in closers:
            closer.start()
        syncer.submit(fd, 0, MUCH[: 2**20])
        barrier.wait(PATIENCE_S)
        for closer in closers:
            closer.join()
        assert syncer.fileno() == -1
        assert os.pread(fd, 2**20, 0) == MUCH[: 2**20]
        os.ftruncate(fd, 0)
    ended(before)


FORKING = """
import os, select, sys
from ringbuf._journal import Syncer

fd = os.open(sys.argv[1], os.O_RDWR)
busy, idle = Syncer(), Syncer()
busy.submit(fd, 0, bytes(2**26))
child = os.fork()
if child == 0:
    for syncer in (busy, idle):
        for call in (lambda: syncer.submit(fd, 0, b"x"), syncer.result):
            try:
                call()
            except RuntimeError as error:
                assert str(error) == "the syncer was made before a fork", error
            else:
                raise AssertionError("it was not refused")
    busy.close()
    sys.exit(0)  # the other one is dropped
assert os.waitpid(child, 0)[1] == 0
for syncer in (busy, idle):
    if syncer is idle:
        idle.submit(fd, 0, b"x")
    assert select.select([syncer.fileno()], [], [], 60)[0]
    assert syncer.result() is not None
    syncer.close()
"""


def test_a_fork_can_not_use_one_nor_take_anything_away_by_closing_it(fd: int) -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING, f"/proc/{os.getpid()}/fd/{fd}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")


async def submit_one_after_another(syncer: Syncer, fd: int, count: int) -> list[int]:
    """Each from the callback of the one before -> the results, in order."""
    loop = asyncio.get_running_loop()
    results: list[int] = []
    done: asyncio.Future[None] = loop.create_future()

    def go_on() -> None:
        result = syncer.result()
        if result is None:
            return
        results.append(result)
        if len(results) == count:
            done.set_result(None)
        else:
            number = len(results)
            syncer.submit(fd, number % 512 * 8, number.to_bytes(8, "little"))

    loop.add_reader(syncer.fileno(), go_on)
    syncer.submit(fd, 0, bytes(8))
    await done
    loop.remove_reader(syncer.fileno())
    return results


def check_many(run: Run, syncer: Syncer, fd: int, count: int) -> None:
    async def main() -> None:
        assert len(await submit_one_after_another(syncer, fd, count)) == count
        last = [int.from_bytes(os.pread(fd, 8, at), "little") for at in range(0, 4096, 8)]
        assert sorted(last) == list(range(count - 512, count))

    run(main())


def test_a_loop_hears_of_each_of_many_submissions(run: Run, syncer: Syncer, fd: int) -> None:
    check_many(run, syncer, fd, SUBMISSIONS)


@pytest.mark.prove
def test_a_loop_hears_of_each_of_a_hundred_thousand(run: Run, syncer: Syncer, fd: int) -> None:
    check_many(run, syncer, fd, 100_000)

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ringbuf import Closed, Full, Reader, Ring, RingError, Writer
from ringbuf.parking import Turn
from tests.ringbuf.conftest import MakeRing, Run
from tests.ringbuf.kit import WRITERS_EVENT, key, message, number, somebody_sleeps, wait_for


@asynccontextmanager
async def full(ring: Ring) -> AsyncIterator[tuple[Writer, Reader]]:
    """The ring filled with 0, 1, ...; no put of the test is left pending in the end."""
    with ring.writer() as writer, ring.reader(0) as reader:
        for n in range(ring.capacity):
            await writer.put_async(*message(n))
        yield writer, reader
        assert (writer.parked, len(ring.line), ring.mapping.parked) == (0, 0, 0)
        assert ring.rescues == 0


async def park(writer: Writer, *numbers: int) -> list[asyncio.Task[int]]:
    """Tasks whose puts wait in that order."""
    tasks = []
    for n in numbers:
        tasks.append(asyncio.create_task(writer.put_async(*message(n))))
        await asyncio.sleep(0)
        assert not tasks[-1].done()
    return tasks


def take_one(reader: Reader) -> int:
    (item,) = reader.take(1, timeout=0)
    reader.release([item])
    return number(item)


def test_a_put_with_room_does_not_suspend(make_ring: MakeRing, run: Run) -> None:
    async def main() -> None:
        ring = make_ring(capacity=2)
        with ring.writer() as writer:
            for n in range(2):
                with pytest.raises(StopIteration) as ended:
                    writer.put_async(*message(n)).send(None)
                assert ended.value.value == n

    run(main())


def test_a_put_on_a_full_ring_stays_pending_and_invisible(make_ring: MakeRing, run: Run) -> None:
    async def main() -> None:
        ring = make_ring(capacity=2)
        async with full(ring) as (writer, reader):
            (task,) = await park(writer, 9)
            assert (writer.parked, ring.depth, ring.tail) == (1, 2, 2)
            assert ring.find(key(9)) is None
            assert [number(item) for item in ring.snapshot().waiting] == [0, 1]
            assert take_one(reader) == 0
            assert await task == 2
            assert [take_one(reader) for _ in range(2)] == [1, 9]

    run(main())


def test_one_take_lets_in_one_pending_put_oldest_first(make_ring: MakeRing, run: Run) -> None:
    async def main() -> None:
        ring = make_ring(capacity=1)
        async with full(ring) as (writer, reader):
            tasks = await park(writer, 10, 11, 12, 13)
            for n, task in enumerate(tasks):
                take_one(reader)
                assert await task == 1 + n
                assert [other.done() for other in tasks] == [i <= n for i in range(4)]
            assert take_one(reader) == 13

    run(main())


def test_nobody_overtakes_a_pending_put_in_any_form(make_ring: MakeRing, run: Run) -> None:
    async def main() -> None:
        ring = make_ring(capacity=3)
        async with full(ring) as (writer, reader):
            (first,) = await park(writer, 10)
            for _ in range(3):
                take_one(reader)  # now there is room for all, and the pending one has not run yet
            assert writer.try_put(*message(20)) is None
            assert writer.put_many([b""], [key(21)]) == 0
            with pytest.raises(Full):
                writer.put(*message(22), timeout=0)
            second = asyncio.create_task(writer.put_async(*message(11)))
            assert [await first, await second] == [3, 4]
            assert [take_one(reader) for _ in range(2)] == [10, 11]

    run(main())


def test_a_cancelled_pending_put_never_appears(make_ring: MakeRing, run: Run) -> None:
    async def main() -> None:
        ring = make_ring(capacity=1)
        async with full(ring) as (writer, reader):
            tasks = await park(writer, 10, 11, 12)
            for cancelled in (tasks[1], tasks[0]):  # from the middle, then the first
                cancelled.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await cancelled
            assert writer.parked == 1
            take_one(reader)
            assert await tasks[2] == 1
            assert take_one(reader) == 12
            assert ring.tail == 2

    run(main())


@pytest.mark.parametrize("steps", range(6))
def test_cancel_against_release_has_exactly_one_outcome(
    make_ring: MakeRing, run: Run, steps: int
) -> None:
    """The cancel comes ``steps`` steps of the loop, or a wake of the helper, after the release."""

    async def main() -> None:
        ring = make_ring(capacity=1)
        async with full(ring) as (writer, reader):
            for n in range(10, 40):
                (task,) = await park(writer, n)
                before = take_one(reader)
                if steps == 5:
                    await asyncio.to_thread(wait_for, lambda: not ring.line._watched, "the call")
                for _ in range(steps % 5):
                    await asyncio.sleep(0)
                task.cancel()
                outcome = (await asyncio.gather(task, return_exceptions=True))[0]
                if isinstance(outcome, asyncio.CancelledError):
                    assert ring.find(key(n)) is None
                    assert writer.try_put(*message(before)) is not None  # the room is there
                else:
                    assert ring.find(key(n)) is not None
                assert ring.depth == 1

    run(main())


def test_a_storm_of_cancels_leaves_the_others_in_order(make_ring: MakeRing, run: Run) -> None:
    async def main() -> None:
        ring = make_ring(capacity=2)
        async with full(ring) as (writer, reader):
            tasks = await park(writer, *range(100, 1100))
            for task in tasks[::2] + tasks[1:900:2]:
                task.cancel()
            survivors = [1001 + 2 * n for n in range(50)]
            got: list[int] = []
            while len(got) < 52:
                while ring.depth:
                    got.append(take_one(reader))
                await asyncio.sleep(0)
            assert got == [0, 1, *survivors]
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            puts = [each for each in outcomes if isinstance(each, int)]
            assert puts == list(range(2, 52))
            assert len(outcomes) - len(puts) == 950

    run(main())


def test_close_fails_every_pending_put(make_ring: MakeRing, run: Run) -> None:
    async def main() -> None:
        ring = make_ring(capacity=1)
        async with full(ring) as (writer, reader):
            tasks = await park(writer, *range(10, 60))
            ring.close()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [Closed] * 50
            with pytest.raises(Closed):
                await writer.put_async(*message(99))
            assert take_one(reader) == 0
            with pytest.raises(Closed):
                reader.take()

    run(main())


def test_a_wait_that_runs_out_leaves_the_line(make_ring: MakeRing, run: Run) -> None:
    async def main() -> None:
        ring = make_ring(capacity=1)
        async with full(ring) as (writer, _):
            for n in range(200):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0):
                        await writer.put_async(*message(n))
            assert threading.active_count() < 10
            assert ring.tail == 1

    run(main())


def test_threads_and_tasks_stand_in_one_line(make_ring: MakeRing, run: Run) -> None:
    async def main() -> None:
        ring = make_ring(capacity=1)
        async with full(ring) as (writer, reader):
            threads = []
            tasks = []
            for n in range(6):
                if n % 2:
                    tasks += await park(writer, 10 + n)
                else:
                    threads.append(threading.Thread(target=writer.put, args=message(10 + n)))
                    threads[-1].start()
                    wait_for(lambda n=n: writer.parked == n + 1, "parked")  # type: ignore[misc]
            got: list[int] = []
            while len(got) < 7:
                while ring.depth:
                    got.append(take_one(reader))
                await asyncio.sleep(0)
            assert got == [0, 10, 11, 12, 13, 14, 15]
            await asyncio.gather(*tasks)
            for thread in threads:
                thread.join()

    run(main())


def test_two_loops_in_two_threads_stand_in_one_line(make_ring: MakeRing) -> None:
    ring = make_ring(capacity=1)
    turns = threading.Barrier(2)

    async def park_in_turn(writer: Writer, first: int) -> None:
        tasks = []
        for n in range(6):
            if n % 2 == first:
                tasks += await park(writer, 10 + n)
            turns.wait(60)
        await asyncio.gather(*tasks)

    with ring.writer() as writer, ring.reader(0) as reader:
        writer.put(*message(0))
        loops = [
            threading.Thread(target=lambda f=f: asyncio.run(park_in_turn(writer, f)))
            for f in range(2)
        ]
        for loop in loops:
            loop.start()
        wait_for(lambda: writer.parked == 6, "six puts are parked")
        got: list[int] = []
        for _ in range(7):
            got.extend(map(number, items := reader.take(1, timeout=60)))
            reader.release(items)
        for loop in loops:
            loop.join()
    assert got == [0, 10, 11, 12, 13, 14, 15]
    assert ring.rescues == 0


@pytest.mark.parametrize("how", ["first", "watched", "behind"])
def test_a_put_whose_loop_is_gone_blocks_nobody(make_ring: MakeRing, how: str) -> None:
    ring = make_ring(capacity=1)
    lost: list[asyncio.Task[int]] = []

    async def lose(writer: Writer) -> None:
        lost.extend(await park(writer, 10, 11))

    async def survive(writer: Writer, reader: Reader) -> None:
        tasks = await park(writer, 20, 21)
        for _ in range(2):
            reader.release(reader.take(1))
            await asyncio.wait_for(tasks.pop(0), 30)

    with ring.writer() as writer, ring.reader(0) as reader:
        writer.put(*message(0))
        loop = asyncio.new_event_loop()
        if how == "behind":
            blocker = threading.Thread(target=writer.put, args=message(5))
            blocker.start()
            wait_for(lambda: writer.parked == 1, "a put before them")
        loop.run_until_complete(lose(writer))
        if how == "watched":
            wait_for(lambda: somebody_sleeps(ring, WRITERS_EVENT), "the helper sleeps")
        loop.close()
        if how == "behind":
            reader.release(reader.take(1))
            blocker.join()
        asyncio.run(survive(writer, reader))
        assert [number(item) for item in reader.take()] == [21]
        for task in lost:  # the interpreter would complain of them, rightly
            task.get_coro().close()
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        assert (writer.parked, ring.mapping.parked) == (0, 0)


def test_detach_ends_pending_puts_of_the_loop(make_ring: MakeRing, run: Run) -> None:
    async def main() -> None:
        ring = make_ring(capacity=1)
        writer = ring.writer()
        writer.put(*message(0))
        tasks = await park(writer, 10, 11, 12)
        ring.detach()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [RingError] * 3
        with pytest.raises(RingError, match="detached"):
            await writer.put_async(*message(1))
        assert len(ring.line) == 0

    run(main())


def test_an_interrupted_join_leaves_no_ghost_in_the_line(
    make_ring: MakeRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        ring = make_ring(capacity=1)
        join = ring.line.join

        def interrupted(turn: Turn) -> None:
            join(turn)
            raise KeyboardInterrupt

        monkeypatch.setattr(ring.line, "join", interrupted)
        async with full(ring) as (writer, reader):
            with pytest.raises(KeyboardInterrupt):
                writer.put(*message(1))
            with pytest.raises(KeyboardInterrupt):
                writer.put_async(*message(1)).send(None)
            assert (writer.parked, ring.mapping.parked) == (0, 0)
            take_one(reader)
            assert writer.try_put(*message(2)) == 1

    asyncio.run(main())


def test_a_refused_helper_thread_fails_the_put_and_leaves_the_line(
    make_ring: MakeRing, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        ring = make_ring(capacity=1)
        async with full(ring) as (writer, reader):
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", refuse)
                with pytest.raises(RuntimeError, match="can't start"):
                    await writer.put_async(*message(1))
            (task,) = await park(writer, 10)
            take_one(reader)
            assert await task == 1

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    run(main())


def test_many_puts_share_one_helper_thread_which_detach_ends(make_ring: MakeRing, run: Run) -> None:
    def helpers() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "ringbuf-room"]

    async def main() -> None:
        ring = make_ring(capacity=1)
        async with full(ring) as (writer, reader):
            tasks = await park(writer, *range(10, 30))
            assert len(helpers()) == 1
            for task in tasks:
                take_one(reader)
                await task
        ring.detach()
        assert helpers() == []

    run(main())


def test_the_hundredth_and_the_first_loop_find_the_ring_as_usable(make_ring: MakeRing) -> None:
    async def once(n: int) -> None:
        (task,) = await park(writer, n)
        take_one(reader)
        await task

    ring = make_ring(capacity=1)
    with ring.writer() as writer, ring.reader(0) as reader:
        writer.put(*message(0))
        for n in range(100):
            asyncio.run(once(n))
        assert ring.tail == 101
    assert ring.rescues == 0


def test_an_interrupt_while_leaving_the_line_leaves_no_ghost(
    make_ring: MakeRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = make_ring(capacity=1)
    leave = ring.line.leave
    interrupted: list[Turn] = []

    def interrupted_once(turn: Turn) -> None:
        if not interrupted:
            interrupted.append(turn)
            raise KeyboardInterrupt
        leave(turn)

    with ring.writer() as writer:
        writer.put(*message(0))
        monkeypatch.setattr(ring.line, "leave", interrupted_once)
        with pytest.raises(KeyboardInterrupt):
            writer.put(*message(1), timeout=0)
        assert (len(interrupted), len(ring.line), ring.mapping.parked) == (1, 0, 0)

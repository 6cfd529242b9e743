from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from ringbuf import Closed, Empty, HandFull, Item, NotHeld, Reader, Ring, RingError, Writer
from tests.ringbuf.conftest import MakeRing
from tests.ringbuf.kit import (
    READERS_EVENT,
    cell_at,
    key,
    message,
    number,
    raw,
    somebody_sleeps,
    wait_for,
)


@pytest.fixture
def writer(ring: Ring) -> Iterator[Writer]:
    with ring.writer() as writer:
        yield writer


@pytest.fixture
def reader(ring: Ring) -> Iterator[Reader]:
    with ring.reader(0) as reader:
        yield reader


def put(writer: Writer, *numbers: int) -> None:
    for n in numbers:
        writer.put(*message(n))


def test_first_in_first_out_and_empty_after_the_last(writer: Writer, reader: Reader) -> None:
    put(writer, 3, 1, 2)
    items = reader.take(2) + reader.take()
    assert [(number(i), i.sequence) for i in items] == [(3, 0), (1, 1), (2, 2)]
    with pytest.raises(Empty):
        reader.take(timeout=0)


def test_a_hundred_thousand_laps_at_capacity_one(make_ring: MakeRing) -> None:
    ring = make_ring(capacity=1, hand=1)
    with ring.writer() as writer, ring.reader(0) as reader:
        for n in range(100_000):
            assert writer.try_put(b"", key(n)) == n
            (item,) = reader.take()
            assert (item.sequence, item.damaged) == (n, False)
            reader.release([item])
    assert (ring.head, ring.tail, ring.depth, ring.rescues) == (100_000, 100_000, 0, 0)


@pytest.mark.parametrize("timeout", [0, 0.02, -5.0])
def test_a_take_that_runs_out_of_time_takes_nothing(
    ring: Ring, writer: Writer, reader: Reader, timeout: float
) -> None:
    with pytest.raises(Empty):
        reader.take(timeout=timeout)
    put(writer, 1)
    assert (ring.depth, reader.held()) == (1, [])
    assert [number(item) for item in reader.take(timeout=timeout)] == [1]


def test_a_thousand_timed_out_takes_leave_no_growing_state(ring: Ring, reader: Reader) -> None:
    for _ in range(1000):
        with pytest.raises(Empty):
            reader.take(timeout=0)
    assert (reader.held(), ring.held_count(0), ring.head, ring.rescues) == ([], 0, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_items": 0}, ValueError),
        ({"max_items": -1}, ValueError),
        ({"max_items": 2**64}, OverflowError),
        ({"max_items": 1.5}, TypeError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"nonsense": 1}, TypeError),
    ],
)
def test_a_wrong_argument_is_refused_and_nothing_is_taken(
    ring: Ring, writer: Writer, reader: Reader, arguments: dict[str, object], error: type[Exception]
) -> None:
    put(writer, 1)
    with pytest.raises(error):
        reader.take(**arguments)  # type: ignore[arg-type]
    assert (ring.depth, reader.held()) == (1, [])


@pytest.mark.parametrize("max_items", [2**16 + 1, 2**31, 2**62])
def test_asking_for_more_than_a_hand_holds_takes_what_fits(
    writer: Writer, reader: Reader, max_items: int
) -> None:
    put(writer, 1, 2)
    assert len(reader.take(max_items)) == 2


def test_a_full_hand_takes_nothing_more_until_something_is_released(make_ring: MakeRing) -> None:
    ring = make_ring(capacity=4, hand=3)
    with ring.writer() as writer, ring.reader(0) as reader:
        put(writer, 0, 1, 2, 3)
        items = reader.take(64)
        assert len(items) == 3
        with pytest.raises(HandFull, match="all 3 cells of hand 0"):
            reader.take(timeout=0)
        reader.release(items[1:2])
        assert [number(item) for item in reader.take(64)] == [3]
        assert [number(i) for i in sorted(reader.held(), key=lambda i: i.sequence)] == [0, 2, 3]


def test_one_reader_leaves_the_others_their_share(make_ring: MakeRing) -> None:
    ring = make_ring(capacity=7, readers=3)
    with ring.writer() as writer, ring.reader(0) as a, ring.reader(1) as b, ring.reader(2) as c:
        put(writer, *range(7))
        assert [len(each.take(64)) for each in (a, b, c)] == [3, 2, 1]
        assert ring.depth == 1


def test_a_released_item_is_gone_and_a_second_release_frees_nobody_elses(
    make_ring: MakeRing,
) -> None:
    ring = make_ring(hand=1)
    with ring.writer() as writer, ring.reader(0) as reader:
        put(writer, 1)
        first = reader.take()
        reader.release(first)
        assert (ring.held_count(0), reader.held()) == (0, [])
        put(writer, 2)
        second = reader.take()
        assert second[0].cell == first[0].cell  # its next tenant
        with pytest.raises(NotHeld, match="sequence 0"):
            reader.release(first)
        assert reader.held() == second


def test_release_frees_all_of_its_items_or_none(ring: Ring, writer: Writer, reader: Reader) -> None:
    put(writer, 1, 2, 3)
    items = reader.take()
    found = ring.find(key(1))
    assert found is not None
    stranger = Item(b"", bytes(16), sequence=9, cell=0)
    for wrong in ([items[0], items[0]], [items[1], found.item], [items[2], stranger]):
        with pytest.raises(NotHeld):
            reader.release(wrong)
    for nonsense in ([items[0], "x"], items[0], [None]):
        with pytest.raises(TypeError):
            reader.release(nonsense)  # type: ignore[arg-type]
    assert ring.held_count(0) == 3
    reader.release(items)
    assert ring.held_count(0) == 0
    reader.release([])


def test_a_cell_that_was_taken_away_is_not_freed_and_the_others_stay_held(
    ring: Ring, writer: Writer, reader: Reader
) -> None:
    put(writer, 1, 2, 3)
    items = reader.take()
    with raw(ring) as memory:
        at = cell_at(ring, 0, items[1].cell)
        memory[at] = 77  # as if another owner had filled it
        with pytest.raises(NotHeld, match="taken away"):
            reader.release(items)
        assert memory[at] == 77
    reader.release(items[2:])
    assert ring.held_count(0) == 1


def test_one_reader_cannot_release_for_another(ring: Ring, writer: Writer, reader: Reader) -> None:
    put(writer, 1, 2)
    items = reader.take(1)
    with ring.reader(1) as other, pytest.raises(NotHeld):
        other.release(items)
    assert reader.held() == items


def test_what_was_left_in_a_hand_comes_out_first_for_its_next_owner(
    ring: Ring, writer: Writer
) -> None:
    put(writer, 0, 1, 2)
    with ring.reader(0) as reader:
        items = reader.take()
        reader.release(items[1:2])
    put(writer, 3)
    with ring.reader(0) as reader:
        assert sorted(number(item) for item in reader.held()) == [0, 2]
        adopted = reader.take(1) + reader.take(64)
        assert [(number(item), item.attempts) for item in adopted] == [(0, 0), (2, 0)]
        assert [number(item) for item in reader.take()] == [3]
        reader.release(adopted)


def test_what_was_adopted_is_released_only_after_it_was_taken(ring: Ring, writer: Writer) -> None:
    put(writer, 0)
    with ring.reader(0) as reader:
        reader.take()
    with ring.reader(0) as reader:
        with pytest.raises(NotHeld):
            reader.release(reader.held())
        reader.release(reader.take())
        assert ring.held_count(0) == 0


def test_a_closed_reader_touches_its_hand_no_more(ring: Ring, writer: Writer) -> None:
    put(writer, 1, 2)
    first = ring.reader(0)
    items = first.take(1)
    first.close()
    first.close()
    with ring.reader(0) as second:
        for call in (first.take, first.held, lambda: first.release(items)):
            with pytest.raises(RingError, match="closed"):
                call()
        assert [number(item) for item in second.take()] == [1]


def test_a_reader_at_work_in_one_thread_refuses_others_and_stays_open(
    ring: Ring, writer: Writer, reader: Reader
) -> None:
    got: list[Item] = []
    taker = threading.Thread(target=lambda: got.extend(reader.take()))
    taker.start()
    wait_for(lambda: somebody_sleeps(ring, READERS_EVENT), "a sleeping reader")
    calls = (lambda: reader.take(timeout=0), reader.held, lambda: reader.release([]), reader.close)
    for call in calls:
        with pytest.raises(RingError, match=r"one thread|at work"):
            call()
    put(writer, 1)
    taker.join()
    assert reader.held() == got
    assert ring.rescues == 0


def test_closed_comes_only_after_everything_was_taken(
    ring: Ring, writer: Writer, reader: Reader
) -> None:
    put(writer, 1, 2)
    ring.close()
    assert [number(reader.take(1)[0]) for _ in range(2)] == [1, 2]
    for _ in range(2):
        with pytest.raises(Closed):
            reader.take()


def test_close_wakes_every_sleeping_reader(ring: Ring) -> None:
    def wait(index: int) -> None:
        with ring.reader(index) as reader, pytest.raises(Closed):
            reader.take()
        closed.append(index)

    closed: list[int] = []
    threads = [threading.Thread(target=wait, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    wait_for(lambda: somebody_sleeps(ring, READERS_EVENT), "a sleeping reader")
    ring.close()
    for thread in threads:
        thread.join()
    assert sorted(closed) == [0, 1]
    assert ring.rescues == 0


def test_a_signal_handler_that_raises_ends_the_take_and_nothing_was_taken(
    ring: Ring, writer: Writer, reader: Reader
) -> None:
    reentered: list[str] = []

    def interrupt(*_: object) -> None:
        with pytest.raises(RingError) as refused:  # the same reader, from within its own take
            reader.take(timeout=0)
        reentered.append(str(refused.value))
        raise KeyboardInterrupt

    def aim() -> None:
        wait_for(lambda: somebody_sleeps(ring, READERS_EVENT), "a sleeping reader")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    previous = signal.signal(signal.SIGUSR1, interrupt)
    helper = threading.Thread(target=aim)
    try:
        helper.start()
        with pytest.raises(KeyboardInterrupt):
            reader.take()
    finally:
        helper.join()
        signal.signal(signal.SIGUSR1, previous)
    assert reentered == ["a reader serves one thread at a time"]
    put(writer, 1)
    assert (ring.depth, reader.held()) == (1, [])
    assert [number(item) for item in reader.take()] == [1]


def test_a_handler_that_detaches_ends_the_take_it_interrupts(ring: Ring, reader: Reader) -> None:
    def aim() -> None:
        wait_for(lambda: somebody_sleeps(ring, READERS_EVENT), "a sleeping reader")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    previous = signal.signal(signal.SIGUSR1, lambda *_: ring.detach())
    helper = threading.Thread(target=aim)
    try:
        helper.start()
        with pytest.raises(RingError, match="detached"):
            reader.take()
    finally:
        helper.join()
        signal.signal(signal.SIGUSR1, previous)

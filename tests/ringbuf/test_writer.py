from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from ringbuf import Closed, Full, Reader, Ring, RingError, TooLarge, Writer
from tests.ringbuf.conftest import MakeRing
from tests.ringbuf.kit import (
    READERS_EVENT,
    WRITERS_EVENT,
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


def fill(writer: Writer, ring: Ring) -> None:
    for n in range(ring.capacity - ring.depth):
        writer.put(*message(n))


@pytest.mark.parametrize("capacity", [1, 2, 3, 100, 10_000])
def test_capacity_n_accepts_exactly_n_and_the_next_try_stores_nothing(
    make_ring: MakeRing, capacity: int
) -> None:
    ring = make_ring(capacity=capacity)
    with ring.writer() as writer:
        assert [writer.try_put(*message(n)) for n in range(capacity)] == list(range(capacity))
        before = ring.slots.copy()
        assert writer.try_put(*message(capacity)) is None
        assert (ring.depth, ring.tail, ring.head) == (capacity, capacity, 0)
        assert ring.find(key(capacity)) is None
        assert (before == ring.slots).all()


def test_a_record_travels_whole(ring: Ring, writer: Writer, reader: Reader) -> None:
    before_ns = time.time_ns()
    writer.put(b"payload", key(1), header=b"header", round=7)
    after_ns = time.time_ns()
    item = reader.take()[0]
    assert (item.payload, item.key, item.header, item.round) == (b"payload", key(1), b"header", 7)
    assert (item.sequence, item.attempts, item.damaged) == (0, 0, False)
    assert before_ns <= item.accepted_ns <= after_ns


@pytest.mark.parametrize(("payload", "header"), [(64, 0), (0, 64), (63, 1), (0, 0)])
def test_payload_and_header_share_the_room_to_the_last_byte(
    ring: Ring, writer: Writer, reader: Reader, payload: int, header: int
) -> None:
    writer.put(b"p" * payload, key(1), header=b"h" * header)
    item = reader.take()[0]
    assert (item.payload, item.header, item.damaged) == (b"p" * payload, b"h" * header, False)


@pytest.mark.parametrize(("payload", "header"), [(65, 0), (0, 65), (60, 5), (1 << 20, 0)])
def test_what_no_slot_can_hold_is_refused_at_once_with_both_sizes(
    ring: Ring, writer: Writer, payload: int, header: int
) -> None:
    fill(writer, ring)  # at once: not after waiting for room
    with pytest.raises(TooLarge, match=rf"payload of {payload} bytes.* {header} .*room for 64"):
        writer.put(bytes(payload), key(1), header=bytes(header))
    assert ring.depth == ring.capacity


def test_a_header_longer_than_its_length_field_is_refused(make_ring: MakeRing) -> None:
    ring = make_ring(capacity=1, slot_bytes=1 << 17)
    with ring.writer() as writer:
        with pytest.raises(TooLarge):
            writer.put(b"", key(1), header=bytes(1 << 16))


@pytest.mark.parametrize(
    "buffer",
    [
        b"12345678",
        bytearray(b"12345678"),
        memoryview(b"12345678"),
        memoryview(b"12345678").cast("I"),
    ],
    ids=["bytes", "bytearray", "memoryview", "wide"],
)
def test_any_contiguous_buffer_can_be_put(
    ring: Ring, writer: Writer, reader: Reader, buffer: bytes
) -> None:
    writer.put(buffer, key(1))
    assert reader.take()[0].payload == b"12345678"


def test_a_put_buffer_can_be_changed_and_resized_afterwards(writer: Writer, reader: Reader) -> None:
    buffer = bytearray(b"before")
    writer.put(memoryview(buffer).toreadonly(), key(1))
    writer.put(buffer, key(2))
    buffer[:] = b"a longer one"
    assert [(i.payload, i.damaged) for i in reader.take()] == [(b"before", False)] * 2


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((b"x",), TypeError, "misses argument 'key'"),
        ((b"x", bytes(15)), ValueError, "this one has 15"),
        ((b"x", bytes(17)), ValueError, "this one has 17"),
        ((b"x", "sixteen letters!"), TypeError, "bytes"),
        (("x", bytes(16)), TypeError, "bytes-like"),
        ((memoryview(b"abcd")[::2], bytes(16)), BufferError, "contiguous"),
        ((b"x", bytes(16), "header"), TypeError, "bytes"),
        ((b"x", bytes(16), b"", -1), OverflowError, "negative"),
        ((b"x", bytes(16), b"", 2**32), ValueError, "above 4294967295"),
        ((b"x", bytes(16), b"", 2**64), OverflowError, "too large"),
        ((b"x", bytes(16), b"", 1.0), TypeError, "int"),
        ((b"x", bytes(16), b"", 1, -1), OverflowError, "negative"),
        ((b"x", bytes(16), b"", 1, 2, 3), TypeError, "at most 5"),
    ],
)
def test_a_wrong_argument_is_refused_and_nothing_is_put(
    ring: Ring, writer: Writer, arguments: tuple[object, ...], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        writer.try_put(*arguments)  # type: ignore[arg-type]
    assert ring.tail == 0


def test_unknown_and_doubled_keywords_are_refused(writer: Writer) -> None:
    with pytest.raises(TypeError, match="'nonsense'"):
        writer.try_put(b"", key(1), nonsense=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="'key'"):
        writer.try_put(b"", key(1), **{"key": key(1)})  # type: ignore[arg-type]


@pytest.mark.parametrize("timeout", [0, 0.0, 0.02, -1.0, float("-inf")])
def test_a_put_that_runs_out_of_time_leaves_nothing(
    ring: Ring, writer: Writer, reader: Reader, timeout: float
) -> None:
    fill(writer, ring)
    with pytest.raises(Full, match="capacity"):
        writer.put(*message(99), timeout=timeout)
    assert (ring.find(key(99)), writer.parked, ring.depth) == (None, 0, ring.capacity)
    assert len(reader.take()) == ring.capacity
    assert writer.try_put(*message(5)) == ring.capacity


@pytest.mark.parametrize("room", [True, False])
def test_a_timeout_that_is_no_number_is_refused(ring: Ring, writer: Writer, room: bool) -> None:
    if not room:
        fill(writer, ring)
    depth = ring.depth
    with pytest.raises(ValueError, match="NaN"):
        writer.put(*message(1), timeout=float("nan"))
    assert (ring.depth, writer.parked) == (depth, 0)


@pytest.mark.parametrize("timeout", [None, 1e8, 1e300, float("inf")])
def test_an_endless_timeout_waits_behind_others_and_goes_in(
    ring: Ring, writer: Writer, reader: Reader, timeout: float | None
) -> None:
    fill(writer, ring)
    puts = [
        threading.Thread(target=writer.put, args=message(10 + n), kwargs={"timeout": timeout})
        for n in range(2)
    ]
    for parked, put in enumerate(puts, 1):
        put.start()
        wait_for(lambda parked=parked: writer.parked == parked, "parked")  # type: ignore[misc]
    reader.release(reader.take())
    for put in puts:
        put.join()
    assert [number(item) for item in reader.take()] == [10, 11]
    assert ring.rescues == 0


def test_a_thousand_timed_out_puts_leave_no_growing_state(ring: Ring, writer: Writer) -> None:
    fill(writer, ring)
    for n in range(1000):
        with pytest.raises(Full):
            writer.put(*message(n), timeout=0)
    assert (writer.parked, len(ring.line), ring.mapping.parked) == (0, 0, 0)
    assert ring.depth == ring.capacity


def test_put_many_puts_what_fits_now_in_order(ring: Ring, writer: Writer, reader: Reader) -> None:
    writer.put(*message(0))
    payloads, keys = zip(*(message(n) for n in range(1, 7)), strict=True)
    assert writer.put_many(payloads, keys) == 3
    assert writer.put_many(payloads[3:], keys[3:]) == 0
    assert [number(item) for item in reader.take()] == [0, 1, 2, 3]
    assert writer.put_many(iter(payloads[3:]), iter(keys[3:]), [b"a", b"b", b"c"]) == 3
    assert [item.header for item in reader.take()] == [b"a", b"b", b"c"]


@pytest.mark.parametrize(
    ("payloads", "keys", "headers"),
    [
        ([b"x"], [], None),
        ([], [key(1)], None),
        ([b"x"], [key(1)], []),
        ([b"x"], [key(1)], [b"", b""]),
        ([b"x", bytes(65)], [key(1), key(2)], None),
        ([b"x", b"y"], [key(1), b"short"], None),
    ],
)
def test_a_batch_with_a_fault_is_refused_whole(
    ring: Ring,
    writer: Writer,
    payloads: list[bytes],
    keys: list[bytes],
    headers: list[bytes] | None,
) -> None:
    with pytest.raises(ValueError, match=r"payloads|room|bytes"):
        writer.put_many(payloads, keys, headers)
    assert ring.tail == 0


def test_a_closed_ring_refuses_every_form_of_put(ring: Ring, writer: Writer) -> None:
    ring.close()
    with pytest.raises(Closed):
        writer.try_put(*message(1))
    with pytest.raises(Closed):
        writer.put(*message(1))
    for payloads, keys in (([], []), ([b"x"], [key(1)])):
        with pytest.raises(Closed):
            writer.put_many(payloads, keys)
    assert ring.tail == 0


def test_a_timeout_holds_though_others_are_always_faster(ring: Ring) -> None:
    class Unlucky(Writer):
        tries = 0

        def put_in_turn(self, *_: object, **__: object) -> None:
            self.tries += 1

        try_put = put_in_turn

    with Unlucky(ring, 0) as writer:
        with pytest.raises(Full):
            writer.put(*message(1), timeout=0.01)
        assert writer.tries > 1


def test_pending_puts_fail_at_close_and_are_not_enqueued(
    ring: Ring, writer: Writer, reader: Reader
) -> None:
    fill(writer, ring)
    failed: list[int] = []

    def pending(n: int) -> None:
        with pytest.raises(Closed):
            writer.put(*message(n))
        failed.append(n)

    threads = [threading.Thread(target=pending, args=(50 + n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    wait_for(lambda: writer.parked == 3, "three puts are parked")
    ring.close()
    for thread in threads:
        thread.join()
    assert sorted(failed) == [50, 51, 52]
    assert [number(item) for item in reader.take()] == [0, 1, 2, 3]
    with pytest.raises(Closed):
        reader.take()
    assert ring.rescues == 0


def test_a_closed_writer_puts_nothing_more(ring: Ring, writer: Writer) -> None:
    writer.close()
    writer.close()
    with pytest.raises(RingError, match="closed"):
        writer.put(*message(1))
    with pytest.raises(RingError, match="closed"):
        writer.put_many([b""], [key(1)])
    assert ring.tail == 0


def test_a_signal_handler_that_raises_ends_the_wait_and_nothing_was_put(
    ring: Ring, writer: Writer, reader: Reader
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def aim() -> None:
        wait_for(lambda: somebody_sleeps(ring, WRITERS_EVENT), "a sleeping writer")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    fill(writer, ring)
    previous = signal.signal(signal.SIGUSR1, interrupt)
    helper = threading.Thread(target=aim)
    try:
        helper.start()
        with pytest.raises(KeyboardInterrupt):
            writer.put(*message(77))
    finally:
        helper.join()
        signal.signal(signal.SIGUSR1, previous)
    assert (writer.parked, ring.mapping.parked, ring.find(key(77))) == (0, 0, None)
    reader.take()
    assert writer.try_put(*message(1)) is not None


@pytest.mark.parametrize("start", [0xFFFF_FFF8, 0xFFFF_FFF9, 0x7FFF_FFF8])
def test_waits_survive_the_wrap_of_the_event_words(make_ring: MakeRing, start: int) -> None:
    ring = make_ring(capacity=1)
    with raw(ring) as memory:
        for event in (WRITERS_EVENT, READERS_EVENT):
            memory[event : event + 4] = start.to_bytes(4, "little")
    with ring.writer() as writer, ring.reader(0) as reader:
        got: list[int] = []

        def take() -> None:
            while len(got) < 100:
                items = reader.take()
                got.extend(map(number, items))
                reader.release(items)

        taker = threading.Thread(target=take)
        taker.start()
        for n in range(100):
            if n < 20:  # makes sure of sleepers on this side
                wait_for(lambda: somebody_sleeps(ring, READERS_EVENT), "a sleeping reader")
            writer.put(*message(n))
        taker.join()
    assert got == list(range(100))
    with raw(ring) as memory:
        end = int.from_bytes(memory[READERS_EVENT : READERS_EVENT + 4], "little")
    assert (end - start) % 2**32 in range(8, 10_000)
    assert ring.rescues == 0


def test_an_item_of_another_ring_keeps_when_it_was_accepted(ring: Ring) -> None:
    with ring.writer() as writer:
        writer.put(b"a", key(1), accepted_ns=1)
        writer.try_put(b"b", key(2), accepted_ns=2**63)
        writer.put(b"c", key(3))
    accepted = [item.accepted_ns for item in ring.snapshot().waiting]
    assert accepted[:2] == [1, 2**63]
    assert abs(accepted[2] - time.time_ns()) < 60 * 10**9

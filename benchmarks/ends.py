"""Both ends of every channel that benchmarks/ring.py compares, each in its own process.

A channel is made in the parent, in a folder of its own, and handed to the two processes, which call
`open_sender` or `open_receiver` and then `send` or `receive`, 64 messages a call:

    send(payloads, keys)    all of them, waiting for room
    receive()               1 to 64 messages, waiting for the first

What `one by one` means is in the class: one call of the peer's API for each message. Peers get
bytes and give bytes.
"""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import subprocess
import sys
import sysconfig
import time
from operator import attrgetter
from pathlib import Path
from typing import Any

from benchmarks.messages import BATCH, Pool, Summed
from ringbuf import Ring

PATIENCE_S = 60.0
SLOT_HEAD_BYTES = 64
LINE_BYTES = 64
payload_of = attrgetter("payload")


class Shape:
    """How large: `capacity` messages of `payload_bytes`. slot_bytes 0: as the payload needs."""

    def __init__(self, capacity: int, payload_bytes: int, slot_bytes: int = 0) -> None:
        lines = -(-payload_bytes // LINE_BYTES)
        self.capacity = capacity
        self.payload_bytes = payload_bytes
        self.slot_bytes = slot_bytes or SLOT_HEAD_BYTES + lines * LINE_BYTES


class Channel:
    """What all have: `close` is called in the parent at the end."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        self.folder = folder
        self.shape = shape

    def open_sender(self) -> None:
        """In the sending process, before the clock starts."""

    def open_receiver(self) -> None:
        """In the receiving process, before the clock starts."""

    def send(self, payloads: list[bytes], keys: list[bytes]) -> None:
        raise NotImplementedError

    def receive(self) -> list[bytes]:
        raise NotImplementedError

    def send_all(self, pool: Pool, count: int) -> None:
        """`count` messages, a multiple of BATCH."""
        batches = pool.batches
        for number in range(count // BATCH):
            self.send(*batches[number % len(batches)])

    def receive_all(self, check: Any, count: int) -> None:
        """Until `check` has seen `count` of them."""
        while check.count < count:
            check(self.receive())

    def close(self) -> None:
        """Removes what it left outside the folder."""


class OursOne(Channel):
    """One put for each message, takes of up to 64."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        super().__init__(folder, shape)
        self.path = folder / "bench.ring"
        with Ring.create(self.path, shape.capacity, shape.slot_bytes, hand=2 * BATCH):
            pass

    def open_sender(self) -> None:
        self.ring = Ring.attach(self.path)
        self.writer = self.ring.writer()

    def open_receiver(self) -> None:
        self.ring = Ring.attach(self.path)
        self.reader = self.ring.reader(0)

    def send(self, payloads: list[bytes], keys: list[bytes]) -> None:
        try_put = self.writer.try_put
        for payload, key in zip(payloads, keys, strict=True):
            if try_put(payload, key) is None:
                self.writer.put(payload, key, timeout=PATIENCE_S)

    def receive(self) -> list[bytes]:
        items = self.reader.take(BATCH, PATIENCE_S)
        payloads = list(map(payload_of, items))
        self.reader.release(items)
        return payloads


class OursBatch(OursOne):
    """put_many of 64, takes of 64."""

    def send(self, payloads: list[bytes], keys: list[bytes]) -> None:
        done = self.writer.put_many(payloads, keys)
        while done < len(payloads):
            self.writer.put(payloads[done], keys[done], timeout=PATIENCE_S)
            done += 1 + self.writer.put_many(payloads[done + 1 :], keys[done + 1 :])


class FloorLists(Channel):
    """floor.c called from Python: lists of 64 bytes objects in, lists of up to 64 out."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        super().__init__(folder, shape)
        self.library = compile_floor(folder)
        floor = self._load()
        size = floor.floor_bytes(shape.capacity, shape.payload_bytes)
        self.path = folder / "floor"
        self.path.write_bytes(bytes(size))
        self._map()
        floor.floor_init(self.ring, shape.capacity, shape.payload_bytes)
        del self.ring, self.memory

    def open_sender(self) -> None:
        self._map()
        self.put_list = self._load().floor_put_list

    def open_receiver(self) -> None:
        self._map()
        self.take_list = self._load().floor_take_list

    def send(self, payloads: list[bytes], keys: list[bytes]) -> None:  # noqa: ARG002
        self.put_list(self.ring, payloads)

    def receive(self) -> list[bytes]:
        return self.take_list(self.ring, BATCH)  # type: ignore[no-any-return]

    def _map(self) -> None:
        with self.path.open("r+b") as file:
            self.memory = mmap.mmap(file.fileno(), 0)
        self.ring = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(self.memory)))

    def _load(self) -> Any:
        floor = ctypes.PyDLL(str(self.library))
        u64, pointer = ctypes.c_uint64, ctypes.c_void_p
        floor.floor_bytes.restype, floor.floor_bytes.argtypes = u64, [u64, u64]
        floor.floor_init.restype, floor.floor_init.argtypes = None, [pointer, u64, u64]
        floor.floor_put_list.restype = floor.floor_take_list.restype = ctypes.py_object
        floor.floor_put_list.argtypes = [pointer, ctypes.py_object]
        floor.floor_take_list.argtypes = [pointer, u64]
        floor.floor_send.restype = None
        floor.floor_send.argtypes = [pointer, ctypes.c_char_p, u64, u64, u64, u64]
        floor.floor_receive.restype = u64
        floor.floor_receive.argtypes = [pointer, ctypes.c_char_p, u64, u64]
        return floor


class FloorC(FloorLists):
    """floor.c in C alone, the cursors stored once for 64 messages: no Python while it runs."""

    def open_sender(self) -> None:
        super().open_sender()
        self.floor = self._load()

    def open_receiver(self) -> None:
        super().open_receiver()
        self.floor = self._load()
        self.into = ctypes.create_string_buffer(self.shape.payload_bytes)

    def send_all(self, pool: Pool, count: int) -> None:
        joined = b"".join(pool.payloads)
        self.floor.floor_send(
            self.ring, joined, len(pool.payloads), pool.payload_bytes, count, BATCH
        )

    def receive_all(self, check: Any, count: int) -> None:
        if not isinstance(check, Summed):
            super().receive_all(check, count)
            return
        check.sum += self.floor.floor_receive(self.ring, self.into, count, BATCH)
        check.count += count


class MpOne(Channel):
    """multiprocessing.Queue: put and get for each message."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        super().__init__(folder, shape)
        self.queue: Any = multiprocessing.get_context("spawn").Queue(shape.capacity)

    def send(self, payloads: list[bytes], keys: list[bytes]) -> None:  # noqa: ARG002
        put = self.queue.put
        for payload in payloads:
            put(payload)

    def receive(self) -> list[bytes]:
        get = self.queue.get
        return [get() for _ in range(BATCH)]

    def close(self) -> None:
        self.queue.close()


class MpBatch(MpOne):
    """Lists of 64 as one message, as many as hold `capacity` messages."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        super().__init__(folder, Shape(max(1, shape.capacity // BATCH), shape.payload_bytes))

    def send(self, payloads: list[bytes], keys: list[bytes]) -> None:  # noqa: ARG002
        self.queue.put(payloads)

    def receive(self) -> list[bytes]:
        return self.queue.get()  # type: ignore[no-any-return]


def as_it_is(message: Any) -> Any:
    """For peers that may take bytes without pickling them."""
    return message


class FifoOne(Channel):
    """faster-fifo: put and get for each message; bytes as they are, which is faster than pickling.
    Its size is in bytes: the default of 1 MB or what `capacity` needs."""

    EXTRA_BYTES = 64
    DEFAULT_BYTES = 1_000_000
    SERIALIZERS: dict[str, Any] = {"loads": bytes, "dumps": as_it_is}

    def __init__(self, folder: Path, shape: Shape) -> None:
        super().__init__(folder, shape)
        import faster_fifo  # noqa: PLC0415 - a peer, not always installed
        import faster_fifo_reduction  # type: ignore[import-untyped,import-not-found,unused-ignore]  # noqa: F401, PLC0415

        needed = shape.capacity * (shape.payload_bytes + self.EXTRA_BYTES)
        self.queue = faster_fifo.Queue(max(self.DEFAULT_BYTES, needed), loads=bytes, dumps=as_it_is)

    def send(self, payloads: list[bytes], keys: list[bytes]) -> None:  # noqa: ARG002
        put = self.queue.put
        for payload in payloads:
            put(payload, timeout=PATIENCE_S)

    def receive(self) -> list[bytes]:
        get = self.queue.get
        return [get(timeout=PATIENCE_S) for _ in range(BATCH)]

    def close(self) -> None:
        self.queue.close()


class FifoBatch(FifoOne):
    """put_many of 64, get_many of up to 64."""

    def send(self, payloads: list[bytes], keys: list[bytes]) -> None:  # noqa: ARG002
        self.queue.put_many(payloads, timeout=PATIENCE_S)

    def receive(self) -> list[bytes]:
        return self.queue.get_many(timeout=PATIENCE_S, max_messages_to_get=BATCH)  # type: ignore[no-any-return]


class FifoOnePickling(FifoOne):
    """As it comes: every message is pickled."""

    SERIALIZERS = {}


class FifoBatchPickling(FifoBatch):
    """As it comes: every message is pickled."""

    SERIALIZERS = {}


class ZmqOne(Channel):
    """pyzmq PUSH and PULL over ipc, one send and one recv for each message, copying: what its docs
    advise for small messages. `capacity` is the high-water mark of each end, so it may hold twice
    as many."""

    MULTIPART = 1

    def __init__(self, folder: Path, shape: Shape) -> None:
        super().__init__(folder, shape)
        self.url = f"ipc://{folder}/zmq"

    def open_sender(self) -> None:
        import zmq  # noqa: PLC0415 - a peer, not always installed

        self.socket: Any = zmq.Context().socket(zmq.PUSH)
        self.socket.sndhwm = max(1, self.shape.capacity // self.MULTIPART)
        self.socket.sndtimeo = int(PATIENCE_S * 1000)
        self.socket.connect(self.url)

    def open_receiver(self) -> None:
        import zmq  # noqa: PLC0415 - a peer, not always installed

        self.socket = zmq.Context().socket(zmq.PULL)
        self.socket.rcvhwm = max(1, self.shape.capacity // self.MULTIPART)
        self.socket.rcvtimeo = int(PATIENCE_S * 1000)
        self.socket.bind(self.url)

    def send(self, payloads: list[bytes], keys: list[bytes]) -> None:  # noqa: ARG002
        send = self.socket.send
        for payload in payloads:
            send(payload)

    def receive(self) -> list[bytes]:
        recv = self.socket.recv
        return [recv() for _ in range(BATCH)]


class ZmqBatch(ZmqOne):
    """64 messages as the frames of one multipart message: they arrive together or not at all."""

    MULTIPART = BATCH

    def send(self, payloads: list[bytes], keys: list[bytes]) -> None:  # noqa: ARG002
        self.socket.send_multipart(payloads)

    def receive(self) -> list[bytes]:
        return self.socket.recv_multipart()  # type: ignore[no-any-return]


class Iceoryx(Channel):
    """iceoryx2 publish-subscribe without overflow, the publisher waiting for room. Its receive does
    not wait: the receiver asks again and again, giving the core away in between."""

    def open_sender(self) -> None:
        iox, service = self._service()
        self.publisher = (
            service.publisher_builder()
            .initial_max_slice_len(self.shape.payload_bytes)
            .backpressure_strategy(iox.BackpressureStrategy.RetryUntilDelivered)
            .create()
        )

    def open_receiver(self) -> None:
        _, service = self._service()
        self.subscriber = service.subscriber_builder().create()

    def send(self, payloads: list[bytes], keys: list[bytes]) -> None:  # noqa: ARG002
        loan, move, size = self.publisher.loan_slice_uninit, ctypes.memmove, len(payloads[0])
        for payload in payloads:
            sample = loan(size)
            move(sample.payload_ptr, payload, size)
            sample.assume_init().send()

    def receive(self) -> list[bytes]:
        receive, copy, size = self.subscriber.receive, ctypes.string_at, self.shape.payload_bytes
        payloads: list[bytes] = []
        while len(payloads) < BATCH:
            sample = receive()
            if sample is None:
                time.sleep(0)
                continue
            payloads.append(copy(sample.payload_ptr, size))
            sample.delete()
        return payloads

    def _service(self) -> tuple[Any, Any]:
        import iceoryx2 as iox  # noqa: PLC0415 - a peer, not always installed

        iox.set_log_level(iox.LogLevel.Error)
        self.node = iox.NodeBuilder.new().create(iox.ServiceType.Ipc)
        name = iox.ServiceName.new(f"rasher-bench{str(self.folder).replace('/', '-')}")
        service = (
            self.node.service_builder(name)
            .publish_subscribe(iox.Slice[ctypes.c_uint8])
            .enable_safe_overflow(False)
            .subscriber_max_buffer_size(self.shape.capacity)
            .open_or_create()
        )
        return iox, service


def compile_floor(folder: Path) -> Path:
    """The shared library of floor.c, made with `cc -O2`. Raises CalledProcessError."""
    library = folder / "floor.so"
    source = Path(__file__).with_name("floor.c")
    include = sysconfig.get_path("include")
    command = ["cc", "-std=gnu11", "-O2", "-shared", "-fPIC", f"-I{include}"]
    subprocess.run([*command, str(source), "-o", str(library)], check=True, stdout=sys.stderr)
    return library

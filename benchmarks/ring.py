"""How many messages a second go from one process to another, and what CPU each costs?

Two processes for every side: one sends, one receives, messages of 256 bytes, room for 1,000 (the
default of pyzmq). Before the clock starts 2,048 messages are compared whole; while it runs both
ends are counted and summed, for every side alike. The clock runs from the start of sending to the
last message received; CPU is that of both processes, all their threads.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks import ends
from benchmarks.ends import Channel, Shape
from benchmarks.measure import (
    Figures,
    Options,
    Side,
    SideFailed,
    machine,
    missing_package,
    missing_program,
    parse_options,
)
from benchmarks.messages import BATCH, POOL, NotWhole, Pool, Summed, Whole
from benchmarks.report import Bench

CAPACITY = 1000
PAYLOAD_BYTES = 256
WHOLE_MESSAGES = 2 * POOL
TRIAL_MESSAGES = 100 * BATCH
TRIAL_S_MIN = 0.05
MESSAGES_MAX = 100_000_000
SENDING_S, QUICK_S = 3.0, 0.1
ANSWER_S_MAX = 120.0
SHM = Path("/dev/shm")

CAPACITIES = (1, 4, 16, 64, 100, 256, 1024, 4096, 16384, 65536)
PAYLOADS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
DEFAULT_SHAPE = Shape(100, PAYLOAD_BYTES, 16384)

Make = Callable[[Path], Channel]
ONE, BATCHES = "one by one", f"batches of {BATCH}"


class NoAnswer(SideFailed):
    """An end did not do its work in time, or died."""


def send(channel: Channel, pool: Pool, pipe: Connection) -> None:
    """The sending process: for each count that comes through the pipe, so many messages."""
    channel.open_sender()
    pipe.send("open")
    while count := pipe.recv():
        cpu_s, start_s = time.process_time(), time.monotonic()
        channel.send_all(pool, count)
        pipe.send((start_s, time.process_time() - cpu_s))


def receive(channel: Channel, pool: Pool, pipe: Connection) -> None:
    """The receiving process; the first count is compared whole. Sends when it was done, the CPU
    it took, and what was wrong."""
    channel.open_receiver()
    pipe.send("open")
    check: Whole | Summed = Whole(pool)
    while count := pipe.recv():
        wrong, cpu_s = "", time.process_time()
        pipe.send("ready")
        try:
            channel.receive_all(check, count)
        except NotWhole as error:
            wrong = str(error)
        end_s, cpu_s = time.monotonic(), time.process_time() - cpu_s
        pipe.send((end_s, cpu_s, wrong or check.wrong(count)))
        check = Summed(pool)


class Pair:
    """Both processes of one side. They are ended with it, whatever happens."""

    def __init__(self, channel: Channel) -> None:
        context = multiprocessing.get_context("spawn")
        pool = Pool(channel.shape.payload_bytes)
        self._processes = []
        self._pipes = []
        for work in (receive, send):
            mine, theirs = context.Pipe()
            process = context.Process(target=work, args=(channel, pool, theirs), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(mine)
            self._answer(mine)
        self._receiver, self._sender = self._pipes

    def send(self, count: int) -> tuple[float, float]:
        """Seconds and CPU seconds of so many messages. Raises NotWhole, NoAnswer."""
        self._receiver.send(count)
        self._answer(self._receiver)
        self._sender.send(count)
        start_s, sender_cpu_s = self._answer(self._sender)
        end_s, receiver_cpu_s, wrong = self._answer(self._receiver)
        if wrong:
            raise NotWhole(wrong)
        return end_s - start_s, sender_cpu_s + receiver_cpu_s

    def end(self) -> None:
        """Lets both go, and kills those that don't."""
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            if process.is_alive():
                pipe.send(0)
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            process.join(1)
            process.kill()
            process.join()
            process.close()
            pipe.close()

    @staticmethod
    def _answer(pipe: Connection) -> Any:
        if not pipe.poll(ANSWER_S_MAX):
            raise NoAnswer(f"an end did not answer within {ANSWER_S_MAX:g} s")
        try:
            return pipe.recv()
        except EOFError:
            raise NoAnswer("an end died") from None


def run_side(make: Make, seconds: float) -> Figures:
    """One round of one side, of about so many seconds."""
    with tempfile.TemporaryDirectory(prefix="rasher-bench-", dir=SHM) as folder:
        channel = make(Path(folder))
        try:
            return measure(channel, seconds)
        finally:
            channel.close()


def measure(channel: Channel, seconds: float) -> Figures:
    """Compares whole, finds out how many messages take that long, and sends them."""
    pair = Pair(channel)
    try:
        pair.send(WHOLE_MESSAGES)
        count, trial_s = TRIAL_MESSAGES, pair.send(TRIAL_MESSAGES)[0]
        while trial_s < min(TRIAL_S_MIN, seconds) and count < MESSAGES_MAX:
            count *= 4
            trial_s = pair.send(count)[0]
        count = min(MESSAGES_MAX, round(seconds * count / trial_s))
        count = max(BATCH, count // BATCH * BATCH)
        elapsed_s, cpu_s = pair.send(count)
    finally:
        pair.end()
    return {
        "messages_per_s": count / elapsed_s,
        "cpu_per_message_us": cpu_s / count * 1e6,
        "messages": count,
    }


def one_by_one(seconds: float) -> list[Side]:
    """A call for each message."""
    shape = Shape(CAPACITY, PAYLOAD_BYTES)
    return [
        side("ours", ends.OursOne, shape, seconds),
        side("ours, default slots and capacity", ends.OursOne, DEFAULT_SHAPE, seconds),
        side("pyzmq", ends.ZmqOne, shape, seconds, missing_package("zmq", "pyzmq")),
        side("iceoryx2", ends.Iceoryx, shape, seconds, missing_package("iceoryx2", "iceoryx2")),
        side("faster-fifo", ends.FifoOne, shape, seconds, missing_fifo()),
        side("faster-fifo, pickling", ends.FifoOnePickling, shape, seconds, missing_fifo()),
        side("multiprocessing.Queue", ends.MpOne, shape, seconds),
    ]


def in_batches(seconds: float) -> list[Side]:
    """64 messages a call, where a peer can; pyzmq and iceoryx2 are called for each message, as
    above: their only way for messages that stay single."""
    shape = Shape(CAPACITY, PAYLOAD_BYTES)
    cc = missing_program("cc", "gcc")
    return [
        side("floor.c in C alone", ends.FloorC, shape, seconds, cc),
        side("floor.c from Python", ends.FloorLists, shape, seconds, cc),
        side("ours", ends.OursBatch, shape, seconds),
        side("ours, default slots and capacity", ends.OursBatch, DEFAULT_SHAPE, seconds),
        side("pyzmq", ends.ZmqOne, shape, seconds, missing_package("zmq", "pyzmq")),
        side("pyzmq, 64 frames", ends.ZmqBatch, shape, seconds, missing_package("zmq", "pyzmq")),
        side("iceoryx2", ends.Iceoryx, shape, seconds, missing_package("iceoryx2", "iceoryx2")),
        side("faster-fifo", ends.FifoBatch, shape, seconds, missing_fifo()),
        side("faster-fifo, pickling", ends.FifoBatchPickling, shape, seconds, missing_fifo()),
        side("multiprocessing.Queue, lists", ends.MpBatch, shape, seconds),
    ]


def missing_fifo() -> str:
    return missing_package("faster_fifo", "faster-fifo")


def side(
    name: str,
    channel: Callable[[Path, Shape], Channel],
    shape: Shape,
    seconds: float,
    install: str = "",
) -> Side:
    """A side of that channel in that shape."""
    return Side(name, partial(run_side, lambda folder: channel(folder, shape), seconds), install)


def sweep(bench: Bench, name: str, x_label: str, shapes: dict[int, Shape], seconds: float) -> None:
    """Ours over several shapes, one by one and in batches."""
    series = {ONE: ends.OursOne, BATCHES: ends.OursBatch}
    if not bench.wants(name):
        return
    sides = [
        side(f"{label}, {x:,}", channel, shape, seconds)
        for label, channel in series.items()
        for x, shape in shapes.items()
    ]
    bench.run(name, sides)
    for figure in ("messages_per_s", "cpu_per_message_us"):
        bench.lines(
            f"{name}-{figure}",
            x_label,
            figure.replace("_", " "),
            {
                label: {float(x): bench.spread(name, figure, f"{label}, {x:,}") for x in shapes}
                for label in series
            },
        )


def run(options: Options) -> int:
    """All of it; the exit code of the benchmark."""
    bench = Bench(
        "ring", __doc__, options,
        machine(["pyzmq", "faster-fifo", "iceoryx2"], [["cc", "--version"]]),
    )  # fmt: skip
    seconds = QUICK_S if options.quick else SENDING_S
    rate = "messages_per_s"
    if bench.wants(ONE):
        bench.run(ONE, one_by_one(seconds))
        bench.compare(ONE, rate, "ours", "pyzmq", at_least=7)
        bench.compare(ONE, rate, "ours", "multiprocessing.Queue", at_least=50)
        bench.compare(ONE, rate, "ours", "faster-fifo")
        bench.compare(ONE, rate, "ours", "faster-fifo, pickling")
        bench.compare(ONE, rate, "ours", "iceoryx2")
        bench.bars(ONE, rate)
    if bench.wants(BATCHES):
        bench.run(BATCHES, in_batches(seconds))
        bench.compare(BATCHES, rate, "ours", "pyzmq", at_least=15)
        bench.compare(BATCHES, rate, "ours", "faster-fifo", at_least=60)
        bench.compare(BATCHES, rate, "ours", "floor.c in C alone", at_least=0.3)
        bench.compare(BATCHES, rate, "ours", "floor.c from Python")
        bench.compare(BATCHES, rate, "ours", "faster-fifo, pickling")
        bench.compare(BATCHES, rate, "ours", "pyzmq, 64 frames")
        bench.compare(BATCHES, rate, "ours", "iceoryx2")
        bench.bars(BATCHES, rate)
    capacities = CAPACITIES[::4] if options.quick else CAPACITIES
    payloads = PAYLOADS[::4] if options.quick else PAYLOADS
    shapes = {capacity: Shape(capacity, PAYLOAD_BYTES) for capacity in capacities}
    sweep(bench, "capacity", "capacity (messages)", shapes, seconds)
    shapes = {size: Shape(CAPACITY, size) for size in payloads}
    sweep(bench, "payload", "payload (bytes)", shapes, seconds)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(run(parse_options(__doc__)))

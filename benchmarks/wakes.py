"""One message to a process that sleeps: both ends of each way that benchmarks/idle.py compares.

`put` sends 8 bytes, `take` waits for them and says when it had them; what has to be done before the
next one, as the ring's release, comes after that.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.cores import load_core, server_core
from benchmarks.ends import PATIENCE_S, Channel, MpOne, OursOne, Shape, ZmqOne
from benchmarks.stock import NotDone

STAMP_BYTES = 8
SHAPE = Shape(100, STAMP_BYTES)
KEY = bytes(16)
WARM_UP = 20
# After a message its reader has so long to fall asleep again; not in step with any timer.
PAUSES_S = (0.003, 0.006)
ASLEEP_S_MAX, POLL_S = 10.0, 0.001
ANSWER_S_MAX = 120.0

Nanoseconds = npt.NDArray[np.int64]


class Way(Channel):
    """What is asked of each."""

    def put(self, stamp: bytes) -> None:
        raise NotImplementedError

    def take(self) -> tuple[int, bytes]:
        """The time of CLOCK_MONOTONIC at which it had the stamp, in nanoseconds, and the stamp."""
        raise NotImplementedError


class OursWay(OursOne, Way):
    """try_put, and take; the release is not counted."""

    def put(self, stamp: bytes) -> None:
        if self.writer.try_put(stamp, KEY) is None:
            raise NotDone("the ring is full")

    def take(self) -> tuple[int, bytes]:
        items = self.reader.take(1, PATIENCE_S)
        now_ns = time.monotonic_ns()
        self.reader.release(items)
        return now_ns, items[0].payload


class PipeWay(Way):
    """os.write and os.read of a pipe: what the kernel alone takes. It has a name in the folder, so
    that processes find it which did not inherit it."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        super().__init__(folder, shape)
        self.path = folder / "pipe"
        os.mkfifo(self.path)

    def open_sender(self) -> None:
        self.fd = os.open(self.path, os.O_RDWR)

    def open_receiver(self) -> None:
        self.fd = os.open(self.path, os.O_RDWR)

    def put(self, stamp: bytes) -> None:
        os.write(self.fd, stamp)

    def take(self) -> tuple[int, bytes]:
        stamp = os.read(self.fd, STAMP_BYTES)
        return time.monotonic_ns(), stamp


class MpWay(MpOne, Way):
    """multiprocessing.Queue, whose put hands over to a thread that writes."""

    def put(self, stamp: bytes) -> None:
        self.queue.put(stamp)

    def take(self) -> tuple[int, bytes]:
        stamp = self.queue.get()
        return time.monotonic_ns(), stamp


class ZmqWay(ZmqOne, Way):
    """pyzmq PUSH and PULL over ipc, with a thread of its own at each end."""

    def put(self, stamp: bytes) -> None:
        self.socket.send(stamp)

    def take(self) -> tuple[int, bytes]:
        stamp = self.socket.recv()
        return time.monotonic_ns(), stamp


def receive(way: Way, count: int, pipe: Connection) -> None:
    """The process that sleeps, on a core of its own. Sends how long each message took."""
    os.sched_setaffinity(0, {load_core()})
    way.open_receiver()
    pipe.send(os.getpid())
    taken = [way.take() for _ in range(count)]
    pipe.send([now_ns - int.from_bytes(stamp, "little") for now_ns, stamp in taken])
    pipe.recv()


def send(way: Way, count: int, receiver: int, pipe: Connection) -> None:
    """The process that wakes it, one message at a time."""
    os.sched_setaffinity(0, {server_core()})
    way.open_sender()
    chance = random.Random(1)
    for _ in range(count):
        time.sleep(chance.uniform(*PAUSES_S))
        wait_asleep(receiver)
        way.put(time.monotonic_ns().to_bytes(STAMP_BYTES, "little"))
    pipe.recv()


def wait_asleep(pid: int) -> None:
    """Until the first thread of that process sleeps. Raises NotDone."""
    deadline = time.monotonic() + ASLEEP_S_MAX
    while state_of(pid) != "S":
        if time.monotonic() > deadline:
            raise NotDone(f"process {pid} does not fall asleep")
        time.sleep(POLL_S)


def state_of(pid: int) -> str:
    """R: it runs; S: it sleeps."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wake(way: Way, count: int) -> Nanoseconds:
    """How long so many messages took, after a warm-up. Raises NotDone."""
    context = multiprocessing.get_context("spawn")
    processes, pipes = [], []
    try:
        receiver = 0
        for target in (receive, send):
            mine, theirs = context.Pipe()
            words = (way, WARM_UP + count, *([receiver] if receiver else []), theirs)
            process = context.Process(target=target, args=words, daemon=True)
            processes.append(process)
            pipes.append(mine)
            process.start()
            theirs.close()
            if not receiver:
                receiver = answer_of(mine)
        found = np.array(answer_of(pipes[0])[WARM_UP:], np.int64)
    finally:
        for process in processes:
            process.kill()
            process.join()
            process.close()
        for pipe in pipes:
            pipe.close()
    if len(found) != count:
        raise NotDone(f"{len(found)} messages of {count} came")
    return found


def answer_of(pipe: Connection) -> Any:
    """What the process says. Raises NotDone."""
    try:
        if pipe.poll(ANSWER_S_MAX):
            return pipe.recv()
    except EOFError:
        raise NotDone("a process died") from None
    raise NotDone(f"no answer within {ANSWER_S_MAX:g} s")

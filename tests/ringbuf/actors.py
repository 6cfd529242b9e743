"""The roles that tests run as processes of their own; started by nursery.py, killed by tests.

A log is written with one ``write`` per record, none across a page's end, where a SIGKILL could cut
it: whatever is killed leaves whole records.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import mmap
import os
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ringbuf import Closed, Item, Reader, Ring, RingError
from tests.ringbuf.kit import (
    CACHED_TAIL,
    HEAD,
    READERS_LOCK,
    READERS_OWNER,
    WRITERS_LOCK,
    cell_at,
    is_whole,
    key,
    message,
    number,
    slot_at,
)

RECORD = struct.Struct("<QQQ8x")  # number, sequence, attempts
WRITER_SPAN = 1 << 32  # numbers of one writer: its id * this + 0, 1, 2, ...


def records(log: Path) -> list[tuple[int, int, int]]:
    return list(RECORD.iter_unpack(log.read_bytes())) if log.exists() else []


def _log(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def write(path: str, writer_id: int, count: int | None, log: str) -> int:
    """Puts ``count`` numbered messages (None: until killed) and logs each put that returned."""
    acknowledged = _log(log)
    with Ring.attach(path) as ring, ring.writer() as writer:
        for n in itertools.count() if count is None else range(count):
            mine = writer_id * WRITER_SPAN + n
            sequence = writer.put(*message(mine))
            os.write(acknowledged, RECORD.pack(mine, sequence, 0))
    return count or 0


def read(path: str, index: int, max_items: int, log: str) -> int:
    """Takes until Closed; logs each item before it is released. Returns how many."""
    taken, fd = 0, _log(log)
    with Ring.attach(path) as ring, ring.reader(index) as reader:
        while True:
            try:
                items = reader.take(max_items)
            except Closed:
                return taken
            assert all(map(is_whole, items)), items
            for item in items:
                os.write(fd, RECORD.pack(number(item), item.sequence, item.attempts))
            reader.release(items)
            taken += len(items)


def take_and_hold(path: str, index: int, count: int, log: str) -> None:
    """Takes ``count`` items, logs them and waits to be killed with them in its hand."""
    fd, held = _log(log), 0
    with Ring.attach(path) as ring, ring.reader(index) as reader:
        while held < count:
            for item in reader.take(count - held):
                os.write(fd, RECORD.pack(number(item), item.sequence, item.attempts))
                held += 1
        signal.pause()


def echo(path: str, back: str, rounds: int) -> int:
    """The far side of a ping-pong: hands on from one ring to the other."""
    with Ring.attach(path) as here, Ring.attach(back) as there:
        with here.reader(0) as reader, there.writer() as writer:
            for _ in range(rounds):
                _hand_on(reader, writer.put)
        return here.rescues + there.rescues


def serve(path: str, there: str, rounds: int) -> int:
    """The near side: serves ``rounds`` balls, each after the one before came back."""
    with Ring.attach(path) as back, Ring.attach(there) as out:
        with back.reader(0) as reader, out.writer() as writer:
            for n in range(rounds):
                writer.put(b"ball", key(n))
                items = reader.take(1)
                assert number(items[0]) == n
                reader.release(items)
    return rounds


def _hand_on(reader: Reader, put: Callable[[bytes, bytes], int]) -> None:
    items = reader.take(1)
    put(items[0].payload, items[0].key)
    reader.release(items)


def release_after_commit(path: str, index: int, count: int) -> None:
    """Counts each item as committed before its release: tells others what may be gone."""
    with Ring.attach(path) as ring, ring.reader(index) as reader:
        while count:
            items = reader.take(2)
            for item in items:
                if item.sequence % 100 == 0:  # a while in the hand, so that lookers meet it there
                    ring.wait_commits(ring.commits, timeout=0.001)
                ring.bump_commits()
                reader.release([item])
            count -= len(items)


def lap(path: str, payload_bytes: int) -> None:
    """Until killed: one large message after the other through the ring, each of its own byte."""
    with Ring.attach(path) as ring, ring.writer() as writer, ring.reader(0) as reader:
        for n in itertools.count():
            writer.put(bytes([n % 256]) * payload_bytes, key(n % 2))
            reader.release(reader.take(1))


def bump(path: str, count: int) -> None:
    with Ring.attach(path) as ring:
        for _ in range(count):
            ring.bump_commits()


def hold_on(path: str, index: int) -> int:
    """Takes one item, stops by SIGSTOP with it in the hand, goes on when told, releases it."""
    with Ring.attach(path) as ring, ring.reader(index) as reader:
        items = reader.take(1)
        os.kill(os.getpid(), signal.SIGSTOP)
        reader.release(items)
        return number(items[0])


def refusals_of_a_forked_child(path: str) -> list[str]:
    """Forks with everything open; returns what the child was told, call by call."""
    with Ring.attach(path) as ring, ring.writer() as writer, ring.reader(0) as reader:
        items = reader.take(1)
        receive, send = os.pipe()
        child = os.fork()
        if child == 0:
            calls: list[Callable[[], object]] = [
                lambda: writer.try_put(*message(1)),
                lambda: writer.put(*message(1), timeout=0),
                lambda: writer.put_many([b""], [key(1)]),
                lambda: writer.put_async(*message(1)).send(None),
                lambda: reader.take(timeout=0),
                lambda: reader.release(items),
                reader.held,
                ring.snapshot,
                ring.close,
                lambda: ring.depth,
                lambda: ring.find(key(1)),
                lambda: ring.reader(1),
                ring.writer,
            ]
            told = [_refusal(call) for call in calls]
            reader.close()
            writer.close()
            ring.detach()
            os.write(send, json.dumps(told).encode())
            os._exit(0)
        os.close(send)
        told = json.loads(os.read(receive, 65536))
        os.close(receive)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        here = {each.pid for each in ring.participants()} == {os.getpid()}
        reader.release(items)  # the child's close has taken nothing away
        writer.put(*message(2))
        return [*told, f"still recorded: {here}"]


def _refusal(call: Callable[[], object]) -> str:
    try:
        return f"returned {call()!r}"
    except RingError as error:
        return str(error)


def join_anew_after_fork(path: str) -> bool:
    """A forked child that attaches anew is a participant of its own."""
    with Ring.attach(path) as ring, ring.reader(0):
        receive, send = os.pipe()
        if os.fork() == 0:
            with Ring.attach(path) as own, own.writer() as writer:
                writer.put(*message(3))
                refused = _refusal(lambda: own.reader(0))
                pids = {each.pid for each in own.participants()}
            os.write(send, b"y" if "is process" in refused and len(pids) == 2 else b"n")
            os._exit(0)
        answer = os.read(receive, 1)
        os.close(receive)
        os.close(send)
        return answer == b"y"


def churn(path: str, batch: int, payload_bytes: int, log: str) -> None:
    """Until killed: fills and empties the ring in batches so large that it mostly holds a lock.

    It takes with the batch before still in its hand, and logs up to where it releases.
    """
    payloads, keys = [bytes(payload_bytes)] * batch, [key(n) for n in range(batch)]
    fd, held = _log(log), list[Item]()
    with Ring.attach(path) as ring, ring.writer() as writer, ring.reader(0) as reader:
        while True:
            writer.put_many(payloads, keys)
            items = reader.take(batch)
            if held:
                os.write(fd, RECORD.pack(0, held[-1].sequence + 1, 0))
                reader.release(held)
            held = items


def die_in_take(path: str, index: int, copied: int, moved: bool) -> None:
    """Takes the readers' lock, does what a take does up to a point, and is killed there."""
    ring = Ring.attach(path)
    reader = ring.reader(index)
    memory = mmap.mmap(ring.fd, 0)
    _lock(memory, READERS_LOCK)
    struct.pack_into("<Q", memory, CACHED_TAIL, ring.tail)
    struct.pack_into("<I", memory, READERS_OWNER, reader.index + 1)
    head = ring.head
    for i in range(copied):
        cell, slot = cell_at(ring, index, i), slot_at(ring, head + i)
        memory[cell + 64 : cell + 64 + ring.slot_bytes] = memory[slot : slot + ring.slot_bytes]
        struct.pack_into("<Q", memory, cell, head + i + 1)
    if moved:
        struct.pack_into("<Q", memory, HEAD, head + copied)
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_put(path: str) -> None:
    """Is killed holding the writers' lock."""
    memory = mmap.mmap(Ring.attach(path).fd, 0)
    _lock(memory, WRITERS_LOCK)
    os.kill(os.getpid(), signal.SIGKILL)


def _lock(memory: mmap.mmap, at: int) -> None:
    """The kernel's own mutex, taken as the kernel takes it: the next holder learns of our death."""
    libc, lock = ctypes.CDLL(None), ctypes.c_char.from_buffer(memory, at)
    assert libc.pthread_mutex_lock(ctypes.byref(lock)) == 0


ROLES: dict[str, Callable[..., Any]] = {
    role.__name__: role
    for role in (
        write,
        read,
        take_and_hold,
        echo,
        serve,
        release_after_commit,
        lap,
        bump,
        hold_on,
        refusals_of_a_forked_child,
        join_anew_after_fork,
        churn,
        die_in_take,
        die_in_put,
    )
}


def play(role: str, outcome: str, *args: Any) -> None:
    try:
        answer = {"result": ROLES[role](*args)}
    except BaseException:
        answer = {"error": traceback.format_exc()}
    whole = Path(f"{outcome}.whole")
    whole.write_text(json.dumps(answer))
    whole.rename(outcome)


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # reaps: nobody here waits for actors
    while line := sys.stdin.buffer.readline():
        role, outcome, *args = json.loads(line)
        hold, go = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(go)
            os.read(hold, 1)
            os.close(hold)
            play(role, outcome, *args)
            os._exit(0)
        os.close(hold)
        os.write(1, b"%d\n" % pid)
        sys.stdin.buffer.readline()
        os.close(go)


if __name__ == "__main__":
    main()

"""A scribbled file is refused, or its items are marked damaged; nobody crashes and nobody hangs."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from ringbuf import Misfit, Ring, RingError
from tests.ringbuf.conftest import MakeRing
from tests.ringbuf.corruption import HEADER_BYTES, crc32c
from tests.ringbuf.kit import (
    HEAD,
    PATIENCE_S,
    READERS_LOCK,
    TAIL,
    WRITERS_EVENT,
    WRITERS_LOCK,
    key,
    message,
    raw,
    somebody_sleeps,
    wait_for,
)
from tests.ringbuf.nursery import ROOT

LOCK_KIND = 16  # glibc's __kind within the mutex
LABEL = 76  # within the header
SCRIBBLED = [  # head, tail: of a ring of 4
    (0, 5),
    (6, 5),
    (0, 1 << 63),
    ((1 << 64) - 2, 1),
    ((1 << 64) - 5, (1 << 64) - 1),
]


def run_cases(folder: Path, first: int, count: int) -> Counter[str]:
    """In a process of its own -> what happened how often; fails naming the seed that ended it."""
    ran = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", "tests.ringbuf.corruption",
         str(folder), str(first), str(count)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    seed = (folder / "seed").read_text().strip()
    assert ran.returncode == 0, f"seed {seed}: exit {ran.returncode}\n{ran.stderr}"
    return Counter(json.loads(ran.stdout))


def test_a_thousand_scribbled_files_crash_nobody_and_keep_nobody_waiting(ring_dir: Path) -> None:
    counts = run_cases(ring_dir, 0, 1000)
    assert counts["refused"] + counts["used"] == 1000
    assert min(counts[name] for name in ("refused", "used", "damaged", "whole", "RingError")) > 0


@pytest.mark.prove
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_scribbled_files_crash_nobody(ring_dir: Path) -> None:
    counts: Counter[str] = Counter()
    for chunk in range(20):
        counts += run_cases(ring_dir, 1000 + 5000 * chunk, 5000)
    assert counts["refused"] + counts["used"] == 100_000
    print("\nscribbled files: " + ", ".join(f"{n:,} {name}" for name, n in counts.most_common()))


@pytest.mark.parametrize("kind", [0x30, 0x40, 0x100, 0x91])
@pytest.mark.parametrize("lock", [WRITERS_LOCK, READERS_LOCK], ids=["writers", "readers"])
def test_a_damaged_lock_is_refused_before_libc_dies_of_it(ring: Ring, lock: int, kind: int) -> None:
    with ring.writer() as writer, ring.reader(0) as reader:
        writer.put(*message(0))
        with raw(ring) as memory:
            memory[lock + LOCK_KIND : lock + LOCK_KIND + 4] = kind.to_bytes(4, "little")
        with pytest.raises(Misfit, match="the locks are damaged"):
            Ring.attach(ring.fd)
        writers: list[Callable[[], object]] = [
            lambda: writer.put(*message(1), timeout=PATIENCE_S),
            ring.close,
        ]
        readers: list[Callable[[], object]] = [
            lambda: reader.take(timeout=PATIENCE_S),
            lambda: ring.reader(1),
        ]
        for call in writers if lock == WRITERS_LOCK else readers:
            with pytest.raises(RingError, match="beyond repair"):
                call()
        for call in readers if lock == WRITERS_LOCK else writers:
            call()  # the other side goes on


def scribble_cursors(ring: Ring, head: int, tail: int) -> None:
    with raw(ring) as memory:
        memory[HEAD : HEAD + 8] = struct.pack("<Q", head)
        memory[TAIL : TAIL + 8] = struct.pack("<Q", tail)


@pytest.mark.parametrize(("head", "tail"), SCRIBBLED)
def test_damaged_cursors_are_said_and_never_followed(ring: Ring, head: int, tail: int) -> None:
    def fill() -> None:
        for _ in range(ring.capacity + 1):  # while there seems to be room a writer need not look
            writer.put(*message(1), timeout=PATIENCE_S)

    with ring.writer() as writer, ring.reader(0) as reader:
        writer.put(*message(0))
        scribble_cursors(ring, head, tail)
        with pytest.raises(Misfit, match="cursors"):
            Ring.attach(ring.fd)
        for _ in range(3):
            with pytest.raises(RingError, match="memory is damaged"):
                reader.take(timeout=PATIENCE_S)
            with pytest.raises(RingError, match="memory is damaged"):
                fill()
            assert ring.find(key(1000)) is None
            assert len(ring.snapshot().waiting) <= ring.capacity
            assert ring.depth <= ring.capacity


def test_a_put_that_waits_for_room_learns_that_the_cursors_are_damaged(ring: Ring) -> None:
    told: list[str] = []

    def put() -> None:
        try:
            writer.put(*message(9), timeout=PATIENCE_S)
        except RingError as error:
            told.append(str(error))

    with ring.writer() as writer:
        for n in range(ring.capacity):
            writer.put(*message(n))
        pending = threading.Thread(target=put)
        pending.start()
        wait_for(lambda: somebody_sleeps(ring, WRITERS_EVENT), "asleep")
        scribble_cursors(ring, 0, 1 << 40)
        pending.join()
    assert len(told) == 1
    assert "memory is damaged" in told[0]


def test_a_label_that_is_no_text_is_refused(make_ring: MakeRing) -> None:
    ring = make_ring(label="a label")
    with raw(ring) as memory:
        memory[LABEL] = 0xFF
        crc = crc32c(memory[:HEADER_BYTES])
        memory[HEADER_BYTES : HEADER_BYTES + 4] = struct.pack("<I", crc)
    with pytest.raises(Misfit, match="a label that is no text"):
        Ring.attach(ring.fd)

"""Rings whose file somebody scribbled on, used by a process of its own: it may be refused, and it
may get items that are marked damaged, but it must neither crash nor hang nor get anything else.

Each case follows from its seed. Run as ``python -m tests.ringbuf.corruption DIR FIRST COUNT``; the
seed of the case at work stands in DIR/seed, for whoever finds this process dead.
"""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import ringbuf.reader
import ringbuf.ring
from ringbuf import Closed, Empty, HandFull, Item, Misfit, Reader, Ring, RingError, Writer
from tests.ringbuf.kit import SHARED, SIDE, key, message

CASE_S = 20  # far more than a case takes on a busy machine
SHORT_S = 0.001
CAPACITY, SLOT_BYTES, READERS, HAND, WRITERS = 5, 192, 2, 4, 3
MESSAGES = CAPACITY + READERS * HAND + 20  # put when the file was made; later ones count on
HEADER_BYTES = struct.calcsize("<QIIQQIIIIQ16sI1024s")  # its checksum follows
SPECIAL = (0, 1, 2, CAPACITY, 0x7FFF_FFFF, 0xFFFF_FFFF, 1 << 62, 1 << 63, (1 << 64) - 1)
OPERATIONS = 10
CRC_TABLE = [0] * 256
for _byte in range(256):
    _crc = _byte
    for _ in range(8):
        _crc = _crc >> 1 ^ (0x82F63B78 if _crc & 1 else 0)
    CRC_TABLE[_byte] = _crc


def crc32c(data: bytes) -> int:
    crc = 0xFFFF_FFFF
    for byte in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc


class File:
    """A ring's file in the states that cases begin with."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "scribbled.ring"
        sizes = {"readers": READERS, "hand": HAND, "writers": WRITERS}
        ring = Ring.create(self.path, CAPACITY, SLOT_BYTES, label="corruption", **sizes)
        self.fd = os.open(self.path, os.O_RDWR)
        self.bytes = ring.mapping.file_bytes
        self.slots_at, self.hands_at = ring.mapping.slots_at, ring.mapping.hands_at
        self.images = [self._image()]
        with ring.writer() as writer, ring.reader(0) as first, ring.reader(1) as second:
            for n in range(20):
                writer.put(*message(n))
                first.release(first.take(1))
            for n in range(20, 20 + CAPACITY):
                writer.put(*message(n))
            self.images.append(self._image())
            first.take(2)
            second.take(1)
            self.images.append(self._image())  # their owner is this process, alive
        self.images.append(self._image())
        with ring.writer() as writer:
            while writer.try_put(*message(ring.tail)) is not None:
                pass
        ring.close()
        self.images.append(self._image())
        assert ring.tail <= MESSAGES
        ring.detach()

    def _image(self) -> bytes:
        return os.pread(self.fd, self.bytes, 0)

    def place(self, chance: random.Random) -> int:
        """Where to scribble: mostly where something lies that somebody acts on."""
        kinds: tuple[Callable[[], int], ...] = (
            lambda: chance.randrange(HEADER_BYTES + 4),
            lambda: chance.randrange(76),  # the header but for its label
            lambda: SHARED + chance.randrange(2 * SIDE + 256),
            lambda: SHARED + chance.choice((0, SIDE)) + chance.randrange(40),  # a lock
            lambda: SHARED + chance.choice((0, SIDE)) + 40 + chance.randrange(40),
            lambda: SHARED + chance.choice((0, SIDE)) + 128 + chance.randrange(8),  # a cursor
            lambda: 2 * SHARED + chance.randrange(64 * (READERS + WRITERS)),
            lambda: self.slots_at + chance.randrange(CAPACITY * SLOT_BYTES),
            lambda: self.slots_at + chance.randrange(CAPACITY) * SLOT_BYTES + chance.randrange(64),
            lambda: self.hands_at + chance.randrange(READERS * HAND * (SLOT_BYTES + 64)),
            lambda: chance.randrange(self.bytes),
        )
        return chance.choice(kinds)()

    def scribble(self, chance: random.Random) -> None:
        for _ in range(chance.choice((1, 1, 2, 4, 16))):
            at = self.place(chance)
            old = os.pread(self.fd, 8, at)
            width = chance.choice([size for size in (1, 2, 4, 8) if size <= len(old)])
            value = int.from_bytes(old[:width], "little")
            value = chance.choice(
                (value ^ 1 << chance.randrange(8 * width), chance.getrandbits(64), value + 1,
                 value - 1, chance.choice(SPECIAL), chance.randrange(2 * CAPACITY))
            )  # fmt: skip
            new = (value % (1 << 8 * width)).to_bytes(width, "little")
            os.pwrite(self.fd, new, at // width * width if chance.random() < 0.5 else at)
        os.ftruncate(self.fd, self.bytes)  # a word at the end may have made it longer

    def seal(self) -> None:
        """As if the header had been meant so."""
        crc = crc32c(os.pread(self.fd, HEADER_BYTES, 0))
        os.pwrite(self.fd, struct.pack("<I", crc), HEADER_BYTES)


class Case:
    def __init__(self, file: File, seed: int, counts: Counter[str]) -> None:
        self.file, self.counts = file, counts
        self.chance = random.Random(seed)
        self.writers: list[Writer] = []
        self.readers: list[Reader] = []
        self.delivered = 0
        self.put = MESSAGES

    def run(self) -> None:
        chance, file = self.chance, self.file
        os.pwrite(file.fd, chance.choice(file.images), 0)
        early = chance.random() < 0.5
        if early:
            file.scribble(chance)
            if chance.random() < 0.5:
                file.seal()
            if chance.random() < 0.05:
                os.ftruncate(file.fd, chance.randrange(2 * file.bytes))
        try:
            self.ring = Ring.attach(file.fd)
        except Misfit:
            self.counts["refused"] += 1
            os.ftruncate(file.fd, file.bytes)
            return
        with self.ring:
            self._use(None if early else chance.randrange(OPERATIONS))
            self._drain()
        self.counts["used"] += 1

    def _use(self, scribble_at: int | None) -> None:
        operations = [
            self._look, self._find, self._snapshot, self._join_writer, self._join_reader,
            self._join_reader, self._try_put, self._put, self._put_many, self._take, self._take,
            self._release, self._leave, self._close, self._commits,
        ]  # fmt: skip
        for step in range(OPERATIONS):
            if step == scribble_at:
                self.file.scribble(self.chance)
            try:
                self.chance.choice(operations)()
            except RingError as refused:
                self.counts[type(refused).__name__] += 1

    def _look(self) -> None:
        ring = self.ring
        assert 0 <= ring.depth <= ring.capacity
        assert ring.head >= 0 <= ring.tail
        assert [0 <= ring.held_count(index) <= ring.hand for index in range(ring.readers)]
        assert ring.closed in (True, False)
        assert ring.drained in (True, False)
        assert len(ring.participants()) <= ring.readers + ring.writers
        assert all(each.alive() in (True, False) for each in ring.participants())

    def _find(self) -> None:
        found = self.ring.find(key(self.chance.randrange(self.put + 2)))
        if found is not None:
            self._judge(found.item)

    def _snapshot(self) -> None:
        seen = self.ring.snapshot()
        assert len(seen.waiting) <= self.ring.capacity
        assert len(seen.held) <= self.ring.readers * self.ring.hand
        for item in seen.waiting + [item for _, item in seen.held]:
            self._judge(item)

    def _join_writer(self) -> None:
        self.writers.append(self.ring.writer())

    def _join_reader(self) -> None:
        self.readers.append(self.ring.reader(self.chance.randrange(READERS)))

    def _leave(self) -> None:
        for writer in self.writers:
            writer.close()
        for reader in self.readers:
            reader.close()
        self.writers.clear()
        self.readers.clear()

    def _new(self) -> tuple[bytes, bytes]:
        self.put += 1
        return message(self.put - 1)

    def _try_put(self) -> None:
        for writer in self.writers:
            writer.try_put(*self._new())

    def _put(self) -> None:
        for writer in self.writers:
            writer.put(*self._new(), timeout=SHORT_S)

    def _put_many(self) -> None:
        for writer in self.writers:
            payloads, keys = zip(*(self._new() for _ in range(3)), strict=True)
            assert 0 <= writer.put_many(payloads, keys) <= 3

    def _take(self) -> None:
        for reader in self.readers:
            items = reader.take(self.chance.randrange(1, 2 * HAND), timeout=SHORT_S)
            assert 0 < len(items) <= HAND, len(items)
            for item in items:
                self._judge(item)

    def _release(self) -> None:
        for reader in self.readers:
            reader.release(reader.held())

    def _close(self) -> None:
        if self.chance.random() < 0.5:
            self.ring.close()
        else:
            self.ring.reopen()

    def _commits(self) -> None:
        self.ring.bump_commits()
        self.ring.wait_commits(self.ring.commits, timeout=SHORT_S)

    def _drain(self) -> None:
        """No reader goes on for ever: there is no more than fits."""
        left = CAPACITY + READERS * HAND
        try:
            self._leave()
            for index in range(READERS):
                with self.ring.reader(index) as reader:
                    while left >= 0:
                        items = reader.take(timeout=0)
                        for item in items:
                            self._judge(item)
                        left -= len(items)
                        reader.release(items)
        except (Empty, Closed, HandFull):
            self.counts["drained"] += 1
        except RingError as refused:
            self.counts[type(refused).__name__] += 1
        assert left >= 0, "a ring that never ends"

    def _judge(self, item: Item) -> None:
        self.counts["damaged" if item.damaged else "whole"] += 1
        assert len(item.payload) + len(item.header) <= self.ring.room
        if not item.damaged:
            assert item.sequence >= 0
            n = struct.unpack("<QQ", item.key)[1]
            assert n < self.put
            assert message(n) == (item.payload, item.key)


def main() -> None:
    folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    # What never comes is waited for this long: a lock whose holder was scribbled in.
    ringbuf.reader.ADOPT_PATIENCE_S = ringbuf.ring.CLOSE_PATIENCE_S = SHORT_S
    counts: Counter[str] = Counter()
    file = File(folder)
    with (folder / "seed").open("w", encoding="ascii") as note:
        for seed in range(first, first + count):
            os.pwrite(note.fileno(), b"%20d" % seed, 0)
            signal.alarm(CASE_S)  # its default ends the process, wherever that hangs
            Case(file, seed, counts).run()
    signal.alarm(0)
    os.close(file.fd)
    file.path.unlink()
    print(json.dumps(counts))


if __name__ == "__main__":
    main()

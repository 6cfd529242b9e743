"""What a kill left behind, and how long it took until the work went on; read from the ring."""

from __future__ import annotations

import mmap
import struct
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from ringbuf import Ring
from tests.program import PATIENCE_S, Rasher

LOOK_EVERY_S = 0.002
SLOT_AT = 64  # in a cell: the copy of the slot, whose stamp outlives the release
KEYS_MAX = 500


class Hands:
    """Which sequence each hand took last, whether or not it still holds it."""

    def __init__(self, ring: Ring) -> None:
        self._memory = mmap.mmap(ring.fd, ring.mapping.file_bytes, prot=mmap.PROT_READ)
        self._at, self._cell_bytes = ring.mapping.hands_at, ring.mapping.cell_bytes
        self._hand = ring.hand

    def last(self, index: int) -> int:
        """-1: none ever."""
        first = self._at + index * self._hand * self._cell_bytes + SLOT_AT
        cells = range(first, first + self._hand * self._cell_bytes, self._cell_bytes)
        return max(int(struct.unpack_from("<Q", self._memory, at)[0]) for at in cells) - 1

    def close(self) -> None:
        self._memory.close()


@dataclass(frozen=True)
class Kill:
    """Of the worker with that index. head: when it was dead; all later is its replacement's."""

    index: int
    moment_s: float
    head: int

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.moment_s


class Recoveries(AbstractContextManager["Recoveries"]):
    """Watches for the first order that the replacement of each killed worker takes."""

    def __init__(self, ring: Ring) -> None:
        self._hands = Hands(ring)
        self._changed = threading.Condition()
        self._pending: dict[int, Kill] = {}
        self._over = False
        self.seconds: list[float] = []
        self.cut_short: list[float] = []  # their age when another kill came between
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._thread.join()
        self._hands.close()

    def begin(self, kill: Kill) -> None:
        with self._changed:
            self._cut(kill.index)
            self._pending[kill.index] = kill
            self._changed.notify_all()

    def cut_all(self) -> None:
        """Something bigger is about to be killed."""
        with self._changed:
            for index in list(self._pending):
                self._cut(index)

    def wait(self) -> None:
        """Until every replacement took something."""
        with self._changed:
            self._changed.wait_for(lambda: not self._pending, PATIENCE_S)
            assert not self._pending, f"killed and never replaced: {self._pending}"

    def _cut(self, index: int) -> None:
        kill = self._pending.pop(index, None)
        if kill is not None:
            self.cut_short.append(kill.age_s)

    def _watch(self) -> None:
        with self._changed:
            while not self._over:
                for index, kill in list(self._pending.items()):
                    if self._hands.last(index) >= kill.head:
                        self.seconds.append(kill.age_s)
                        del self._pending[index]
                        self._changed.notify_all()
                self._changed.wait(LOOK_EVERY_S if self._pending else None)


@dataclass
class Findings:
    """What lay in the hands of the dead, looked at before anybody could take it over.

    filled: taken, not committed; committed: only not released yet. in_doubt: copied by a take that
    was cut off. Keys of filled ones are kept: they are what is delivered again.
    """

    filled: set[bytes] = field(default_factory=set)
    filled_hands: int = 0
    committed: int = 0
    in_doubt: int = 0

    def look(self, run: Rasher, ring: Ring, indexes: set[int]) -> None:
        """The owners of these hands are dead, and nobody has come after them yet."""
        head = ring.head  # read first: what is below it now was published before the death
        held = [item for index, item in ring.snapshot().held if index in indexes]
        keys = {item.key for item in held if item.sequence < head}
        there = committed(run, keys)
        self.filled |= keys - there
        self.filled_hands += bool(keys - there)
        self.committed += len(there)
        self.in_doubt += sum(item.sequence >= head for item in held)


def committed(run: Rasher, keys: set[bytes]) -> set[bytes]:
    """Which of these orders are in the database."""
    there: set[bytes] = set()
    some = sorted(keys)
    while some:
        texts = ",".join(f"x'{key.hex()}'" for key in some[:KEYS_MAX])
        there.update(run.column(f"SELECT id FROM orders WHERE id IN ({texts})"))
        some = some[KEYS_MAX:]
    return there

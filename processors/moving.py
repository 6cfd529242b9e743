"""Emptying rings that other settings made into the ring of now, before anybody orders again.

In order: the hands by sequence, for what they hold was taken first, then the slots, oldest first.
An item leaves the old ring only after it is in the new one, so that killed in between it is in
both; it is recognised by its identity, and if a worker was faster, by its id in the database. A
ring's path stays in ring.path until it is empty and its file removed.

The supervisor does this itself, a little at a time, as a writer among others: when the new ring is
full it waits for the workers, who are started first.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack

from processors.datadir import DAMAGED_HEADER, count_orders, remove_ring
from processors.settings import Settings
from ringbuf import Closed, Full, Item, Reader, Ring

TAKE_MAX = 64
Identity = tuple[bytes, int]

log = logging.getLogger(__name__)


def identity(item: Item) -> Identity:
    return item.key, item.round


class Mover:
    """Moves `older` rings' orders into `ring`, in that order; the rings and their files are its."""

    def __init__(self, settings: Settings, ring: Ring, older: Sequence[Ring]) -> None:
        self._settings = settings
        self._ring = ring
        self._older = list(older)
        self._writer = ring.writer() if older else None
        # What a move that was cut off had brought here already. Nobody works yet.
        self._there = {identity(item) for item in everything(ring)} if older else set()
        self._taken: Generator[tuple[Reader, Item]] | None = None
        self._next: tuple[Reader, Item] | None = None

    @property
    def done(self) -> bool:
        return not self._older

    @property
    def rings(self) -> list[Ring]:
        """Those that are not empty yet."""
        return list(self._older)

    def left(self) -> int:
        """Orders that are still to be moved."""
        return sum(count_orders(ring) for ring in self._older)

    def step(self, patience_s: float) -> None:
        """Moves what it can in that time."""
        deadline = time.monotonic() + patience_s
        while not self.done and self._advance():
            assert self._next is not None
            reader, item = self._next
            if not self._put(item, deadline - time.monotonic()):
                return
            reader.release([item])
            self._next = None
            if time.monotonic() >= deadline:
                return

    def _advance(self) -> bool:
        """Whether there is a next item. A ring that has no more is removed."""
        while self._next is None and self._older:
            if self._taken is None:
                old = self._older[0]
                log.info(
                    "moving %d orders of other settings out of %s", count_orders(old), old.path
                )
                self._taken = in_order(old)
            self._next = next(self._taken, None)
            if self._next is None:
                self._remove_emptied()
        return self._next is not None

    def _remove_emptied(self) -> None:
        old, self._taken = self._older.pop(0), None
        assert not count_orders(old)
        remove_ring(self._settings, old)
        log.info("moved all orders out of %s", old.path)
        old.detach()
        if self.done and self._writer is not None:
            self._writer.close()

    def _put(self, item: Item, patience_s: float) -> bool:
        if identity(item) in self._there:
            return True
        assert self._writer is not None
        header, payload = item.header, item.payload
        if item.damaged:
            header, payload = DAMAGED_HEADER, payload[: self._ring.room - len(DAMAGED_HEADER)]
        try:
            self._writer.put(
                payload,
                item.key,
                header,
                item.round,
                timeout=max(0.0, patience_s),
                accepted_ns=item.accepted_ns,
            )
        except (Full, Closed):  # closed: the ring's file is lost, so what is left stays where it is
            return False
        self._there.add(identity(item))
        return True

    def close(self) -> None:
        """What was not moved stays in the old rings, for the next start."""
        if self._taken is not None:
            self._taken.close()
        for ring in self._older:
            ring.detach()
        self._older.clear()


def everything(ring: Ring) -> Iterator[Item]:
    snapshot = ring.snapshot()
    yield from (item for _, item in snapshot.held)
    yield from snapshot.waiting


def in_order(ring: Ring) -> Generator[tuple[Reader, Item]]:
    """All that lies in a ring in which nobody is, each with the reader to release it, which is to
    be done before the next is asked for."""
    with ExitStack() as stack:
        hands = [index for index in range(ring.readers) if ring.held_count(index)] or [0]
        readers = [stack.enter_context(ring.reader(index)) for index in hands]
        held = [(reader, item) for reader in readers for item in take_held(reader)]
        yield from sorted(held, key=lambda pair: pair[1].sequence)
        reader = readers[0]
        while ring.depth:
            yield from ((reader, item) for item in reader.take(TAKE_MAX))


def take_held(reader: Reader) -> list[Item]:
    """What its last owner left in the hand; a take returns that before anything else."""
    count = len(reader.held())
    items: list[Item] = []
    while len(items) < count:
        items += reader.take(count - len(items), 0)
    return items

"""Pending puts of one process: strictly oldest first.

A put that finds no room takes a ticket and stands in line; while somebody stands there, every other
put of the process goes behind. Only the first in line may try, in its own step (of its thread, or
of its event loop), so that a cancel comes before the try or after it, never in between.

    ticket      its turn comes          looks for room in      tries in
    ThreadTurn  event set               its own thread         its own thread
    TaskTurn    future resolved         the helper thread      its own step of the loop

One helper thread per attached ring serves all TaskTurns: only the first in line needs a watch.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from typing import Protocol

from ringbuf._kernel import Mapping
from ringbuf.errors import RingError

WATCH_S = 0.25  # the helper looks up this often whether its ticket still stands in line


class Turn(Protocol):
    def call(self) -> bool:
        """Your turn; from any thread, with the line's lock held. False: nobody waits any more."""


class ThreadTurn:
    """The ticket of a blocking put."""

    def __init__(self) -> None:
        self._called = threading.Event()

    def call(self) -> bool:
        self._called.set()
        return True

    def wait(self, timeout_s: float | None) -> bool:
        return self._called.wait(timeout_s)


class TaskTurn:
    """The ticket of a put on an event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] = self._loop.create_future()

    def call(self) -> bool:
        if asyncio._get_running_loop() is self._loop:
            self._resolve()
            return True
        try:
            self._loop.call_soon_threadsafe(self._resolve)
        except RuntimeError:  # the loop is closed
            return False
        return True

    def _resolve(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    async def wait(self) -> None:
        await self._future

    def rearm(self) -> None:
        self._future = self._loop.create_future()


class Line:
    """The line of pending puts. ``mapping.parked`` counts it, so that try_put can see it."""

    def __init__(self, mapping: Mapping) -> None:
        self._mapping = mapping
        self._changed = threading.Condition()
        # Ordered, with removal anywhere in O(1): thousands may hang up at once.
        self._turns: OrderedDict[Turn, None] = OrderedDict()
        self._watched: TaskTurn | None = None
        self._helper: threading.Thread | None = None
        self._stopping = False

    def __len__(self) -> int:
        return len(self._turns)

    def join(self, turn: Turn) -> None:
        """Goes to the end; the first in line is called at once."""
        with self._changed:
            self._turns[turn] = None
            self._mapping.park(len(self._turns))
            if len(self._turns) == 1:
                self._call_first()

    def leave(self, turn: Turn) -> None:
        """Steps out, put or not, even if an interrupted join never let it in.

        Who is first then is called.
        """
        with self._changed:
            was_first = next(iter(self._turns), None) is turn
            self._turns.pop(turn, None)
            self._mapping.park(len(self._turns))
            if self._watched is turn:
                self._watched = None
            if was_first:
                self._call_first()

    def watch(self, turn: TaskTurn) -> None:
        """Calls ``turn``, the first in line, when there may be room or its try would raise."""
        with self._changed:
            if self._stopping:
                raise RingError("this ring is detached")
            if self._helper is None:
                helper = threading.Thread(target=self._help, name="ringbuf-room", daemon=True)
                helper.start()
                self._helper = helper
            self._watched = turn
            self._changed.notify()

    def stop(self) -> None:
        """Ends the helper, once the mapping refuses calls; pending puts try and meet that."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._helper is not None:
            self._helper.join()
        with self._changed:
            self._call_first()

    def _call_first(self) -> None:
        while self._turns:
            first = next(iter(self._turns))
            if first.call():
                break
            del self._turns[first]
        self._mapping.park(len(self._turns))

    def _help(self) -> None:
        while True:
            with self._changed:
                while self._watched is None and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    return
                turn = self._watched
            if self._worth_a_try():
                self._announce(turn)

    def _worth_a_try(self) -> bool:
        try:
            return self._mapping.wait_room(WATCH_S)
        except RingError:  # detached, or beyond repair: the put's own try says so to its caller
            return True

    def _announce(self, turn: TaskTurn | None) -> None:
        with self._changed:
            if self._watched is turn:
                self._watched = None
                self._call_first()

"""An actor that does what a script says, one word after the other, until a step ends it.

A script is a list of words, each a method of Session with its arguments. `arm` comes right before
the deed: only from then on steps count.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from ringbuf import Closed, Empty, Full, Item, Reader, Ring, Writer
from tests.ringbuf.kit import is_whole, message, number

Script = list[list[Any]]
Seen = list[list[int]]  # number, sequence, attempts of each item


def seen(items: list[Item]) -> Seen:
    assert all(map(is_whole, items)), items
    return [[number(item), item.sequence, item.attempts] for item in items]


class Session:
    def __init__(self, path: str) -> None:
        self.ring = Ring.attach(path)
        self.log = f"{path}.steps"
        self._writer: Writer | None = None
        self._reader: Reader | None = None
        self.taken: list[Item] = []

    def arm(self, step: str, nth: int, number: int) -> None:
        os.environ["RINGBUF_STEP_LOG"] = self.log
        os.environ["RINGBUF_STEP"] = f"{step}:{nth}:{number}"

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    @property
    def writer(self) -> Writer:
        assert self._writer is not None
        return self._writer

    @property
    def reader(self) -> Reader:
        assert self._reader is not None
        return self._reader

    def enter(self) -> None:
        self._writer = self.ring.writer()

    def put(self, *numbers: int) -> int | str:
        payloads, keys = zip(*map(message, numbers), strict=True)
        try:
            return self.writer.put_many(payloads, keys)
        except Closed:
            return "closed"

    def put_one(self, n: int, timeout: float | None) -> int | str:
        try:
            return self.writer.put(*message(n), timeout=timeout)
        except (Full, Closed) as end:
            return type(end).__name__.lower()

    def join(self, index: int) -> None:
        self._reader = self.ring.reader(index)

    def take(self, most: int, timeout: float | None) -> Seen | str:
        try:
            items = self.reader.take(most, timeout)
        except (Empty, Closed) as end:
            return type(end).__name__.lower()
        self.taken += items
        return seen(items)

    def take_all(self) -> Seen:
        found: Seen = []
        while not isinstance(some := self.take(64, 0), str):
            found += some
        return found

    def release(self) -> int:
        self.reader.release(self.taken)
        count = len(self.taken)
        self.taken.clear()
        return count

    def leave(self) -> None:
        self.reader.close()

    def close(self) -> None:
        self.ring.close()

    def bump(self) -> None:
        self.ring.bump_commits()

    def wait_commits(self, known: int) -> int:
        """Without end, until the counter is another."""
        return self.ring.wait_commits(known)


def session(path: str, script: Script) -> list[Any]:
    """-> what each word returned."""
    actor = Session(path)
    answers = [getattr(actor, word)(*arguments) for word, *arguments in script]
    actor.ring.detach()
    return answers

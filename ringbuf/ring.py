"""The ring's file: making it, joining it, looking into it."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ringbuf._kernel import Item, Mapping
from ringbuf.errors import InUse, Misfit, RingError
from ringbuf.pages import Pages
from ringbuf.parking import Line
from ringbuf.participants import Participant, boot_id, own_identity
from ringbuf.reader import Reader
from ringbuf.writer import Writer

if TYPE_CHECKING:
    import numpy.typing as npt

CLOSE_PATIENCE_S = 5.0  # how long close waits for a stopped holder of the writers' lock
DETACH_PATIENCE_S = 1.0  # how long detach waits for calls of other threads, whose waits it ends


@dataclass(frozen=True)
class Found:
    """Where a key was seen: ``position`` = how many are ahead of it, None when in a hand."""

    place: str
    item: Item
    position: int | None


@dataclass(frozen=True)
class Snapshot:
    """Copies: what waited, oldest first, then what was held, as (reader index, item)."""

    waiting: list[Item]
    held: list[tuple[int, Item]]


class Ring:
    """A ring attached to this process. Not usable in a forked child: attach anew there."""

    def __init__(self, mapping: Mapping, fd: int, path: str | None) -> None:
        self.mapping = mapping
        self.fd = fd
        self.path = path
        self.line = Line(mapping)
        self.capacity = mapping.capacity
        self.slot_bytes = mapping.slot_bytes
        self.room = mapping.room
        self.readers = mapping.readers
        self.writers = mapping.writers
        self.hand = mapping.hand
        self.epoch = mapping.epoch
        self.label = mapping.label
        self._pid = os.getpid()
        self._entries: set[int] = set()  # those of this process through this attachment
        self._slots: npt.NDArray[Any] | None = None
        self._pages: Pages | None = None

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        capacity: int = 100,
        slot_bytes: int = 16384,
        readers: int = 8,
        hand: int = 64,
        *,
        writers: int = 16,
        label: str = "",
    ) -> Self:
        """Makes the file, whole or not at all, and attaches it.

        ``capacity`` slots of ``slot_bytes`` (a multiple of 64; 64 of them are the slot's head);
        at most ``readers`` and ``writers`` at once, ``hand`` items held by each reader; ``label``
        of up to 1,024 bytes is kept in the header. Raises FileExistsError, ValueError for a size
        out of range, and OSError with the bytes wanted when the file system has no room.
        """
        needed = Mapping.bytes_needed(capacity, slot_bytes, readers, writers, hand)
        final = os.fspath(path)
        temporary = f"{final}.{secrets.token_hex(8)}.tmp"
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _allocate(fd, needed, final)
            mapping = Mapping.create(
                fd, capacity, slot_bytes, readers, writers, hand,
                secrets.randbits(64), boot_id(), label,
            )  # fmt: skip
            os.link(temporary, final)
        except BaseException:
            os.close(fd)
            raise
        finally:
            Path(temporary).unlink()
        return cls(mapping, fd, final)

    @classmethod
    def attach(cls, source: str | os.PathLike[str] | int) -> Self:
        """Joins a ring by path or by an open descriptor (which is duplicated).

        Raises Misfit with what was found and wanted: other layout, sizes or checksum, half made,
        or made in another boot of the machine.
        """
        if isinstance(source, int):
            fd, path = os.dup(source), None
        else:
            path = os.fspath(source)
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return cls(Mapping.attach(fd, boot_id()), fd, path)
        except BaseException as error:
            os.close(fd)
            if isinstance(error, Misfit) and path is not None:
                raise Misfit(f"{path}: {error}") from None
            raise

    def writer(self) -> Writer:
        """A way in. Raises InUse when all ``writers`` entries belong to living processes."""
        for index in range(self.writers):
            if self._claim("writer", index) is not None:
                return Writer(self, index)
        raise InUse(f"all {self.writers} writers of this ring live (writers, set at creation)")

    def reader(self, index: int) -> Reader:
        """The owner of hand ``index``, with what lies in it.

        Raises InUse, naming the pid, while another owner of that index lives.
        """
        died = self._claim("reader", index)
        if died is None:
            raise InUse(f"reader {index} is process {self._participant('reader', index).pid}")
        try:
            return Reader(self, index, died)
        except BaseException:
            self.forget("reader", index)
            raise

    @property
    def depth(self) -> int:
        """How many wait; pending puts and held items do not count."""
        return self.mapping.depth

    @property
    def head(self) -> int:
        return self.mapping.head

    @property
    def tail(self) -> int:
        return self.mapping.tail

    @property
    def closed(self) -> bool:
        return bool(self.mapping.closed)

    @property
    def drained(self) -> bool:
        """Closed, nothing waits, and every hand is empty, those of the dead too."""
        return bool(self.mapping.closed_and_empty) and not any(
            self.held_count(index) for index in range(self.readers)
        )

    @property
    def slots(self) -> npt.NDArray[Any]:
        """The slots as a structured numpy array, read-only, live (see ``layout.slot_dtype``)."""
        if self._slots is None:
            # numpy takes a tenth of a second to import and starts threads: only for who looks.
            from ringbuf.layout import slots_view  # noqa: PLC0415

            self._slots = slots_view(self.mapping, self.fd)
        return self._slots

    def page(self, role: str, index: int) -> memoryview:
        """The page of counters of that reader or writer: 512 words of 64 bits, live, for its owner
        to write; after detach it raises ValueError."""
        return self._mapped_pages().own[self._entry(role, index)]

    def pages(self) -> list[memoryview]:
        """All pages, the readers' first; to be read."""
        return self._mapped_pages().all

    def _mapped_pages(self) -> Pages:
        if self._pages is None:
            if self.fd < 0:
                raise RingError("this ring is detached")
            self._pages = Pages(self.fd, self.mapping.stats_at, self.readers + self.writers)
        return self._pages

    @property
    def repairs(self) -> int:
        """Locks taken over from dead holders so far."""
        return self.mapping.repairs

    @property
    def rescues(self) -> int:
        """Sleeps that only the re-check ended: a waker was killed between publish and wake."""
        return self.mapping.rescues

    @property
    def commits(self) -> int:
        return self.mapping.commits

    def bump_commits(self) -> None:
        """Wakes everybody in wait_commits: outcomes have been committed."""
        self.mapping.bump_commits()

    def wait_commits(self, seen: int, timeout: float | None = None) -> int:
        """Waits until the counter is no longer ``seen``; returns it, changed or not."""
        return self.mapping.wait_commits(seen, timeout)

    def close(self) -> None:
        """No more puts: later and pending ones raise Closed. What is in can still be taken."""
        self.mapping.set_closed(True, CLOSE_PATIENCE_S)

    def reopen(self) -> None:
        """Puts are welcome again: ``closed`` belongs to one run of the ring's owner."""
        self.mapping.set_closed(False, CLOSE_PATIENCE_S)

    def find(self, key: bytes) -> Found | None:
        """The item with that key, looked for in the slots and then in the hands: with the flow."""
        seen = self.mapping.find(key)
        if seen is None:
            return None
        return Found("hand" if seen[1] is None else "ring", *seen)

    def snapshot(self) -> Snapshot:
        """Copies of all there is; an item that moves meanwhile is in it once."""
        waiting, held = self.mapping.snapshot()
        moved = {item.sequence for _, item in held}
        return Snapshot([item for item in waiting if item.sequence not in moved], held)

    def held_count(self, index: int) -> int:
        return self.mapping.held_count(index)

    def blame(self, index: int, note: str, *, late: bool = False) -> bool:
        """Counts the death of reader ``index``, which nobody has followed yet, for the item that it
        had begun; False: there is none. For whoever saw how it ended: ``note`` says that, cut to
        a page. ``late``: its time was up, which on trial is no crash of the item."""
        return self.mapping.blame(index, late, note.encode("utf-8", "replace"))

    def acquit(self, index: int) -> None:
        """Nothing that reader ``index`` had begun is to be blamed for its death, nor for that of
        one who follows and does not get as far as its hand."""
        self.mapping.acquit(index)

    def note(self, index: int) -> str:
        """The last note of ``blame`` for that reader; "" before the first."""
        return self.mapping.note(index).decode("utf-8", "replace")

    def participants(self) -> list[Participant]:
        """Everybody recorded, living or dead."""
        roles = [("reader", i) for i in range(self.readers)]
        roles += [("writer", i) for i in range(self.writers)]
        found = [self._participant(role, index) for role, index in roles]
        return [participant for participant in found if participant.pid]

    def forget(self, role: str, index: int) -> None:
        """Clears this process's own entry; another's stays. Nothing in a forked child."""
        entry = self._entry(role, index)
        if entry in self._entries and self._pid == os.getpid():
            self._entries.discard(entry)
            self.mapping.swap_participant(entry, own_identity(), 0)

    def unlink(self) -> None:
        """Removes the file's name; who is attached stays attached."""
        if self.path is None:
            raise RingError("attached by descriptor: the path is its owner's to remove")
        Path(self.path).unlink(missing_ok=True)

    def detach(self) -> None:
        """Leaves and unmaps; every later call raises, numpy views stay valid. Twice is harmless.

        Waits of other threads and pending puts end with RingError.
        """
        if self.fd < 0:
            return
        fd, self.fd, self._slots = self.fd, -1, None
        try:
            if self._pid == os.getpid():
                self._leave()
        finally:
            self.mapping.detach()
            os.close(fd)
            pages, self._pages = self._pages, None
            if pages is not None:
                pages.close()

    def _leave(self) -> None:
        # A call that is still inside may fill its hand: then the words stay this process's.
        if self.mapping.leave(DETACH_PATIENCE_S):
            for entry in self._entries:
                self.mapping.swap_participant(entry, own_identity(), 0)
        self._entries.clear()
        self.line.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _entry(self, role: str, index: int) -> int:
        return index if role == "reader" else self.readers + index

    def _participant(self, role: str, index: int) -> Participant:
        identity = self.mapping.participant(self._entry(role, index))
        return Participant.from_identity(role, index, identity)

    def _claim(self, role: str, index: int) -> bool | None:
        """Takes the entry from nobody (False) or from somebody dead (True); None: he lives."""
        if role == "reader" and not 0 <= index < self.readers:
            raise ValueError(f"reader {index} of {self.readers} (readers, set at creation)")
        before = self._participant(role, index)
        if before.pid and before.alive():
            return None
        entry = self._entry(role, index)
        if not self.mapping.swap_participant(entry, before.identity, own_identity()):
            return None
        self._entries.add(entry)
        return bool(before.pid)


def _allocate(fd: int, needed: int, path: str) -> None:
    try:
        os.posix_fallocate(fd, 0, needed)
    except OSError as error:
        reason = f"{error.strerror}: no room for a ring of {needed} bytes"
        raise OSError(error.errno, reason, path) from None

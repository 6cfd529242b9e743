"""After a power loss: putting back what the journal holds, before anybody orders again.

An item of the journal is in the ring of its epoch, in a hand, or settled, as long as that ring
lives. When it is gone (the machine lost power, the ring's file was removed), what the database does
not know is put into the ring of now, in the order in which it lay in the one that is gone. The
records stay where they are until the database knows them, so that a recovery that is killed at any
point is simply begun anew.

    segments of living rings     left alone
    others, read whole           unknown to the database, and not in the ring: put back
    with damage                  refused (--damaged-journal), or read without the damaged part and
                                 kept under another name
    of another database          refused

What a killed commit left behind may be visible and not on disk: so before the database is asked, a
commit of our own must have returned.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from processors.datadir import CannotStart
from processors.doubt import EXIT_DOUBT
from processors.journal import journal_dir
from processors.moving import everything
from processors.settings import UNKNOWN_DATABASE, Settings
from ringbuf import Closed, Full, Identity, Item, Ring, Segment, SegmentError
from ringbuf.segment import segment_paths

if TYPE_CHECKING:
    from processors.store import Store

KEYS_MAX = 256

log = logging.getLogger(__name__)


class Damaged(CannotStart):
    """The journal holds less than what was synced into it."""

    code = EXIT_DOUBT


class Recovery:
    """Of one data dir into `ring`. `living`: the epochs of the rings that are there, this one's
    among them."""

    def __init__(self, settings: Settings, ring: Ring, living: Collection[int]) -> None:
        self._settings = settings
        self._ring = ring
        self._paths, unreadable = _left_behind(journal_dir(settings), living)
        self._refuse_damage(unreadable)
        self._items: list[Item] | None = None if self._paths else []
        self._next = 0

    @property
    def done(self) -> bool:
        return self._items is not None and self._next == len(self._items)

    @property
    def looked(self) -> bool:
        """Whether it is known what is to be put back: before, `left` says 1 at least."""
        return self._items is not None

    def left(self) -> int:
        """Orders that are still to be put back."""
        return 1 if self._items is None else len(self._items) - self._next

    def look(self, store: Store) -> None:
        """Finds out what is to be put back. Raises StoreUnavailable, CannotStart."""
        # As long to import as all the rest of a start, and most starts have nothing to recover.
        from processors.known import commit_something, database_id  # noqa: PLC0415

        commit_something(store)
        database = database_id(store)
        found: dict[Identity, tuple[int, Item]] = {}
        ages: dict[int, int] = {}
        damage: list[str] = []
        for path in self._paths:
            with _told_of_reading(path), Segment.open(path) as segment:
                _check_database(segment, database)
                header = segment.header
                ages[header.epoch] = min(header.made_ns, ages.get(header.epoch, header.made_ns))
                fresh = self._unknown(store, segment)
                for item in fresh:
                    found.setdefault(Identity(item.key, item.round), (header.epoch, item))
                damage += [f"{path}: bytes {one.at} to {one.until}" for one in segment.damage]
        self._refuse_damage(damage)
        there = {Identity(item.key, item.round) for item in everything(self._ring)}
        missing = [found[one] for one in found.keys() - there]
        missing.sort(key=lambda pair: (ages[pair[0]], pair[1].sequence))
        self._items = [item for _, item in missing]
        if self._items:
            log.warning("putting back %d orders from the journal", len(self._items))

    def step(self, patience_s: float) -> None:
        """Puts back what it can in that time, once `look` has returned."""
        assert self._items is not None
        deadline = time.monotonic() + patience_s
        with self._ring.writer() as writer:
            while self._next < len(self._items):
                item, left_s = self._items[self._next], deadline - time.monotonic()
                try:
                    writer.put(
                        item.payload, item.key, item.header, item.round,
                        timeout=max(0.0, left_s), accepted_ns=item.accepted_ns,
                    )  # fmt: skip
                except (Full, Closed):
                    return
                self._next += 1
        log.info("the journal's orders are back: %d", self._next)
        self._items, self._next = [], 0

    def _unknown(self, store: Store, segment: Segment) -> list[Item]:
        from processors.known import Known  # noqa: PLC0415

        known, items, left = Known(), list[Item](), segment.items()
        while some := list(islice(left, KEYS_MAX)):
            identities = [Identity(item.key, item.round) for item in some]
            with store.reading() as connection:
                settled = known.of(connection, identities)
            items += [
                item for item, one in zip(some, identities, strict=True) if one not in settled
            ]
        return items

    def _refuse_damage(self, damage: list[str]) -> None:
        if not damage:
            return
        text = f"the journal is damaged, what was on disk can't be read: {'; '.join(damage)}"
        if self._settings.journal.damaged == "refuse":
            raise Damaged(f"{text}. To go on without that: --damaged-journal skip")
        log.error("%s. Going on without that (--damaged-journal skip)", text)


@contextmanager
def _told_of_reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CannotStart(f"the journal can't be read: {error.strerror}: {path}") from error


def _left_behind(directory: Path, living: Collection[int]) -> tuple[list[Path], list[str]]:
    """-> the segments of rings that are gone, and what is wrong with those that say nothing."""
    paths, wrong = [], []
    with _told_of_reading(directory):
        found = segment_paths(directory)
    for path in found:
        try:
            with _told_of_reading(path), Segment.open(path) as segment:
                if segment.header.epoch not in living:
                    paths.append(path)
        except SegmentError as error:
            wrong.append(str(error))
    return paths, wrong


def _check_database(segment: Segment, database: bytes) -> None:
    found = segment.header.database
    if found not in (database, UNKNOWN_DATABASE):
        raise CannotStart(
            f"{segment.path} holds orders of the database {found.hex()}, and --database is "
            f"{database.hex()}: start with the database that the journal belongs to, or move the "
            "segment away if its orders are to be forgotten"
        )

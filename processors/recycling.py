"""Removing segments of the journal that nobody needs any more.

A segment goes when nobody writes it (it is sealed, or its writer is dead), the database knows every
item in it, and a commit of our own has returned since: what the database knew by then is on disk.
Sequences play no part, for they begin anew with each ring. A removed name may come back after a
power loss; then the segment is found to be known again. One that was never finished goes when its
maker is dead: it takes as much room, and no start may come for months.

    finished? --> group after group: known? --all--> commit of our own --> unlink, sync directory
                       | not yet: goes on there at the next step
"""

from __future__ import annotations

import logging
from pathlib import Path

from processors.known import Known, commit_something
from processors.store import Store
from ringbuf import Identity, Participant, Segment, SegmentError, boot_id
from ringbuf.segment import PAGE_BYTES, half_made, segment_paths, sync_directory

# How many items the database is asked about in one step: a worker's orders wait meanwhile.
STEP_ITEMS_MAX = 2048
# What was damaged stays for people to look at, under a name that nothing else looks for.
DAMAGED_SUFFIX = ".damaged"

log = logging.getLogger(__name__)


class Recycler:
    """Of one directory. Whoever runs it, one process at a time suffices; two do no harm."""

    def __init__(self, directory: Path, store: Store) -> None:
        self._directory = directory
        self._store = store
        self._known = Known()
        self._offsets: dict[Path, int] = {}  # up to where all is known, by path without suffix

    def step(self, items_max: int = STEP_ITEMS_MAX) -> int:
        """Looks at some, removes what can go -> how many segments. Raises StoreUnavailable."""
        for half in filter(is_finished, half_made(self._directory)):
            half.unlink(missing_ok=True)
        goes: list[Path] = []
        finished = [path for path in segment_paths(self._directory) if is_finished(path)]
        self._forget(finished)
        for path in finished:
            if items_max <= 0:
                break
            try:
                count, whole = self._look(path, items_max)
            except (OSError, SegmentError) as error:
                log.debug("a segment can't be looked at now: %s", error)
                continue
            items_max -= count
            if whole:
                goes.append(path)
        if goes:
            commit_something(self._store)
            self._remove(goes)
        return len(goes)

    def _look(self, path: Path, items_max: int) -> tuple[int, bool]:
        """-> how many items were looked at, and whether all of the segment is known."""
        key, asked = path.with_suffix(""), 0
        with Segment.open(path) as segment:
            for group in segment.groups(self._offsets.get(key, PAGE_BYTES)):
                if asked >= items_max:
                    return asked, False
                identities = group.identities()
                asked += len(identities)
                if not self._all_known(identities):
                    return asked, False
                self._offsets[key] = group.until
            if segment.damage:
                damaged = path.with_suffix(DAMAGED_SUFFIX)
                log.error("%s is damaged, it stays as %s", path, damaged.name)
                path.rename(damaged)
                return asked, False
        return asked, True

    def _all_known(self, identities: list[Identity]) -> bool:
        with self._store.reading() as connection:
            return len(self._known.of(connection, identities)) == len(set(identities))

    def _remove(self, paths: list[Path]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)
        sync_directory(self._directory)

    def _forget(self, paths: list[Path]) -> None:
        there = {path.with_suffix("") for path in paths}
        self._offsets = {key: at for key, at in self._offsets.items() if key in there}


def is_finished(path: Path) -> bool:
    """Whether nobody writes it any more."""
    if path.suffix == ".sealed":
        return True
    try:
        with Segment.open(path) as segment:
            header = segment.header
    except (OSError, SegmentError):
        return False
    if header.boot_id != boot_id():
        return True
    return not Participant.from_identity("writer", 0, header.writer).alive()

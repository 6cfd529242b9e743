"""A page of counters for each reader and each writer of a ring: one process counts, all may look.

A page belongs to an index and outlives its owners: whoever comes next counts on from where the
last one died, so a sum over all pages never falls while the ring lives. Only a single word is read
whole; two words of a page that is being written may be from two moments.
"""

from __future__ import annotations

import mmap

PAGE_BYTES = 4096
PAGE_WORDS = PAGE_BYTES // 8


class Pages:
    """All pages of one attachment, through a mapping of their own, until `close`."""

    def __init__(self, fd: int, offset: int, count: int) -> None:
        self._mapping = mmap.mmap(fd, count * PAGE_BYTES, offset=offset)
        self._words = memoryview(self._mapping).cast("Q")
        places = range(0, count * PAGE_WORDS, PAGE_WORDS)
        self.own = [self._words[at : at + PAGE_WORDS] for at in places]
        self.all = [page.toreadonly() for page in self.own]

    def close(self) -> None:
        """Whoever still has a page gets ValueError from it."""
        for view in (*self.all, *self.own, self._words):
            view.release()
        self._mapping.close()

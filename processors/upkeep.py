"""What a worker does beside orders: checkpoints of the database, tidying up the journal, noting
what expired, and forgetting old orders."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from processors.expiring import Expirer
from processors.recycling import Recycler
from processors.retention import Retention
from processors.store import Store, StoreBroken, StoreUnavailable
from ringbuf.journal import NO_ROOM

# How much is committed between two checkpoints: about as much as SQLite's own thousand pages.
CHECKPOINT_ORDERS = 512
CHECKPOINT_COMMITS = 64
LOOK_EVERY_S = 1.0

log = logging.getLogger(__name__)


class Upkeep:
    """Of one worker; only one of them has the recycler, the retention and the expirer. What can't
    be done now is done later."""

    def __init__(
        self,
        store: Store,
        recycler: Recycler | None = None,
        retention: Retention | None = None,
        expirer: Expirer | None = None,
    ) -> None:
        self._store = store
        self._recycler = recycler
        self._retention = retention
        self._expirer = expirer
        self._removed = 0  # of what the retention had, at the last checkpoint
        self._orders = 0
        self._commits = 0
        self._wal = store.wal_path
        self._seen_ns = 0  # the WAL's last change before the last checkpoint
        self._next_look = time.monotonic() + LOOK_EVERY_S

    def committed(self, orders: int) -> None:
        """After each commit of a batch. Raises StoreBroken."""
        self._orders += orders
        self._commits += 1
        if self._orders >= CHECKPOINT_ORDERS or self._commits >= CHECKPOINT_COMMITS:
            self._checkpoint()

    def look(self) -> None:
        """Often: what is due for the clock, not for commits. Raises StoreBroken."""
        if self._expirer is not None:
            self._expirer.look()
        if self._retention is not None:
            self._retention.look()
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_EVERY_S
        if self._changed_ns() != self._seen_ns:  # fronts commit, too, and clocks are set back
            self._checkpoint()
        if self._recycler is not None:
            self._recycle(self._recycler)

    @staticmethod
    def _recycle(recycler: Recycler) -> None:
        try:
            recycler.step()
        except StoreUnavailable:
            pass
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise StoreBroken(f"the journal's directory: {error}") from error
            log.debug("the journal can't be tidied up now: %s", error)

    def _checkpoint(self) -> None:
        orders, self._orders, self._commits = self._orders, 0, 0
        self._seen_ns = self._changed_ns()
        begun = time.monotonic()
        try:
            self._store.checkpoint()
        except StoreUnavailable as error:
            log.debug("no checkpoint now: %s", error)
        if self._retention is not None:
            self._share(self._retention, orders, time.monotonic() - begun)

    def _share(self, retention: Retention, orders: int, seconds: float) -> None:
        """Charges the retention with its part of a checkpoint."""
        removed, self._removed = retention.removed - self._removed, retention.removed
        if removed:
            retention.charge(seconds * removed / (removed + orders))

    def _changed_ns(self) -> int:
        if self._wal is None:
            return 0
        try:
            return Path(self._wal).stat().st_mtime_ns
        except FileNotFoundError:
            return 0

"""The journal of one process: items that it put into a ring, on disk before anybody is told so.

All of it runs on one event loop; what may take long runs in two threads: one writes and syncs
groups, one makes the next segment. Groups follow each other: while one is synced, records gather
for the next, so a group grows by itself with the load and with the time that a sync takes.

    has_room? --no--> reserve: wait until the next segment is made, or RoomGone
        | yes: then the item is put into the ring, and in the same step
    append -> after_sync(callback)
        end of this turn of the loop, or of the sync under way
    group  -> written, synced -> the callbacks of its records, in order
                    \\-> an error: `on_failure`, once, and nothing is called back ever again

Segments: `current` is written, `spare` is ready for when it is full. There is room only for what
both can surely hold, whatever groups it comes in; so an append never fails for want of room.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ringbuf._journal import Syncer
from ringbuf.segment import (
    PAGE_BYTES,
    SegmentHeader,
    encode_group,
    group_bytes,
    make_segment,
    segment_paths,
    zeros,
)

GROUP_BYTES_MAX = 2**20
# How soon it is tried again to make a segment after there was no room for one.
RETRY_S = 0.5
# What may be over by itself: somebody frees space, descriptors, memory, or mounts anew. EEXIST: two
# processes looked at the clock at the same instant, or it was set back.
NO_ROOM = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EMFILE", "ENFILE", "ENOMEM", "EROFS", "EACCES", "EEXIST")
)

log = logging.getLogger(__name__)


class RoomGone(Exception):
    """There is no room for a record, and none can be made now; the text says why."""


@dataclass(frozen=True)
class JournalRules:
    """directory: where segments lie; header: of every segment but for serial and time;
    segment_bytes: of one; segments_max: of all processes together, then there is no room."""

    directory: Path
    header: SegmentHeader
    segment_bytes: int
    segments_max: int


@dataclass
class Open:
    """A segment that this process writes. `end`: where the next group goes; `synced`: up to where
    syncs have returned."""

    fd: int
    path: Path
    serial: int
    size: int
    end: int = PAGE_BYTES
    synced: int = PAGE_BYTES

    @property
    def free(self) -> int:
        return self.size - self.end


class Journal:
    """See the head of this module. Made on the running loop, by `Journal.open`.

    `on_failure` is called once, with the first error of a write or a sync; what to do about the
    items that were put and will not be acknowledged is the caller's.
    """

    def __init__(self, rules: JournalRules, on_failure: Callable[[OSError], None]) -> None:
        self._rules = rules
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._current: Open | None = None
        self._spare: Open | None = None
        self._records: list[bytes] = []
        self._callbacks: list[Callable[[], None] | None] = []
        self._queued = 0  # what the records would take in groups of their own
        self._reserved = 0
        self._in_flight: list[Callable[[], None] | None] | None = None
        self._scheduled = False
        self._failed = False
        self._gone: OSError | None = None  # why the last segment could not be made
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._making: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._idle: asyncio.Future[None] | None = None
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="ringbuf-journal")
        self._syncer = Syncer()
        self._loop.add_reader(self._syncer.fileno(), self._on_synced)
        self.on_sync: Callable[[int, int], None] = lambda _ns, _records: None

    @classmethod
    async def open(cls, rules: JournalRules, on_failure: Callable[[OSError], None]) -> Journal:
        """With its first segments, if there is room for them; else it goes on trying."""
        journal = cls(rules, on_failure)
        journal._make()
        assert journal._making is not None
        await asyncio.wait({journal._making})
        return journal

    @property
    def trouble(self) -> str | None:
        """Why there will be no room soon; None while there is, or while it is being made."""
        return None if self._gone is None else str(self._gone)

    def has_room(self, record_bytes: int) -> bool:
        """Whether a record of that size can be appended now."""
        if self._failed:
            return False
        need = self._queued + self._reserved + group_bytes(record_bytes)
        current, spare = self._current, self._spare
        return (current is not None and current.free >= need) or (
            spare is not None and spare.free >= need
        )

    def room_for(self, record_bytes: int) -> int:
        """How many records, none larger than that, can be appended now."""
        if self._failed:
            return 0
        free = max((one.free for one in (self._current, self._spare) if one is not None), default=0)
        return max(0, free - self._queued - self._reserved) // group_bytes(record_bytes)

    async def reserve(self, record_bytes: int) -> int:
        """-> bytes to `release` when the record was appended, or will not be. Waits while room is
        being made; raises RoomGone when it can't be, ValueError when no segment has so much."""
        if group_bytes(record_bytes) > self._rules.segment_bytes - PAGE_BYTES:
            size = self._rules.segment_bytes
            raise ValueError(f"no segment of {size} bytes has room for a record of {record_bytes}")
        while not self.has_room(record_bytes):
            if self._gone is not None:
                raise RoomGone(str(self._gone))
            self._waiting.append(self._loop.create_future())
            await self._waiting[-1]
        size = group_bytes(record_bytes)
        self._reserved += size
        return size

    def release(self, size: int) -> None:
        """Gives back what `reserve` gave."""
        self._reserved -= size
        self._wake()

    def append(self, record: bytes) -> None:
        """Takes a record that there is room for. In the step in which its item was put."""
        self._records.append(record)
        self._callbacks.append(None)
        self._queued += group_bytes(len(record))
        if not self._scheduled and self._in_flight is None:
            self._scheduled = True
            # Not now: what else can be read in this turn of the loop is in the same group.
            self._loop.call_soon(self._write)

    def after_sync(self, callback: Callable[[], None]) -> None:
        """Calls it when the record that was appended last is on disk. In the same step."""
        self._callbacks[-1] = callback

    async def close(self) -> None:
        """After the last append: waits until all is on disk, and leaves the segments to be read."""
        while not self._failed and (self._records or self._in_flight is not None):
            self._idle = self._loop.create_future()
            await self._idle
        while self._making is not None and not self._making.done():
            await asyncio.wait({self._making})  # the first one made has the next one made
        if self._retry is not None:  # only now: what was being made may have failed
            self._retry.cancel()
        self._loop.remove_reader(self._syncer.fileno())
        await self._loop.run_in_executor(self._maker, self._leave)
        self._maker.shutdown()

    # ---- groups ----------------------------------------------------------------------------------

    def _write(self) -> None:
        self._scheduled = False
        if self._failed or self._in_flight is not None or not self._records:
            return
        current = self._current
        if current is None or current.free < group_bytes(len(self._records[0])):
            current = self._go_on()
        count = self._fitting(min(current.free, GROUP_BYTES_MAX))
        records, self._records = self._records[:count], self._records[count:]
        self._in_flight, self._callbacks = self._callbacks[:count], self._callbacks[count:]
        self._queued -= sum([group_bytes(len(record)) for record in records])
        group = encode_group(current.serial, current.end, current.synced, records)
        self._syncer.submit(current.fd, current.end, group)
        current.end += len(group)
        self._wake()  # together they take less than what was set aside for each

    def _fitting(self, room: int) -> int:
        """How many of the records, one at least, fit into a group of that size."""
        size = 0
        for count, record in enumerate(self._records):
            size += len(record)
            if count and group_bytes(size) > room:
                return count
        return len(self._records)

    def _on_synced(self) -> None:
        try:
            sync_ns = self._syncer.result()
        except OSError as error:
            self._fail(error)
            return
        if sync_ns is None:
            return
        assert self._in_flight is not None
        assert self._current is not None
        callbacks, self._in_flight = self._in_flight, None
        self._current.synced = self._current.end
        self.on_sync(sync_ns, len(callbacks))
        self._write()  # the next group's sync runs while this one is called back
        for callback in callbacks:
            if callback is not None:
                self._call(callback)
        if self._idle is not None and self._in_flight is None and not self._idle.done():
            self._idle.set_result(None)

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:
            log.exception("a mistake of ours after a sync")  # the others are called all the same

    def _fail(self, error: OSError) -> None:
        """The end: what was appended and not synced is never acknowledged."""
        if self._failed:
            return
        self._failed = True
        self._gone = error
        self._loop.remove_reader(self._syncer.fileno())
        self._wake()
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
        self._on_failure(error)

    # ---- segments --------------------------------------------------------------------------------

    def _go_on(self) -> Open:
        """To the spare one; there is one, for what was appended had room."""
        full, self._current, self._spare = self._current, self._spare, None
        assert self._current is not None
        self._make(full)
        return self._current

    def _make(self, full: Open | None = None) -> None:
        self._making = self._loop.create_task(self._make_next(full))

    async def _make_next(self, full: Open | None) -> None:
        try:
            made = await self._loop.run_in_executor(self._maker, self._made, full)
        except OSError as error:
            self._not_made(error)
        except MemoryError:
            self._not_made(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
        else:
            self._go_on_with(made)
        self._wake()

    def _go_on_with(self, made: Open) -> None:
        if self._current is None:
            self._current = made
        else:
            self._spare = made
        if self._failed:
            return
        if self._gone is not None:
            log.warning("the journal has room again")
        self._gone = None
        if self._spare is None:
            self._make()

    def _not_made(self, error: OSError) -> None:
        if error.errno not in NO_ROOM:
            self._fail(error)
        if self._failed:
            return
        if self._gone is None:
            log.warning("the journal's next segment can't be made, trying on: %s", error)
        self._gone = error
        self._retry = self._loop.call_later(RETRY_S, self._make)

    def _made(self, full: Open | None) -> Open:
        """In the maker's thread."""
        rules, now = self._rules, time.time_ns()
        if full is not None:
            os.close(full.fd)
            seal(full.path)
        count = len(segment_paths(rules.directory))
        if count >= rules.segments_max:
            text = f"{count} segments are full and not all of it is committed, the limit"
            raise OSError(errno.ENOSPC, text, str(rules.directory))
        header = replace(rules.header, serial=now, made_ns=now)
        size = rules.segment_bytes
        fd, path = make_segment(rules.directory, header, zeros(size), size)
        return Open(fd, path, now, size)

    def _leave(self) -> None:
        """In the maker's thread, the last it does."""
        self._syncer.close()
        for segment in (self._current, self._spare):
            if segment is not None:
                os.close(segment.fd)
                if segment.end == PAGE_BYTES:
                    segment.path.unlink(missing_ok=True)
                else:
                    seal(segment.path)

    def _wake(self) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)


def seal(path: Path) -> None:
    """Says that it is full, for whoever looks whether it can go. Not synced: its writer's death
    says the same."""
    with suppress(OSError):
        path.rename(path.with_suffix(".sealed"))

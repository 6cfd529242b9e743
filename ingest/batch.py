"""Putting many orders at a time: one lock, one call and one look at the clock for all of them."""

from __future__ import annotations

import asyncio
import time

from ingest.answers import Unanswered
from ingest.ids import OrderIds
from processors.tally import Tally
from ringbuf import Journal, Ring, Writer
from ringbuf.segment import RECORD, encode_record


class Batch:
    """The way in for orders that are surely new, beside the acceptor of the same ring, writer and
    journal. One for each who puts many."""

    def __init__(self, ring: Ring, writer: Writer, journal: Journal | None, tally: Tally) -> None:
        self._ring = ring
        self._writer = writer
        self._journal = journal
        self._tally = tally
        self.new_keys = OrderIds().many
        self._synced: asyncio.Future[None] | None = None

    def put(
        self, keys: list[bytes], payloads: list[bytes], headers: list[bytes], begun_ns: int
    ) -> int:
        """Puts as many as have room in ring and journal, from the first on -> how many; none while
        others wait for room. Each fits a slot. Raises Closed. They hold after `synced`."""
        journal = self._journal
        if journal is not None:
            largest = RECORD.size + max(map(len, headers)) + max(map(len, payloads))
            room = journal.room_for(largest)
            keys, payloads, headers = keys[:room], payloads[:room], headers[:room]
        first, count = self._writer.put_batch(payloads, keys, headers)
        if journal is None:
            self._tally.accepted_many(begun_ns, count)
        elif count:
            self._append(journal, keys[:count], payloads, headers, first)
            self._tell(journal, begun_ns, count)
        return count

    async def synced(self) -> None:
        """All that was put is on disk. Raises Unanswered when that can't be said."""
        if self._synced is not None:
            await self._synced
            self._synced = None
            # As in Acceptor.acknowledge: another process is not sure of what is on disk.
            if self._ring.closed:
                raise Unanswered

    def _append(
        self,
        journal: Journal,
        keys: list[bytes],
        payloads: list[bytes],
        headers: list[bytes],
        first: int,
    ) -> None:
        now_ns = time.time_ns()
        for place, key in enumerate(keys):
            journal.append(
                encode_record(
                    key,
                    payloads[place],
                    headers[place],
                    sequence=first + place,
                    accepted_ns=now_ns,
                )
            )

    def _tell(self, journal: Journal, begun_ns: int, count: int) -> None:
        synced: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def tell() -> None:
            self._tally.accepted_many(begun_ns, count)
            if not synced.done():
                synced.set_result(None)

        journal.after_sync(tell)
        self._synced = synced

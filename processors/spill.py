"""What a stop leaves in memory is written to disk first, whatever `--durability` says.

One segment for each ring that is not empty, as the journal has them: if the machine stays up, the
ring's file is there at the next start and the segment is only removed; if it does not, it is what
the start puts back (see `processors/recovery.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from processors.datadir import DAMAGED_HEADER
from processors.journal import make_journal_dir, own_header
from processors.settings import Settings
from ringbuf import Item, Ring
from ringbuf.segment import encode_record, grouped, make_segment


def spill(settings: Settings, rings: Sequence[Ring], database: bytes) -> int:
    """Writes what lies in rings in which nobody is -> how many orders. Raises OSError."""
    count = 0
    for ring in rings:
        items = list(in_order(ring))
        if items:
            write_items(make_journal_dir(settings), ring.epoch, items, database)
            count += len(items)
    return count


def write_items(directory: Path, epoch: int, items: Sequence[Item], database: bytes) -> Path:
    """A segment with what lay in the ring of that epoch, at least one item. Raises OSError."""
    now = time.time_ns()
    # Older than the segment itself: what is committed and only not released yet may be long known,
    # and must stay known (processors/retention.py).
    oldest_ns = min(now, *(item.accepted_ns for item in items))
    header = replace(own_header(epoch, database), serial=now, made_ns=oldest_ns)
    fd, path = make_segment(directory, header, grouped(now, map(record, items)))
    os.close(fd)
    return path


def record(item: Item) -> bytes:
    """The item as a segment has it."""
    header = DAMAGED_HEADER if item.damaged else item.header
    return encode_record(
        item.key,
        item.payload,
        header,
        sequence=item.sequence,
        accepted_ns=item.accepted_ns,
        round=item.round,
    )


def in_order(ring: Ring) -> Iterator[Item]:
    """All that lies in it: the hands by sequence, for they were taken first, then the slots."""
    snapshot = ring.snapshot()
    yield from sorted((item for _, item in snapshot.held), key=lambda item: item.sequence)
    yield from snapshot.waiting

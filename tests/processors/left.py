"""Segments of processes that are dead, and what a start makes of them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from processors.journal import journal_dir, own_header
from processors.known import database_id
from processors.recovery import Recovery
from processors.schema import Line, Order, encode_order
from processors.settings import JournalSettings, Settings
from ringbuf import Item, Segment, SegmentHeader
from ringbuf.segment import (
    PAGE_BYTES,
    encode_group,
    encode_record,
    grouped,
    make_segment,
)
from tests.processors.kit import House

LOST_EPOCH = 77
PAYLOAD = encode_order(Order("Funky Foods", [Line("A", 1000)], None, None))


def records(count: int, first: int = 0, round: int = 0) -> list[bytes]:
    return [
        encode_record(
            uuid4().bytes, PAYLOAD, sequence=number, accepted_ns=1000 + number, round=round
        )
        for number in range(first, first + count)
    ]


def header_of(house: House, epoch: int = LOST_EPOCH, **changes: object) -> SegmentHeader:
    now = time.time_ns()
    header = replace(own_header(epoch, database_id(house.store)), serial=now, made_ns=now)
    return replace(header, **changes)  # type: ignore[arg-type]


def write(
    settings: Settings, house: House, some: Sequence[bytes], header: SegmentHeader | None = None
) -> Path:
    """A segment of a process that is dead."""
    header = header or header_of(house, writer=1)
    fd, path = make_segment(journal_dir(settings), header, grouped(header.serial, some))
    os.close(fd)
    return path


def items(paths: Sequence[Path]) -> Iterator[Item]:
    for path in paths:
        with Segment.open(path) as segment:
            yield from segment.items()


def recovered(settings: Settings, house: House) -> Recovery:
    """Looked, and put back what fits."""
    recovery = Recovery(settings, house.ring, {house.ring.epoch})
    if not recovery.looked:
        recovery.look(house.store)
    recovery.step(0)
    return recovery


def waiting(house: House) -> list[tuple[bytes, int]]:
    return [(item.key, item.accepted_ns) for item in house.ring.snapshot().waiting]


def damaged_segment(settings: Settings, house: House) -> Path:
    """Three groups, the second one flipped after the third said that it was synced."""
    header, offset, groups = header_of(house, writer=1), PAGE_BYTES, list[bytes]()
    for number in range(3):
        group = encode_group(header.serial, offset, offset, records(2, first=10 * number))
        groups.append(group)
        offset += len(group)
    groups[1] = groups[1][:60] + bytes([groups[1][60] ^ 1]) + groups[1][61:]
    fd, path = make_segment(journal_dir(settings), header, groups)
    os.close(fd)
    return path


def replace_journal(settings: Settings, **changes: object) -> Settings:
    journal = JournalSettings(**changes)  # type: ignore[arg-type]
    return Settings(data_dir=settings.data_dir, database=settings.database, journal=journal)

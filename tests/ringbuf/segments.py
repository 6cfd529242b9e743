"""Segments as a writer leaves them, made without one: what lies where is known to the test."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ringbuf import Item, Segment, SegmentHeader
from ringbuf.segment import (
    GROUP,
    PAGE_BYTES,
    SEGMENT_BYTES_MIN,
    Damage,
    encode_group,
    encode_record,
)

HEADER = SegmentHeader(
    serial=0x1122334455667788,
    epoch=0x0102030405060708,
    boot_id=bytes(range(16)),
    database=bytes(range(16, 32)),
    writer=0x99AABBCC00000042,
    made_ns=1_700_000_000_123_456_789,
)


@dataclass(frozen=True)
class Order:
    """What a record holds."""

    payload: bytes
    key: bytes = bytes(16)
    header: bytes = b""
    sequence: int = 0
    accepted_ns: int = 0
    round: int = 0

    @classmethod
    def of(cls, item: Item) -> Order:
        assert not item.damaged
        return cls(item.payload, item.key, item.header, item.sequence, item.accepted_ns, item.round)

    def encode(self) -> bytes:
        return encode_record(
            self.key,
            self.payload,
            self.header,
            sequence=self.sequence,
            accepted_ns=self.accepted_ns,
            round=self.round,
        )


def order(number: int, payload_bytes: int = 8) -> Order:
    """Different from that of any other number."""
    name = number.to_bytes(8, "little")
    payload = random.Random(number).randbytes(payload_bytes)
    return Order(payload, name + name, name[:2], number, 10**18 + number, number % 3)


@dataclass(frozen=True)
class Place:
    """Where a group of an image is. `end`: of what is summed; `until`: of its pages."""

    at: int
    end: int
    until: int


class Image:
    """The bytes of a segment, each group written when the one before was synced."""

    def __init__(
        self,
        groups: Sequence[Sequence[Order]],
        size: int = SEGMENT_BYTES_MIN,
        serial: int = HEADER.serial,
    ) -> None:
        self.header = replace(HEADER, serial=serial)
        self.groups = [list(group) for group in groups]
        self.places: list[Place] = []
        data = self.header.encode()
        for group in self.groups:
            records = [one.encode() for one in group]
            at = len(data)
            data += encode_group(serial, at, at, records)
            end = at + GROUP.size + sum(map(len, records))
            self.places.append(Place(at, end, len(data)))
        self.data = data.ljust(size, b"\0")

    def orders(self, *without: int) -> list[Order]:
        """Of all groups but these."""
        kept = [group for n, group in enumerate(self.groups) if n not in without]
        return [one for group in kept for one in group]

    def write(self, directory: Path, data: bytes | bytearray | None = None) -> Path:
        path = directory / f"{self.header.serial:016x}.journal"
        path.write_bytes(self.data if data is None else data)
        return path


def read(path: Path) -> tuple[list[Order], list[Damage]]:
    """All that can be read, and the damage that was met."""
    with Segment.open(path) as segment:
        orders = [Order.of(item) for item in segment.items()]
        return orders, segment.damage


def heads(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Place, `synced` and records of each group of a whole segment, read from the bytes."""
    serial, at = SegmentHeader.decode(data[:PAGE_BYTES]).serial, PAGE_BYTES
    while at < len(data):
        found, offset, synced, length, count, _ = GROUP.unpack_from(data, at)
        if found != serial or offset != at:
            return
        yield at, synced, count
        at += -(-(GROUP.size + length) // PAGE_BYTES) * PAGE_BYTES


def flipped(data: bytes, *places: int) -> bytearray:
    """One bit of each of these bytes, another one for each."""
    changed = bytearray(data)
    for place in places:
        changed[place] ^= 1 << place % 8
    return changed

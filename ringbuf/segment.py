"""The journal's files: how they are laid out, made and read.

A segment is a file of a fixed size, filled with zeros and synced before it has its name, so that a
group written later changes neither size nor blocks of the file. One process writes it, from its
making to its end; nobody appends to what another left.

    page 0       header: whose it is, which ring's items it holds, of which database
    page 1..     groups, each written by one call and synced by one: a head, records, zeros up to
                 the next page. The head says where it lies, and up to where syncs had returned
                 when it was written

One group is under way at a time, so a crash may tear the last one and no other. Reading therefore
takes a bad page for the end, unless a good group behind it says that this place was synced: that is
damage, and is told apart from an end.

    what a page begins with         a good group follows that was written     taken for
                                    after this place was synced
    zeros, or anything else         no                                        the end
    zeros, or anything else         yes                                       damage; reads on there

A record is an item of a ring: sequence, key, round, accepted_ns, header, payload.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Self

from ringbuf._kernel import Item, crc32c

MAGIC: Final = b"RSHRJRNL"
LAYOUT: Final = 1
PAGE_BYTES: Final = 4096
SEGMENT_BYTES_MIN: Final = 16 * PAGE_BYTES
CHUNK_BYTES: Final = 2**20

HEADER: Final = struct.Struct("<8sIIQQ16s16sQQ")
GROUP: Final = struct.Struct("<QQQIII")  # the sum last, of all before it and of the records
RECORD: Final = struct.Struct("<IIQQ16sI")
SUM: Final = struct.Struct("<I")
SIZE: Final = SUM
OF_KEY: Final = struct.Struct("<II16x16s")


class SegmentError(Exception):
    """The file is no segment that this code can read; the text says what was found."""


@dataclass(frozen=True)
class SegmentHeader:
    """epoch: of the ring whose items it holds; writer: the process, as in ringbuf.participants;
    database: 16 bytes that name what the items are settled in; made_ns: since 1970."""

    serial: int
    epoch: int
    boot_id: bytes
    database: bytes
    writer: int
    made_ns: int

    def encode(self) -> bytes:
        """The first page."""
        head = HEADER.pack(
            MAGIC, LAYOUT, 0, self.serial, self.epoch, self.boot_id, self.database, self.writer,
            self.made_ns,
        )  # fmt: skip
        return (head + SUM.pack(crc32c(head))).ljust(PAGE_BYTES, b"\0")

    @classmethod
    def decode(cls, page: bytes) -> Self:
        """Raises SegmentError."""
        if page[: len(MAGIC)] != MAGIC:
            raise SegmentError(f"begins with {page[: len(MAGIC)]!r}, wanted {MAGIC!r}")
        if len(page) < PAGE_BYTES:
            raise SegmentError(f"{len(page)} bytes found, its header alone has {PAGE_BYTES}")
        head = page[: HEADER.size]
        _, layout, _, *fields = HEADER.unpack(head)
        if layout != LAYOUT:
            raise SegmentError(f"layout {layout} found, {LAYOUT} wanted")
        if SUM.unpack_from(page, HEADER.size)[0] != crc32c(head):
            raise SegmentError("its header is damaged: the checksum does not fit")
        return cls(*fields)


class Identity(NamedTuple):
    """What makes two records the same item."""

    key: bytes
    round: int


def encode_record(
    key: bytes,
    payload: bytes,
    header: bytes = b"",
    *,
    sequence: int,
    accepted_ns: int,
    round: int = 0,
) -> bytes:
    """One item, as it lies in a group."""
    size = RECORD.size + len(header) + len(payload)
    return RECORD.pack(size, round, sequence, accepted_ns, key, len(header)) + header + payload


def decode_record(data: bytes, at: int = 0) -> Item:
    """The item whose record begins there."""
    size, round_, sequence, accepted_ns, key, header_bytes = RECORD.unpack_from(data, at)
    header_at = at + RECORD.size
    payload_at = header_at + header_bytes
    return Item(
        data[payload_at : at + size],
        key,
        sequence=sequence,
        accepted_ns=accepted_ns,
        header=data[header_at:payload_at],
        round=round_,
    )


def encode_group(serial: int, offset: int, synced: int, records: list[bytes]) -> bytes:
    """A group of whole pages. `synced`: the offset up to which syncs of the segment returned."""
    body = b"".join(records)
    head = GROUP.pack(serial, offset, synced, len(body), len(records), 0)[: -SUM.size]
    total = SUM.pack(crc32c(body, crc32c(head)))
    return (head + total + body).ljust(pages(GROUP.size + len(body)), b"\0")


def pages(count: int) -> int:
    """That many bytes, rounded up to whole pages."""
    return -(-count // PAGE_BYTES) * PAGE_BYTES


def group_bytes(record_bytes: int) -> int:
    """What records of so many bytes together take in a segment."""
    return pages(GROUP.size + record_bytes)


def make_segment(
    directory: Path, header: SegmentHeader, parts: Iterable[bytes | memoryview], size: int = 0
) -> tuple[int, Path]:
    """-> descriptor and path of a new segment with these parts behind its header, synced, its name
    too. `size`: bytes to allocate first. Raises OSError, FileExistsError for a serial that is
    taken, and then leaves nothing."""
    path = directory / f"{header.serial:016x}.journal"
    half = name = path.with_suffix(".new")
    fd = os.open(half, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        # Another's, made before; nobody else makes it now, for he would have the name that is ours.
        if path.exists() or path.with_suffix(".sealed").exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        # First, so that one with any room tells whose it is: who dies here leaves it to be removed.
        write_all(fd, header.encode(), 0)
        if size:
            os.posix_fallocate(fd, 0, size)
        offset = PAGE_BYTES
        for part in parts:
            write_all(fd, part, offset)
            offset += len(part)
        os.fsync(fd)
        half.rename(path)
        name = path
        sync_directory(directory)
    except BaseException:
        os.close(fd)
        name.unlink(missing_ok=True)
        raise
    return fd, path


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """All of it, or OSError."""
    left = memoryview(data)
    while left:
        written = os.pwrite(fd, left, offset)
        left, offset = left[written:], offset + written


def sync_directory(directory: Path) -> None:
    """Makes names that were given or taken there last."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@dataclass(frozen=True)
class Damage:
    """Bytes from `at` to `until` were synced and are no longer what was written."""

    at: int
    until: int


class Group(NamedTuple):
    """A good group: where its pages are, and its records."""

    at: int
    until: int
    records: int
    body: bytes

    def items(self) -> Iterator[Item]:
        """In the order of writing."""
        return (decode_record(self.body, place) for place in self._places())

    def identities(self) -> list[Identity]:
        """The same, without the rest."""
        found = []
        for place in self._places():
            _, round_, key = OF_KEY.unpack_from(self.body, place)
            found.append(Identity(key, round_))
        return found

    def _places(self) -> Iterator[int]:
        place = 0
        for _ in range(self.records):
            yield place
            place += SIZE.unpack_from(self.body, place)[0]
        assert place == len(self.body), "the sum was good, so the sizes are"


class Segment:
    """A segment to be read, group by group. What its writer appends meanwhile may be seen or not.

    Not mapped: a page that can't be read would be SIGBUS, where a read is an OSError.
    """

    def __init__(self, path: Path, header: SegmentHeader, fd: int) -> None:
        self.path = path
        self.header = header
        self.damage: list[Damage] = []  # what `groups` has met
        self._fd = fd
        self._size = os.fstat(fd).st_size

    @classmethod
    def open(cls, path: Path) -> Self:
        """Raises SegmentError, and OSError, FileNotFoundError among them."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return cls(path, SegmentHeader.decode(os.pread(fd, PAGE_BYTES, 0)), fd)
        except SegmentError as error:
            os.close(fd)
            raise SegmentError(f"{path}: {error}") from None
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        """What was read stays good."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def items(self) -> Iterator[Item]:
        """All that can be read, in the order of writing; `damage` is complete after the last."""
        for group in self.groups():
            yield from group.items()

    def groups(self, offset: int = PAGE_BYTES) -> Iterator[Group]:
        """Every good group from that page on."""
        while True:
            group = self._group(offset)
            if group is None:
                group = self._next_good(offset)
                if group is None:
                    return
                # Its writer may have come this far between the two looks; then it is whole now.
                written = self._group(offset)
                if written is None:
                    self.damage.append(Damage(offset, group.at))
                else:
                    group = written
            yield group
            offset = group.until

    def _group(self, at: int, after: int = -1) -> Group | None:
        """The good group that begins there, if syncs had returned beyond `after`."""
        head = os.pread(self._fd, GROUP.size, at)
        if len(head) < GROUP.size:
            return None
        serial, offset, synced, length, count, total = GROUP.unpack(head)
        until = at + group_bytes(length)
        if serial != self.header.serial or offset != at or synced <= after or until > self._size:
            return None
        body = os.pread(self._fd, length, at + GROUP.size)
        if crc32c(body, crc32c(head[: -SUM.size])) != total:
            return None
        return Group(at, until, count, body)

    def _next_good(self, bad: int) -> Group | None:
        """The next good group that was written after this bad place was synced."""
        for at in range(bad + PAGE_BYTES, self._size, PAGE_BYTES):
            group = self._group(at, bad)
            if group is not None:
                return group
        return None


def segment_paths(directory: Path) -> list[Path]:
    """Every segment there, the oldest serial first; none if there is no such directory.

    Raises OSError if the directory can't be read, where a glob would find nothing. Looks twice, so
    that one that is being sealed is found twice rather than not at all.
    """
    try:
        found = [
            path
            for suffix in (".journal", ".sealed")
            for path in directory.iterdir()
            if path.suffix == suffix
        ]
    except FileNotFoundError:
        return []
    return sorted(found, key=lambda path: path.stem)


def half_made(directory: Path) -> list[Path]:
    """What is being made, or was when its process died."""
    return list(directory.glob("*.new"))


def remove_half_made(directory: Path) -> None:
    """Nobody may be making one now."""
    for half in half_made(directory):
        half.unlink(missing_ok=True)


def zeros(size: int) -> Iterator[memoryview]:
    """What fills a segment of that size behind its header."""
    some = memoryview(bytes(CHUNK_BYTES))
    for at in range(PAGE_BYTES, size, CHUNK_BYTES):
        yield some[: min(CHUNK_BYTES, size - at)]


def grouped(serial: int, records: Iterable[bytes]) -> Iterator[bytes]:
    """Groups of about CHUNK_BYTES for a segment that has its name only when all of it is synced.

    Each says so of what lies before it, and an empty one of the last: none can be taken for torn.
    """
    offset, some, size = PAGE_BYTES, list[bytes](), 0
    for record in records:
        some.append(record)
        size += len(record)
        if size >= CHUNK_BYTES:
            group = encode_group(serial, offset, offset, some)
            yield group
            offset, some, size = offset + len(group), [], 0
    if some:
        group = encode_group(serial, offset, offset, some)
        yield group
        offset += len(group)
    yield encode_group(serial, offset, offset, [])

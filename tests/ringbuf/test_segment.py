"""Segments: what was written and synced is read, or is said to be damaged; nothing else is read."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringbuf import Segment, SegmentError
from ringbuf._kernel import crc32c
from ringbuf.segment import (
    CHUNK_BYTES,
    GROUP,
    HEADER,
    PAGE_BYTES,
    RECORD,
    SEGMENT_BYTES_MIN,
    SUM,
    Damage,
    Group,
    encode_group,
    grouped,
    make_segment,
    segment_paths,
)
from tests.ringbuf import corruption
from tests.ringbuf.segments import HEADER as HEAD
from tests.ringbuf.segments import Image, Order, flipped, heads, order, read

SECTOR_BYTES = 512
SLOT_PAYLOAD_MAX = 16384 - 64
# Of a known segment: where these bytes are. All others are zeros.
GOLDEN = {
    0: "525348524a524e4c 01000000 00000000 8877665544332211 0807060504030201"
    "000102030405060708090a0b0c0d0e0f 101112131415161718191a1b1c1d1e1f 42000000ccbbaa99"
    "15cd853dfe9c9717 57cb2b23",
    4096: "8877665544332211 0010000000000000 0010000000000000 62000000 02000000 8cf24ded"
    "35000000 03000000 0500000000000000 00cac471fe9c9717 a0a1a2a3a4a5a6a7a8a9aaabacadaeaf 02000000"
    "4844 5041594c4f4144"
    "2d000000 00000000 0000000000000000 0000000000000000 b0b1b2b3b4b5b6b7b8b9babbbcbdbebf 00000000"
    "78",
    8192: "8877665544332211 0020000000000000 0020000000000000 35000000 01000000 2ba840b5"
    "35000000 03000000 0500000000000000 00cac471fe9c9717 a0a1a2a3a4a5a6a7a8a9aaabacadaeaf 02000000"
    "4844 5041594c4f4144",
}
THREE = [[order(0), order(1)], [order(2, 4500), order(3, 1), order(4)], [order(5)]]

orders = st.builds(
    Order,
    payload=st.binary(min_size=1, max_size=300)
    | st.integers(1, 20_000).map(lambda n: order(n, n).payload),
    key=st.binary(min_size=16, max_size=16),
    header=st.binary(max_size=64),
    sequence=st.integers(0, 2**64 - 1),
    accepted_ns=st.integers(0, 2**64 - 1),
    round=st.integers(0, 2**32 - 1),
)
with_a_directory = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60
)


# ---- what is written is read ---------------------------------------------------------------------


@given(groups=st.lists(st.lists(orders, max_size=6), max_size=5))
@with_a_directory
def test_any_groups_of_any_orders_are_read_as_they_were_written(
    ring_dir: Path, groups: list[list[Order]]
) -> None:
    image = Image(groups)
    path = image.write(ring_dir)
    assert read(path) == (image.orders(), [])
    with Segment.open(path) as segment:
        assert segment.header == HEAD
        found = [(one.at, one.until, one.records) for one in segment.groups()]
        names = [name for one in segment.groups() for name in one.identities()]
    wanted = zip(image.places, groups, strict=True)
    assert found == [(place.at, place.until, len(group)) for place, group in wanted]
    assert names == [(one.key, one.round) for one in image.orders()]


def test_the_layout_is_what_it_was(ring_dir: Path) -> None:
    first = Order(b"PAYLOAD", bytes(range(0xA0, 0xB0)), b"HD", 5, 1_700_000_001_000_000_000, 3)
    second = Order(b"x", bytes(range(0xB0, 0xC0)))
    image = Image([[first, second], [first]])
    golden = bytearray(SEGMENT_BYTES_MIN)
    for at, text in GOLDEN.items():
        data = bytes.fromhex(text)
        golden[at : at + len(data)] = data
    assert image.data == golden
    assert read(image.write(ring_dir, golden)) == ([first, second, first], [])


@pytest.mark.parametrize("payload_bytes", [1, 2, 63, 511, 4095, 4096, 8192, SLOT_PAYLOAD_MAX])
def test_a_record_of_any_size_of_a_slot_is_read(ring_dir: Path, payload_bytes: int) -> None:
    image = Image([[order(0, payload_bytes)], [order(1)], [order(2, payload_bytes)]])
    assert read(image.write(ring_dir)) == (image.orders(), [])


@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_a_group_that_fills_its_page_needs_no_other(ring_dir: Path, beyond: int) -> None:
    payload_bytes = PAGE_BYTES - GROUP.size - RECORD.size - 2 + beyond  # 2: the order's header
    image = Image([[order(0, payload_bytes)], [order(1)]])
    assert image.places[0].end == 2 * PAGE_BYTES + beyond
    assert image.places[0].until == 2 * PAGE_BYTES + (PAGE_BYTES if beyond > 0 else 0)
    assert read(image.write(ring_dir)) == (image.orders(), [])


def test_the_last_group_may_end_where_the_file_ends(ring_dir: Path) -> None:
    image = Image([[order(n, 100)] for n in range(14)] + [[order(14, 3000)]])
    assert image.places[-1].until == SEGMENT_BYTES_MIN == len(image.data)
    assert read(image.write(ring_dir)) == (image.orders(), [])
    assert read(image.write(ring_dir, image.data[:-1])) == (image.orders(14), [])


def test_a_group_is_read_from_any_page_on(ring_dir: Path) -> None:
    image = Image(THREE)
    with Segment.open(image.write(ring_dir)) as segment:
        for n, place in enumerate(image.places):
            assert [one.at for one in segment.groups(place.at)] == [
                one.at for one in image.places[n:]
            ]


# ---- torn, damaged, stale ------------------------------------------------------------------------


def test_a_last_group_that_was_cut_off_anywhere_is_the_end_and_loses_itself_alone(
    ring_dir: Path,
) -> None:
    image = Image([*THREE, [order(6, 9000), order(7, 600)]])
    last = image.places[-1]
    assert last.until - last.at == 3 * PAGE_BYTES
    for cut in range(last.at, last.until + 1, SECTOR_BYTES):
        torn = image.data[:cut].ljust(len(image.data), b"\0")
        lost = [3] if cut < last.end else []
        assert read(image.write(ring_dir, torn)) == (image.orders(*lost), []), f"cut at {cut}"


def test_a_last_group_of_which_any_sectors_were_written_is_the_end_or_whole(ring_dir: Path) -> None:
    image = Image([*THREE, [order(6, 9000), order(7, 600)]])
    last, chance = image.places[-1], random.Random(6)
    sectors = range(last.at, last.until, SECTOR_BYTES)
    for _ in range(300):
        data = bytearray(image.data)
        missing = chance.sample(sectors, chance.randrange(1, 4))
        for at in missing:
            data[at : at + SECTOR_BYTES] = bytes(SECTOR_BYTES)
        lost = [3] if min(missing) < last.end else []
        assert read(image.write(ring_dir, data)) == (image.orders(*lost), []), missing


def test_a_flipped_bit_in_a_group_that_was_synced_is_damage_and_the_rest_is_read(
    ring_dir: Path,
) -> None:
    image = Image(THREE)
    path, (_, middle, last) = image.write(ring_dir), image.places
    fd = os.open(path, os.O_WRONLY)
    for at in range(middle.at, middle.until):
        os.pwrite(fd, flipped(image.data, at)[at : at + 1], at)
        summed = at < middle.end
        lost, damage = ([1], [Damage(middle.at, last.at)]) if summed else ([], [])
        assert read(path) == (image.orders(*lost), damage), f"byte {at}"
        os.pwrite(fd, image.data[at : at + 1], at)
    os.close(fd)


def test_what_its_writer_appends_between_two_looks_is_no_damage(
    ring_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image(THREE)
    path = image.write(ring_dir, image.data[: image.places[1].at].ljust(len(image.data), b"\0"))
    inner = Segment._next_good

    def after_writing(segment: Segment, bad: int) -> Group | None:
        image.write(ring_dir)
        return inner(segment, bad)

    monkeypatch.setattr(Segment, "_next_good", after_writing)
    assert read(path) == (image.orders(), [])


def test_a_flipped_bit_in_the_last_group_is_the_end(ring_dir: Path) -> None:
    image = Image(THREE)
    last = image.places[-1]
    for at in range(last.at, last.end):
        assert read(image.write(ring_dir, flipped(image.data, at))) == (image.orders(2), [])


def test_a_flipped_bit_in_a_group_of_nothing_is_damage_too(ring_dir: Path) -> None:
    image = Image([[order(0)], [], [order(1)]])
    _, middle, last = image.places
    for at in range(middle.at, middle.end):
        found = read(image.write(ring_dir, flipped(image.data, at)))
        assert found == (image.orders(), [Damage(middle.at, last.at)])


@pytest.mark.parametrize(
    ("bad", "extents"),
    [
        ((0,), [(0, 1)]),
        ((0, 1), [(0, 2)]),
        ((1, 2, 3), [(1, 4)]),
        ((0, 2), [(0, 1), (2, 3)]),
        ((1, 3, 5), [(1, 2), (3, 4)]),  # the last is taken for torn
        ((0, 1, 2, 3, 4, 5), []),
    ],
)
def test_damage_reaches_from_the_first_bad_group_to_the_next_good_one(
    ring_dir: Path, bad: tuple[int, ...], extents: list[tuple[int, int]]
) -> None:
    image = Image([[order(n, 5000), order(n + 10)] for n in range(6)])
    at = [place.at for place in image.places]
    data = flipped(image.data, *(image.places[n].end - 1 for n in bad))
    damage = [Damage(at[first], at[until]) for first, until in extents]
    assert read(image.write(ring_dir, data)) == (image.orders(*bad), damage)


def test_a_later_group_that_does_not_say_this_place_was_synced_proves_nothing(
    ring_dir: Path,
) -> None:
    image = Image(THREE)
    _, middle, last = image.places
    group = encode_group(HEAD.serial, last.at, middle.at, [order(5).encode()])
    data = flipped(image.data, middle.at)
    data[last.at : last.until] = group
    assert read(image.write(ring_dir, data)) == (image.orders(1, 2), [])


def test_what_another_segment_or_another_place_left_is_not_read(ring_dir: Path) -> None:
    image, other = Image(THREE[:1]), Image([[order(n)] for n in range(9)], serial=7)
    behind = image.places[-1].until
    stale = image.data[:behind] + other.data[behind:]
    assert read(image.write(ring_dir, stale)) == (image.orders(), [])
    first = image.data[PAGE_BYTES:behind]
    moved = image.data[:behind] + first + first
    assert read(image.write(ring_dir, moved)) == (image.orders(), [])


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", r"begins with b'', wanted b'RSHRJRNL'"),
        (b"SQLite f" * 1000, r"begins with b'SQLite f', wanted b'RSHRJRNL'"),
        (bytes(8192), r"begins with b'\\x00.*', wanted b'RSHRJRNL'"),
        (HEAD.encode()[:8], "8 bytes found, its header alone has 4096"),
        (HEAD.encode()[:-1], "4095 bytes found, its header alone has 4096"),
        (HEAD.encode().replace(b"\1", b"\2", 1), "layout 2 found, 1 wanted"),
        (bytes(flipped(HEAD.encode(), 30)), "its header is damaged: the checksum does not fit"),
    ],
)
def test_what_is_no_segment_is_refused_with_what_was_found(
    ring_dir: Path, data: bytes, said: str
) -> None:
    path = ring_dir / "it.journal"
    path.write_bytes(data)
    with pytest.raises(SegmentError, match=f"{path}: {said}"):
        Segment.open(path)


def test_a_flipped_bit_anywhere_in_the_header_is_noticed(ring_dir: Path) -> None:
    image = Image(THREE)
    for at in range(HEADER.size + SUM.size):
        with pytest.raises(SegmentError):
            Segment.open(image.write(ring_dir, flipped(image.data, at)))
    padding = flipped(image.data, *range(HEADER.size + SUM.size, PAGE_BYTES))
    assert read(image.write(ring_dir, padding)) == (image.orders(), [])


def test_what_is_not_there_or_no_file_is_an_oserror(ring_dir: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Segment.open(ring_dir / "none.journal")
    with pytest.raises(IsADirectoryError):
        Segment.open(ring_dir)


# ---- directories ---------------------------------------------------------------------------------


def test_segments_are_listed_by_their_serial_whoever_sealed_them(ring_dir: Path) -> None:
    assert segment_paths(ring_dir / "none") == []
    names = [f"{n:016x}.{kind}" for n, kind in ((9, "sealed"), (10, "journal"), (2**63, "sealed"))]
    for name in [*reversed(names), "0000000000000001.new", "0000000000000002.damaged", "notes"]:
        (ring_dir / name).touch()
    assert [path.name for path in segment_paths(ring_dir)] == names


def test_a_directory_that_can_not_be_listed_is_not_taken_for_an_empty_one(ring_dir: Path) -> None:
    file = ring_dir / "journal"
    file.touch()
    with pytest.raises(NotADirectoryError):
        segment_paths(file)


# ---- segments that are synced as a whole ---------------------------------------------------------


def spilled(directory: Path, count: int) -> tuple[list[Order], Path]:
    made = [order(n, 15_000) for n in range(count)]
    fd, path = make_segment(directory, HEAD, grouped(HEAD.serial, (one.encode() for one in made)))
    os.close(fd)
    return made, path


@pytest.mark.parametrize("count", [0, 1, 2, 200])
def test_what_is_spilled_is_read_whatever_it_is(ring_dir: Path, count: int) -> None:
    made, path = spilled(ring_dir, count)
    assert read(path) == (made, [])
    sizes = [group[2] for group in heads(path.read_bytes())]
    assert sum(sizes) == count
    assert all(size * 15_000 < 2 * CHUNK_BYTES for size in sizes)


@pytest.mark.parametrize("count", [1, 200])
def test_damage_to_any_group_of_what_was_spilled_is_noticed(ring_dir: Path, count: int) -> None:
    made, path = spilled(ring_dir, count)
    whole = path.read_bytes()
    groups = list(heads(whole))
    assert len(groups) > count // 100
    first = 0
    for n, (at, _, records) in enumerate(groups[:-1]):
        path.write_bytes(flipped(whole, at + GROUP.size))
        left = made[:first] + made[first + records :]
        assert read(path) == (left, [Damage(at, groups[n + 1][0])])
        first += records
    path.write_bytes(flipped(whole, groups[-1][0]))  # the mark at the end holds nothing
    assert read(path) == (made, [])


# ---- scribbled files -----------------------------------------------------------------------------


def scribble(chance: random.Random, data: bytes, other: bytes) -> bytes:
    """Changes that a disk, a copy or a person may make."""
    changed = bytearray(data)
    for _ in range(chance.randrange(1, 4)):
        at, until = sorted(chance.choices(range(len(changed) + 1), k=2))
        page = chance.randrange(len(changed) // PAGE_BYTES + 1) * PAGE_BYTES
        match chance.randrange(8):
            case 0 | 1:
                place = chance.randrange(len(changed)) % (6 * PAGE_BYTES)
                changed[place] ^= 1 << chance.randrange(8)
            case 2:
                changed[at:until] = bytes(until - at)
            case 3:
                changed[page : page + SECTOR_BYTES] = chance.randbytes(SECTOR_BYTES)
            case 4 if page:
                changed[page : page + PAGE_BYTES] = other[page : page + PAGE_BYTES]
            case 5:
                to = chance.randrange(1, 16) * PAGE_BYTES
                changed[to : to + 2 * PAGE_BYTES] = changed[page : page + 2 * PAGE_BYTES]
            case 6:
                del changed[max(at, PAGE_BYTES) :]
            case 7:
                changed[page + 24 : page + 28] = chance.randbytes(4)  # a group's length
        changed = changed or bytearray(1)
    return bytes(changed.ljust(6 * PAGE_BYTES, b"\0")) if chance.random() < 0.5 else bytes(changed)


def check_scribbled(directory: Path, seed: int) -> str:
    """-> what was found. Whatever is whole is read, and all else is not."""
    chance = random.Random(seed)
    groups = [
        [order(n * 100 + k, chance.choice([1, 50, 3000, 9000])) for k in range(chance.randrange(4))]
        for n in range(chance.randrange(1, 7))
    ]
    image = Image(groups, size=32 * PAGE_BYTES)
    other = Image([[order(10_000 + n)] for n in range(30)], 32 * PAGE_BYTES, serial=9)
    data = scribble(chance, image.data, other.data)
    path = image.write(directory, data)
    try:
        found, damage = read(path)
    except SegmentError:
        assert data[:PAGE_BYTES] != image.data[:PAGE_BYTES]
        return "refused"
    whole = [
        n
        for n, place in enumerate(image.places)
        if data[place.at : place.end] == image.data[place.at : place.end]
        and place.until <= len(data)
    ]
    bad = [n for n in range(len(groups)) if n not in whole]
    assert found == image.orders(*bad)
    seen = [n for n in bad if any(one.at <= image.places[n].at < one.until for one in damage)]
    assert seen == [n for n in bad if whole and n < whole[-1]]
    return "damaged" if damage else "torn" if bad else "whole"


def check_all_scribbled(directory: Path, first: int, count: int) -> Counter[str]:
    counts: Counter[str] = Counter()
    for seed in range(first, first + count):
        try:
            counts[check_scribbled(directory, seed)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
    return counts


def test_of_scribbled_files_only_what_is_whole_is_read(ring_dir: Path) -> None:
    counts = check_all_scribbled(ring_dir, 0, 2000)
    assert min(counts[name] for name in ("refused", "damaged", "torn", "whole")) > 20, counts


@pytest.mark.prove
def test_of_many_scribbled_files_only_what_is_whole_is_read(ring_dir: Path) -> None:
    counts = check_all_scribbled(ring_dir, 2000, 20_000)
    print("\nscribbled segments: " + ", ".join(f"{n:,} {name}" for name, n in counts.most_common()))


# ---- the checksum --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "total"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_the_sum_is_castagnolis_as_published(data: bytes, total: int) -> None:
    assert crc32c(data) == total


def test_the_sum_is_the_same_for_any_length_at_any_place() -> None:
    data = random.Random(1).randbytes(3 * 8 * 42 * 2 + 100)
    view, crc = memoryview(data), 0xFFFF_FFFF
    for length, byte in enumerate(data):
        assert crc32c(view[:length]) == crc ^ 0xFFFF_FFFF
        crc = crc >> 8 ^ corruption.CRC_TABLE[(crc ^ byte) & 0xFF]
    for at in range(17):
        assert crc32c(view[at:]) == corruption.crc32c(data[at:]) ^ 0xFFFF_FFFF


@given(data=st.binary(max_size=3000), cut=st.integers(0, 3000))
def test_a_sum_can_be_taken_part_by_part(data: bytes, cut: int) -> None:
    assert crc32c(data[cut:], crc32c(data[:cut])) == crc32c(data)


def test_only_bytes_can_be_summed() -> None:
    for wrong in ("text", 7, None, memoryview(bytes(64))[::2]):
        with pytest.raises((TypeError, BufferError)):
            crc32c(wrong)  # type: ignore[arg-type]

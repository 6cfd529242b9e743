"""The disk of the power-loss proof, against small stories whose possible ends are known."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.power.disk import EVERYTHING, NOTHING, Choice, Disk, boundaries, choices
from tests.crash.power.recording import Event, build_recorder, environ, read_events

PROGRAM = """
import os, sys
folder = sys.argv[1]
def put(name, content, sync=True):
    fd = os.open(f"{folder}/{name}", os.O_CREAT | os.O_RDWR, 0o600)
    os.pwrite(fd, content, 0)
    if sync:
        os.fsync(fd)
    return fd
def sync_folder():
    fd = os.open(folder, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
"""
HOLE, X = bytes(512), b"x" * 512

Images = list[dict[str, bytes]]
Ends = Callable[[str], Images]


@pytest.fixture(scope="session")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_recorder(tmp_path_factory.mktemp("recorder"))


@pytest.fixture
def ends(recorder: Path, tmp_path: Path) -> Ends:
    """Runs a story; -> images at its end."""

    def run(text: str) -> Images:
        under, into = tmp_path / "under", tmp_path / "into"
        under.mkdir()
        into.mkdir()
        subprocess.run(
            [sys.executable, "-c", PROGRAM + text, str(under)],
            env={**os.environ, **environ(recorder, under, into)}, check=True,
        )  # fmt: skip
        *_, (_, disk) = boundaries(read_events(into), str(under))
        return [disk.image(choice) for choice in choices(1, 200)]

    return run


def of_a(images: Images) -> set[bytes]:
    return {image["a"] for image in images}


def test_what_was_synced_under_a_synced_name_is_there(ends: Ends) -> None:
    found = ends("put('a', b'x' * 1000); sync_folder()")
    assert all(image == {"a": b"x" * 1000} for image in found)


def test_a_name_is_not_there_for_certain_before_its_directory_is_synced(ends: Ends) -> None:
    found = ends("put('a', b'x')")
    assert {tuple(image.items()) for image in found} == {(), (("a", b"x"),)}


def test_without_a_sync_any_sector_may_be_there(ends: Ends) -> None:
    found = ends("put('a', b'x' * 1024, sync=False); sync_folder()")
    assert of_a(found) == {b"", X, HOLE + X, X + X}


def test_a_later_write_may_be_there_without_an_earlier_one(ends: Ends) -> None:
    text = "fd = put('a', bytes(8)); sync_folder(); os.pwrite(fd, b'1', 0); os.pwrite(fd, b'2', 4)"
    one, other = b"1" + bytes(7), bytes(4) + b"2" + bytes(3)
    both = b"1" + bytes(3) + b"2" + bytes(3)
    assert of_a(ends(text)) == {bytes(8), one, other, both}


def test_a_sync_reaches_only_what_was_written_before_it(ends: Ends) -> None:
    found = ends("fd = put('a', b'old'); sync_folder(); os.pwrite(fd, b'new', 0)")
    assert of_a(found) == {b"old", b"new"}


def test_names_come_in_their_order(ends: Ends) -> None:
    story = "put('a', b'1'); sync_folder(); os.rename(f'{folder}/a', f'{folder}/b')"
    found = ends(f"{story}; os.unlink(f'{{folder}}/b')")
    assert {tuple(image) for image in found} == {("a",), ("b",), ()}


def test_a_removed_file_keeps_its_content_when_its_number_comes_round_again(ends: Ends) -> None:
    story = "os.close(put('a', b'first')); sync_folder(); os.unlink(f'{folder}/a')"
    found = ends(f"{story}; put('b', b'second')")
    assert {tuple(image.items()) for image in found} == {
        (("a", b"first"),), (), (("b", b"second"),),
    }  # fmt: skip


def test_a_file_grows_and_shrinks_as_it_was_told(ends: Ends) -> None:
    story = "fd = put('a', b'12345678'); sync_folder(); os.ftruncate(fd, 4); os.fsync(fd)"
    found = ends(f"{story}; os.posix_fallocate(fd, 0, 6)")
    assert of_a(found) == {b"1234", b"1234\0\0"}


def test_an_answer_is_found_in_what_is_sent(recorder: Path, tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    ids = [f"018f0000-0000-7000-8000-00000000000{number}" for number in range(2)]
    told = "".join(f"HTTP/1.1 202 Accepted|location: /orders/{one}||" for one in ids)
    text = f"import os; os.write(2, b'{told}'.replace(b'|', bytes([13, 10])))"
    subprocess.run(
        [sys.executable, "-c", text], stderr=subprocess.DEVNULL, check=True,
        env={**os.environ, **environ(recorder, tmp_path / "under", into)},
    )  # fmt: skip
    assert [event.path for event in read_events(into)] == ids


CREATE = Event(1, 2, "create", 7, 1, 0, b"/d/a", b"")


def at_the_end(*events: Event) -> Disk:
    *_, (_, disk) = boundaries([CREATE, *events, Event(18, 19, "sync", 1, 0, 0, b"", b"")], "/d")
    return disk


def test_a_failed_sync_keeps_nothing() -> None:
    write = Event(3, 4, "write", 7, 0, 0, b"x", b"")
    disk = at_the_end(write, Event(5, 6, "sync", 7, 0, -1, b"", b""))
    assert disk.image(NOTHING) == {"a": b""}
    assert disk.image(EVERYTHING) == {"a": b"x"}


def test_a_write_that_had_not_returned_when_the_sync_began_may_be_lost() -> None:
    write = Event(3, 6, "write", 7, 0, 0, b"x", b"")
    disk = at_the_end(write, Event(5, 7, "sync", 7, 0, 0, b"", b""))
    assert disk.image(NOTHING) == {"a": b""}


def test_an_image_is_the_same_again() -> None:
    disk = at_the_end(Event(3, 4, "write", 7, 0, 0, bytes(range(256)) * 64, b""))
    torn = Choice(seed=3, share=0.5, sector=512, names_share=1.0)
    assert disk.image(torn) == disk.image(torn)
    assert disk.image(torn) != disk.image(EVERYTHING)


def test_a_directorys_sync_keeps_its_own_names_and_no_others() -> None:
    made = Event(3, 4, "mkdir", 9, 1, 0, b"/d/sub", b"")
    inside = Event(5, 6, "create", 8, 9, 0, b"/d/sub/b", b"")
    assert at_the_end(made, inside).image(NOTHING) == {"a": b""}
    both = at_the_end(made, inside, Event(7, 8, "sync", 9, 0, 0, b"", b""))
    assert both.image(NOTHING) == {"a": b"", "sub/b": b""}


def test_what_is_in_a_directory_is_there_only_if_that_is() -> None:
    made = Event(3, 4, "mkdir", 9, 1, 0, b"/d/sub", b"")
    inside = Event(5, 6, "create", 8, 9, 0, b"/d/sub/b", b"")
    synced = Event(7, 8, "sync", 9, 0, 0, b"", b"")
    *_, (_, disk) = boundaries([CREATE, made, inside, synced], "/d")
    assert disk.image(NOTHING) == {}
    assert disk.image(EVERYTHING) == {"a": b"", "sub/b": b""}


def test_names_of_calls_that_overlap_are_kept_each_for_itself() -> None:
    slow = Event(3, 9, "unlink", 0, 1, 0, b"/d/a", b"")
    fast = Event(4, 5, "create", 8, 1, 0, b"/d/b", b"")
    begun = Event(0, 0, "create", 7, 1, 0, b"/d/a", b"")
    synced = [Event(at, at + 1, "sync", 1, 0, 0, b"", b"") for at in (1, 6)]
    *_, (_, disk) = boundaries([begun, slow, fast, *synced], "/d")
    assert disk.image(NOTHING) == {"a": b"", "b": b""}
    assert disk.image(EVERYTHING) == {"b": b""}

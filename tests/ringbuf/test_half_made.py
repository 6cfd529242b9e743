"""A segment that can't be made leaves nothing, wherever it fails."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ringbuf import Segment, SegmentHeader, segment
from ringbuf.segment import half_made, make_segment, segment_paths, zeros
from tests.ringbuf.nursery import ROOT

HEADER = SegmentHeader(
    serial=7, epoch=1, boot_id=bytes(16), database=bytes(16), writer=1, made_ns=0
)
SIZE = 65536
# In this order, some more than once.
CALLS = ("open", "stat", "posix_fallocate", "pwrite", "fsync", "rename", "close")


@contextmanager
def at_call(number: int, act: Callable[[], None]) -> Iterator[list[str]]:
    """Acts in the place of the system call of that number, counted from 1 -> the calls so far."""
    made: list[str] = []
    real = {name: getattr(os, name) for name in CALLS}

    def counted(name: str) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            made.append(name)
            if len(made) == number:
                if name == "close":  # it is closed all the same
                    real[name](*args)
                act()
            return real[name](*args, **more)

        return call

    for name in CALLS:
        setattr(os, name, counted(name))
    try:
        yield made
    finally:
        for name, call in real.items():
            setattr(os, name, call)


def make(directory: Path) -> None:
    fd, _ = make_segment(directory, HEADER, zeros(SIZE), SIZE)
    os.close(fd)


def calls_of_a_whole_one(directory: Path) -> list[str]:
    with at_call(0, lambda: None) as made:
        fd, path = make_segment(directory, HEADER, zeros(SIZE), SIZE)
    os.close(fd)
    path.unlink()
    assert set(made) == set(CALLS)
    return made


def die_at_each_call(directory: Path) -> list[list[str]]:
    """In a process without threads -> the names that are left for each call."""
    left = []
    for number in range(1, len(calls_of_a_whole_one(directory)) + 1):
        own = directory / str(number)
        own.mkdir()
        child = os.fork()
        if child == 0:
            with at_call(number, lambda: os.kill(os.getpid(), signal.SIGKILL)):
                make(own)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status), f"call {number} is none"
        left.append([path.name for path in own.iterdir()])
    return left


def test_who_dies_at_any_system_call_leaves_a_whole_one_or_one_without_a_name(
    tmp_path: Path,
) -> None:
    code = "import sys, json, pathlib; from tests.ringbuf.test_half_made import die_at_each_call; "
    code += "print(json.dumps(die_at_each_call(pathlib.Path(sys.argv[1]))))"
    words = [sys.executable, "-c", code, str(tmp_path)]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True, timeout=100)
    left = json.loads(ran.stdout)
    stem = f"{HEADER.serial:016x}"
    assert left[0] == []
    assert left[1] == [f"{stem}.new"]
    assert left[-1] == [f"{stem}.journal"]
    for number, names in enumerate(left, 1):
        for path in segment_paths(tmp_path / str(number)):
            assert names == [path.name]
            assert path.read_bytes() == HEADER.encode().ljust(SIZE, b"\0")
            with Segment.open(path) as one:
                assert list(one.items()) == []
        for path in half_made(tmp_path / str(number)):
            if path.stat().st_size:
                with Segment.open(path) as one:
                    assert one.header == HEADER


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failure_of_any_system_call_leaves_nothing(tmp_path: Path, number: int) -> None:
    def fail() -> None:
        raise OSError(number, os.strerror(number))

    for at, name in enumerate(calls_of_a_whole_one(tmp_path), 1):
        if name == "stat" and number == errno.ENOSPC:
            continue  # it has no such error
        with at_call(at, fail), pytest.raises(OSError, match=os.strerror(number)):
            make(tmp_path)
        assert not list(tmp_path.iterdir()), f"call {at}, {name}"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO])
def test_a_directory_that_can_not_be_synced_leaves_no_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(_directory: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(segment, "sync_directory", fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        make_segment(tmp_path, HEADER, zeros(SIZE), SIZE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".journal", ".sealed"])
def test_a_serial_that_is_taken_overwrites_nothing(tmp_path: Path, suffix: str) -> None:
    fd, path = make_segment(tmp_path, HEADER, zeros(SIZE), SIZE)
    os.pwrite(fd, b"a record", 4096)
    os.close(fd)
    path = path.rename(path.with_suffix(suffix))
    with pytest.raises(FileExistsError):
        make_segment(tmp_path, HEADER, zeros(SIZE), SIZE)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes()[4096:4104] == b"a record"

"""A segment that can't be made leaves nothing, wherever it fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ringbuf import SegmentHeader, segment
from ringbuf.segment import make_segment, zeros

HEADER = SegmentHeader(
    serial=7, epoch=1, boot_id=bytes(16), database=bytes(16), writer=1, made_ns=0
)
SIZE = 65536


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

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

from tests.leaks import SHARED_MEMORY, Belongings, left_over


def test_an_open_descriptor_is_seen(tmp_path: Path) -> None:
    before = Belongings.now()
    fd = os.open(tmp_path, os.O_RDONLY)
    found = left_over(before, str(tmp_path), patience_s=0)
    os.close(fd)
    assert found == [f"descriptor {fd} ({tmp_path})"]
    assert not left_over(before, str(tmp_path))


def test_a_living_thread_is_seen(tmp_path: Path) -> None:
    before = Belongings.now()
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="stray")
    thread.start()
    found = left_over(before, str(tmp_path), patience_s=0)
    end.set()
    assert found == ["thread stray"]
    assert not left_over(before, str(tmp_path))


def test_a_living_or_unreaped_child_is_seen(tmp_path: Path) -> None:
    before = Belongings.now()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        found = left_over(before, str(tmp_path), patience_s=0)
        assert f"child process {child.pid}" in found
    assert not left_over(before, str(tmp_path))


def test_a_ring_file_is_seen_by_the_session_that_it_names(tmp_path: Path) -> None:
    before = Belongings.now()
    file = SHARED_MEMORY / f"rasher-{os.getpid()}-leak-test.ring"
    file.write_bytes(bytes(100) + str(tmp_path / "data").encode())
    try:
        assert left_over(before, str(tmp_path), patience_s=0) == [f"ring file {file.name}"]
        assert not left_over(before, str(tmp_path / "of another session"))
    finally:
        file.unlink()

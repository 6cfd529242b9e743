"""What is seen of a system from outside, and that looking changes nothing."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from processors import deliveries
from processors.datadir import hold_data_dir, pid_path, write_link
from processors.events import Place
from processors.instants import now_us
from processors.journal import journal_dir, make_journal_dir
from processors.schema import parse_instant
from processors.settings import Settings
from processors.status import (
    DatabaseState,
    JournalState,
    ProcessView,
    Rings,
    all_processes,
    find_supervisor,
    look_at_database,
    look_at_journal,
    look_at_rings,
)
from processors.store import StoreUnavailable, migrate
from processors.tally import OWNER
from processors.webhooks import Endpoint
from ringbuf import Ring, RingError
from tests.processors.kit import House, on_sqlite
from tests.processors.left import header_of, records, write

PATIENCE_S = 0.3
WRITER = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA wal_autocheckpoint=0")
database.execute("INSERT INTO skus (sku, seq) VALUES ('HAM', 0)")
print("written", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def settings(house: House) -> Settings:
    return Settings(str(house.folder), house.url)


def tree(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Of every file: which it is, how long, when it was last written."""
    found = {path: path.stat() for path in folder.rglob("*")}
    return {str(p): (one.st_ino, one.st_size, one.st_mtime_ns) for p, one in found.items()}


# ---- the supervisor -----------------------------------------------------------------------------


@pytest.fixture
def bare(tmp_path: Path) -> Settings:
    return Settings(str(tmp_path), f"sqlite:///{tmp_path}/rasher.db")


def test_who_holds_the_data_dir_is_found_without_a_lock(
    bare: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = hold_data_dir(bare)
    with monkeypatch.context() as patched:
        # Whoever started at that instant would take it for somebody who holds it.
        patched.delattr(fcntl, "flock")
        found = find_supervisor(bare)
    assert found is not None
    assert found.pid == os.getpid()
    assert 0 < now_us() - parse_instant(found.since) < 86_400_000_000
    os.close(held)
    assert find_supervisor(bare) is None


def test_a_number_that_is_somebody_elses_by_now_does_not_count(bare: Settings) -> None:
    pid_path(bare).write_text(f"{os.getppid()}\n")
    assert find_supervisor(bare) is None


@pytest.mark.parametrize("text", [None, "", "\n", "0\n", "-1\n", "rasher", "9" * 30, "\0" * 99])
def test_what_names_nobody_is_nobody(bare: Settings, text: str | None) -> None:
    if text is not None:
        pid_path(bare).write_text(text)
    assert find_supervisor(bare) is None


def test_a_dead_process_that_nobody_has_reaped_holds_nothing(bare: Settings) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        pid_path(bare).write_text(f"{child.pid}\n")
        assert find_supervisor(bare) is None


# ---- the ring -----------------------------------------------------------------------------------


@on_sqlite
def test_the_ring_is_seen_with_its_hands_and_processes(house: House, settings: Settings) -> None:
    assert house.ring.path is not None
    write_link(settings, [Path(house.ring.path)])
    for _ in range(5):
        house.put(("HAM", 1))
    house.ring.page("writer", house.writer.index)[OWNER] = 1 + 7
    with house.ring.reader(3) as reader:
        taken = reader.take(2, timeout=1.0)
        found = look_at_rings(settings)
        reader.release(taken)
    assert found.ring is not None
    assert (found.ring.path, found.ring.capacity, found.ring.depth) == (house.ring.path, 400, 3)
    assert found.ring.oldest_s is not None
    assert 0 <= found.ring.oldest_s < 60
    assert (found.ring.closed, found.ring.moving, found.hands) == (False, 0, {3: 2})
    assert found.processes == [
        ProcessView("worker", 3, os.getpid(), alive=True),
        ProcessView("front", 7, os.getpid(), alive=True),
    ]


@on_sqlite
def test_orders_in_rings_of_other_settings_are_counted(house: House, settings: Settings) -> None:
    assert house.ring.path is not None
    house.put(("HAM", 1))
    newer = house.folder / "newer.ring"
    with Ring.create(newer, capacity=7, slot_bytes=4096, label=str(house.folder)):
        write_link(settings, [newer, Path(house.ring.path)])
        found = look_at_rings(settings)
    assert found.ring is not None
    assert (found.ring.path, found.ring.depth, found.ring.moving) == (str(newer), 0, 1)


def test_where_no_ring_is_named_there_is_none(bare: Settings) -> None:
    assert look_at_rings(bare) == Rings()


@on_sqlite
def test_a_ring_that_is_gone_or_somebody_elses_is_missing(house: House, settings: Settings) -> None:
    assert house.ring.path is not None
    other = house.folder / "other.ring"
    with Ring.create(other, capacity=7, slot_bytes=4096, label="/elsewhere"):
        for path in (other, house.folder / "gone.ring"):
            write_link(settings, [path])
            found = look_at_rings(settings)
            assert found == Rings(missing=f"{path}: there is no ring of {house.folder}")


@pytest.mark.parametrize("size", [0, 1, 4096, 2**20])
def test_what_is_no_ring_is_an_error_and_left_alone(bare: Settings, size: int) -> None:
    path = Path(bare.data_dir, "bad.ring")
    path.write_bytes(b"\xa5" * size)
    write_link(bare, [path])
    before = tree(Path(bare.data_dir))
    with pytest.raises(RingError, match=r"bad\.ring"):
        look_at_rings(bare)
    assert tree(Path(bare.data_dir)) == before


def test_a_process_that_is_a_child_and_in_the_ring_is_told_once() -> None:
    front, dead = ProcessView("front", 0, 7, alive=True), ProcessView("worker", 0, 8, alive=False)
    worker, relay = ProcessView("worker", 0, 9, alive=True), ProcessView("relay", 0, 6, alive=True)
    told = all_processes([dead, front], [relay, front, worker])
    assert told == [front, dead, worker, relay]


# ---- the journal --------------------------------------------------------------------------------


@on_sqlite
def test_the_journal_is_as_large_as_its_files(house: House, settings: Settings) -> None:
    assert look_at_journal(settings) == JournalState(0, 0)
    make_journal_dir(settings)
    paths = [write(settings, house, records(2), header_of(house, serial=n)) for n in (1, 2)]
    (journal_dir(settings) / "0003.new").write_bytes(b"half made")
    size = sum(path.stat().st_size for path in paths)
    assert look_at_journal(settings) == JournalState(2, size)


# ---- the database -------------------------------------------------------------------------------


def test_dead_letters_and_what_is_still_to_be_told_are_counted(
    house: House, settings: Settings
) -> None:
    shop = Endpoint("shop", "http://h/", (b"s" * 24,))
    assert look_at_database(settings, PATIENCE_S) == DatabaseState(0, 0, 0.0)
    house.store.commit(deliveries.enlist, [shop], Place(0, 0))
    house.put_bytes(b"no order")
    house.work()
    found = look_at_database(settings, PATIENCE_S)
    assert (found.dead_letters, found.outbox_pending) == (1, 1)
    assert 0 < found.outbox_oldest_s < 60


@contextmanager
def written_by_another(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Who has the database open, and its last commit in the WAL."""
    words = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"written\n"
        yield other
        other.kill()


def look_unnoticed(settings: Settings) -> None:
    before = tree(Path(settings.data_dir))
    look_at_database(settings, PATIENCE_S)
    assert tree(Path(settings.data_dir)) == before


def test_sqlite_is_read_without_a_trace_open_killed_and_closed(bare: Settings) -> None:
    migrate(bare.database)
    path = Path(bare.data_dir, "rasher.db")
    assert list(tree(path.parent)) == [str(path)]
    look_unnoticed(bare)
    with written_by_another(path) as other:
        look_unnoticed(bare)
        other.kill()
        other.wait()
        assert len(tree(path.parent)) == 3
        look_unnoticed(bare)


def test_a_wal_whose_index_would_have_to_be_made_is_told(bare: Settings) -> None:
    migrate(bare.database)
    with written_by_another(Path(bare.data_dir, "rasher.db")):
        pass
    Path(bare.data_dir, "rasher.db-shm").unlink()
    before = tree(Path(bare.data_dir))
    with pytest.raises(StoreUnavailable, match=r"without rasher\.db-shm"):
        look_at_database(bare, PATIENCE_S)
    assert tree(Path(bare.data_dir)) == before


def test_a_database_that_is_not_there_is_not_made(bare: Settings) -> None:
    with pytest.raises(StoreUnavailable, match=r"there is no database: .*rasher\.db"):
        look_at_database(bare, PATIENCE_S)
    assert tree(Path(bare.data_dir)) == {}


@pytest.mark.parametrize(
    ("content", "told"), [(b"", "no such table"), (b"no database" * 999, "not a database")]
)
def test_a_file_that_is_no_database_of_ours_is_left_as_it_is(
    bare: Settings, content: bytes, told: str
) -> None:
    Path(bare.data_dir, "rasher.db").write_bytes(content)
    before = tree(Path(bare.data_dir))
    with pytest.raises(StoreUnavailable, match=told):
        look_at_database(bare, PATIENCE_S)
    assert tree(Path(bare.data_dir)) == before


def test_a_path_with_marks_of_a_url_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "a #50% b&c"
    settings = Settings(str(folder), f"sqlite:///{folder}/rasher.db")
    migrate(settings.database)
    look_unnoticed(settings)

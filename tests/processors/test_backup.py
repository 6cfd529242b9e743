"""A copy that a start can go on from, or none."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from processors import backup, deliveries
from processors.audit import run_audit
from processors.backup import BackupError, back_up, check_target
from processors.backup_database import (
    NO_PG_DUMP,
    CopyError,
    Told,
    copy_database,
    copy_sqlite,
    dump_postgres,
)
from processors.deliveries import Ended
from processors.events import Event, Place
from processors.journal import journal_dir, make_journal_dir
from processors.recovery import Recovery
from processors.settings import JournalSettings, Settings
from processors.spill import spill
from processors.store import Store
from processors.webhooks import Endpoint, event_id
from ringbuf import Misfit, Ring
from ringbuf.segment import segment_paths
from tests.postgres import Postgres
from tests.processors.kit import House
from tests.processors.left import PAYLOAD, damaged_segment, items, records, write


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """With SQLite, whose database is a file of the copy."""
    house = House(tmp_path)
    yield house
    house.close()


@pytest.fixture
def settings(house: House) -> Settings:
    found = Settings(data_dir=str(house.folder), database=house.url)
    make_journal_dir(found)
    (house.folder / "ring.path").write_text(f"{house.ring.path}\n")
    house.stock(house.lot("L1", "A", 9000))
    return found


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "copies" / "monday"


@pytest.fixture(autouse=True)
def _copies(target: Path) -> None:
    target.parent.mkdir()


def keys_put_back(target: Path, database: str = "") -> list[bytes]:
    """By the first start on the copy, in order. `database`: where it was restored to."""
    database = database or f"sqlite:///{target}/rasher.db"
    settings = Settings(data_dir=str(target), database=database)
    store = Store.open(settings.database)
    with closing(store), Ring.create(target / "ring", label=str(target)) as ring:
        recovery = Recovery(settings, ring, {ring.epoch})
        if not recovery.looked:
            recovery.look(store)
        recovery.step(0)
        report = run_audit([ring], store, None, journal_dir(settings))
        assert report.ok, list(report.lines())
        return [item.key for item in ring.snapshot().waiting]


def tell_somebody(house: House, key: bytes) -> list[tuple[Any, ...]]:
    """An endpoint was told of that order, and is to be told again -> the row."""
    shop = Endpoint("shop", "http://127.0.0.1:1/", (b"s" * 24,))
    house.store.commit(deliveries.enlist, [shop], Place(0, 0))
    ((at_us,),) = house.rows("SELECT created_us FROM outbox")
    event = Event(1, event_id(key, 0), key, 0, "order.allocated", at_us)
    ended = Ended(event, "waiting", None, 1, 5, 7, 500, "answered 500")
    house.store.commit(deliveries.record, [deliveries.Told("shop", [ended], Place(1, 0))])
    return house.rows("SELECT * FROM deliveries")


def test_what_waits_what_lies_in_a_hand_and_what_is_settled_is_in_the_copy_once(
    settings: Settings, house: House, target: Path
) -> None:
    settled = house.put(("A", 10))
    house.work()
    held, waiting = house.put(("A", 20)), house.put(("A", 30))
    with house.ring.reader(0) as reader:
        reader.take(1, 0)
        assert back_up(settings, target) == 2
    assert keys_put_back(target) == [held, waiting]
    with closing(sqlite3.connect(target / "rasher.db")) as copy:
        assert copy.execute("SELECT id FROM orders").fetchall() == [(settled,)]
        assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert stat.S_IMODE(target.stat().st_mode) == 0o700


def test_a_copy_from_postgresql_is_restored_with_what_waited(
    postgres: Postgres, migrated: str, tmp_path: Path, target: Path
) -> None:
    house = House(tmp_path, url=postgres.url(postgres.database(migrated)))
    with closing(house):
        settings = Settings(data_dir=str(house.folder), database=house.url)
        make_journal_dir(settings)
        (house.folder / "ring.path").write_text(f"{house.ring.path}\n")
        house.stock(house.lot("L1", "A", 9000))
        settled = house.put(("A", 10))
        house.work()
        waiting = house.put(("A", 30))
        told = tell_somebody(house, settled)
        assert back_up(settings, target) == 1
    restored = postgres.url(postgres.database())
    words = ["pg_restore", f"--dbname={restored}", "--exit-on-error", str(target / "rasher.dump")]
    subprocess.run(words, check=True)
    assert keys_put_back(target, restored) == [waiting]
    with psycopg.connect(restored) as copy:
        assert copy.execute("SELECT id FROM orders").fetchall() == [(settled,)]
        assert copy.execute("SELECT * FROM deliveries").fetchall() == told
        assert copy.execute("SELECT name, event FROM endpoints").fetchall() == [("shop", 1)]


def test_what_only_the_journal_has_is_in_the_copy(
    settings: Settings, house: House, target: Path
) -> None:
    path = write(settings, house, records(300))
    keys = [item.key for item in items([path])]
    for key in keys[:100]:
        house.put_bytes(PAYLOAD, key)
    house.work()
    assert back_up(settings, target) == 200
    (copied,) = segment_paths(target / "journal")
    assert copied.suffix == ".sealed"
    assert keys_put_back(target) == keys[100:200]  # as many as the new ring holds


def test_an_order_in_the_journal_and_in_the_ring_is_put_back_once(
    settings: Settings, house: House, target: Path
) -> None:
    key = house.put(("A", 10))
    spill(settings, [house.ring], bytes(16))
    assert back_up(settings, target) == 2
    assert keys_put_back(target) == [key]


def test_what_is_committed_while_the_copy_is_made_is_not_put_back(
    settings: Settings, house: House, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.put(("A", 10))

    def after_work(url: str, into: Path, told: Told) -> None:
        house.work()
        copy_database(url, into, told)

    monkeypatch.setattr("processors.backup.copy_database", after_work)
    assert back_up(settings, target) == 1
    assert keys_put_back(target) == []


def test_a_system_that_is_stopped_and_has_nothing_waiting_is_copied(
    settings: Settings, house: House, target: Path
) -> None:
    (house.folder / "ring.path").unlink()
    target.mkdir()
    assert backup.main(settings, [str(target)]) == 0
    assert sorted(path.name for path in target.iterdir()) == ["journal", "rasher.db"]


# ---- no copy ---------------------------------------------------------------------------------


def nothing_left(target: Path) -> bool:
    return not list(target.parent.iterdir())


def test_a_directory_that_holds_something_is_refused_and_left_alone(
    settings: Settings, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target.mkdir()
    (target / "mine").touch()
    assert backup.main(settings, [str(target)]) == 1
    assert f"{target}: it is not empty" in capsys.readouterr().err
    assert [path.name for path in target.parent.rglob("*")] == ["monday", "mine"]


def test_a_file_a_link_and_a_place_that_is_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "link", "none/deep"):
        with pytest.raises(BackupError, match=str(tmp_path)):
            check_target(tmp_path / name)


def test_without_a_database_there_is_no_backup_and_none_is_made(
    tmp_path: Path, target: Path
) -> None:
    settings = Settings(data_dir=str(tmp_path), database=f"sqlite:///{tmp_path}/none.db")
    with pytest.raises(BackupError, match="there is no database"):
        back_up(settings, target)
    assert nothing_left(target)
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize("args", [[], ["a", "b"], ["--all"]])
def test_wrong_usage_exits_2(
    settings: Settings, args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert backup.main(settings, args) == 2
    assert capsys.readouterr().err.startswith("usage: rasher backup TARGET_DIR")


def test_of_a_damaged_journal_there_is_a_copy_only_when_told_so(
    settings: Settings, house: House, target: Path
) -> None:
    damaged_segment(settings, house)
    with pytest.raises(BackupError, match="--damaged-journal skip"):
        back_up(settings, target)
    assert nothing_left(target)
    skipping = Settings(
        data_dir=settings.data_dir,
        database=settings.database,
        journal=JournalSettings(damaged="skip"),
    )
    assert back_up(skipping, target) == 4


def test_a_ring_that_can_not_be_read_is_no_empty_one(
    settings: Settings, house: House, target: Path
) -> None:
    Path(house.folder, "broken").write_bytes(b"nonsense" * 1000)
    (house.folder / "ring.path").write_text(f"{house.folder / 'broken'}\n")
    with pytest.raises(Misfit):
        back_up(settings, target)
    assert nothing_left(target)


def test_a_database_that_is_no_database_leaves_nothing(
    settings: Settings, house: House, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = house.folder / "other.db"
    other.write_bytes(b"nonsense" * 1000)
    settings = Settings(data_dir=settings.data_dir, database=f"sqlite:///{other}")
    assert backup.main(settings, [str(target)]) == 1
    assert "backup: " in capsys.readouterr().err
    assert nothing_left(target)


# ---- the database ------------------------------------------------------------------------------


def test_under_writes_the_copy_never_begins_anew_and_has_one_moment(
    house: House, target: Path
) -> None:
    target.mkdir()
    with closing(sqlite3.connect(house.folder / "rasher.db", isolation_level=None)) as writer:
        writer.execute("CREATE TABLE pairs (a INTEGER PRIMARY KEY, b BLOB)")
        writer.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000)"
            " INSERT INTO pairs SELECT i, randomblob(900) FROM n"
        )
        done: list[int] = []

        def told(_: str, pages: int, __: int) -> None:
            """Between two steps, somebody commits."""
            done.append(pages)
            writer.execute("UPDATE pairs SET b = x'00' WHERE a = ? OR a = ?", (1, 4001 - len(done)))

        copy_sqlite(house.folder / "rasher.db", target / "a.db", told)
    assert len(done) > 3
    assert done == sorted(done)
    with closing(sqlite3.connect(target / "a.db")) as copy:
        assert copy.execute("SELECT count(*) FROM pairs WHERE b = x'00'").fetchone() == (0,)
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def fake_pg_dump(folder: Path, script: str) -> str:
    path = folder / "pg_dump"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


URL = sa.make_url("postgresql+psycopg://me:pass%20word@example.org:5433/rasher?sslmode=require")


def test_postgresql_is_dumped_with_the_password_where_nobody_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    fake_pg_dump(tmp_path, f'printf "%s\\n" "$@" > {tmp_path}/words; echo "$PGPASSWORD" >&2')
    dump_postgres(URL, tmp_path / "out", lambda *_: None)
    assert (tmp_path / "words").read_text().splitlines() == [
        "--format=custom",
        "--no-password",
        f"--file={tmp_path}/out",
        "--dbname",
        "postgresql://me@example.org:5433/rasher?sslmode=require",
    ]
    fake_pg_dump(tmp_path, 'echo "$PGPASSWORD" >&2; exit 1')
    with pytest.raises(CopyError, match=r": pass word$"):
        dump_postgres(URL, tmp_path / "out", lambda *_: None)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo 'pg_dump: error: aborting because of server version mismatch' >&2; exit 1",
         "postgresql-client-NN"),
        ("exit 3", "exit code 3"),
    ],
)  # fmt: skip
def test_a_dump_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, told: str
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    fake_pg_dump(tmp_path, script)
    with pytest.raises(CopyError, match=told):
        dump_postgres(URL, tmp_path / "out", lambda *_: None)


def test_without_pg_dump_the_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CopyError, match="apt-get install postgresql-client") as refused:
        dump_postgres(URL, tmp_path / "out", lambda *_: None)
    assert str(refused.value) == NO_PG_DUMP

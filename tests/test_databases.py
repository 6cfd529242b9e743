from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from processors.store import migrate
from tests.databases import make_database


def dumped(path: Path) -> tuple[list[str], bytes]:
    """All that a database says without its id, and that."""
    with closing(sqlite3.connect(path)) as database:
        query = "SELECT value FROM meta WHERE name = 'database_id'"
        (own_id,) = database.execute(query).fetchone()
        said = [line.replace(own_id.hex().upper(), "ID") for line in database.iterdump()]
        said.append(str(database.execute("PRAGMA journal_mode").fetchone()))
    return said, own_id


def test_a_copy_is_what_the_migrations_make_with_an_id_of_its_own(tmp_path: Path) -> None:
    paths = [tmp_path / "migrated.db", tmp_path / "one.db", tmp_path / "other.db"]
    migrate(f"sqlite:///{paths[0]}")
    for path in paths[1:]:
        make_database(path)
    said, ids = zip(*map(dumped, paths), strict=True)
    assert said[0] == said[1] == said[2]
    assert len(set(ids)) == 3


def test_a_database_that_is_there_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "rasher.db"
    make_database(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE meta SET value = x'01' WHERE name = 'touched'")
        database.commit()
    before = dumped(path)
    make_database(path)
    assert dumped(path) == before

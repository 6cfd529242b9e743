"""SQLite databases for tests: copies of one that was migrated, for running the migrations takes
longer than most tests do."""

from __future__ import annotations

import secrets
import sqlite3
import tempfile
from contextlib import closing
from functools import cache
from pathlib import Path

from processors.store import migrate


def make_database(path: Path) -> str:
    """What `migrate` makes, with an id of its own -> its URL. One that is there is kept."""
    if not path.exists():
        content, own_id = _migrated()
        path.write_bytes(content.replace(own_id, secrets.token_bytes(len(own_id))))
    return f"sqlite:///{path}"


@cache
def _migrated() -> tuple[bytes, bytes]:
    """-> the file, and its id, which stands in it once."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rasher.db")
        migrate(f"sqlite:///{path}")
        with closing(sqlite3.connect(path)) as database:
            query = "SELECT value FROM meta WHERE name = 'database_id'"
            (own_id,) = database.execute(query).fetchone()
        content = path.read_bytes()
    assert content.count(own_id) == 1
    return content, own_id

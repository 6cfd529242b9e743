"""What a database of an earlier version holds is there after its migration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.engine import Connection

from processors import lots_verb
from processors.audit import run_audit
from processors.expiring import Expirer
from processors.migrate import FOLDER
from processors.settings import Settings
from processors.store import Store, migrate
from tests.postgres import Postgres

# A lot in use, one spent, one expired with stock, one recalled; one whose receipt was folded.
OF_0007 = """
INSERT INTO skus (id, sku, seq, folded) VALUES (1, 'HAM', 6, 1), (2, 'EGGS', 0, 0);
INSERT INTO lots (id, lot_id, sku_id, received, available, expires_us, received_us, body_hash,
    opening, recalled_us, recalled_seq) VALUES
    (1, 'folded', 1, 1000, 1000, 9000000000000000, 1, x'00', 1000, NULL, NULL),
    (2, 'spent', 1, 500, 0, 9000000000000001, 1, x'00', NULL, NULL, NULL),
    (3, 'old', 1, 700, 700, 5, 1, x'00', NULL, NULL, NULL),
    (4, 'recalled', 1, 800, 800, 9000000000000002, 1, x'00', NULL, 9, 5);
INSERT INTO movements (sku_id, seq, lot, delta, kind, at_us) VALUES
    (1, 2, 2, 500, 'receive', 2), (1, 3, 3, 700, 'receive', 3), (1, 4, 4, 800, 'receive', 4),
    (1, 5, 2, -300, 'adjust', 6), (1, 6, 2, -200, 'adjust', 7);
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a new database without any schema."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'old.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.url(server.database())


@contextmanager
def at_0007(url: str) -> Iterator[Connection]:
    """A transaction, in which the database has got that version's schema."""
    store = Store.open(url)
    try:
        with store.writing() as connection:
            config = Config()
            config.set_main_option("script_location", str(FOLDER))
            config.attributes["connection"] = connection
            command.upgrade(config, "0007")
            yield connection
    finally:
        store.close()


def fill(database: str) -> None:
    with at_0007(database) as connection:
        text = OF_0007
        if connection.dialect.name == "postgresql":
            text = text.replace("x'00'", "'\\x00'::bytea")
        for statement in filter(str.strip, text.split(";")):
            connection.exec_driver_sql(statement)


def test_stock_of_before_is_summed_up_and_expires(database: str) -> None:
    fill(database)
    migrate(database)
    store = Store.open(database)
    with store.reading() as connection:
        skus = sa.text("SELECT sku, available, expired, low_below FROM skus ORDER BY sku")
        assert list(connection.execute(skus)) == [("EGGS", 0, 0, 0), ("HAM", 1700, 0, 0)]
        lots = sa.text("SELECT lot_id, received_seq, expired_seq FROM lots ORDER BY id")
        assert list(connection.execute(lots)) == [
            ("folded", None, None),
            ("spent", 2, None),
            ("old", 3, None),
            ("recalled", 4, None),
        ]
    Expirer(store).step()
    with store.reading() as connection:
        ham = sa.text("SELECT available, expired FROM skus WHERE sku = 'HAM'")
        assert connection.execute(ham).one() == (1000, 700)
    report = run_audit([], store)
    store.close()
    assert report.ok, list(report.lines())
    assert report.counts["lots expired"] == 1


@pytest.mark.parametrize("words", [["list"], ["adjust", "old", "1", "--reason", "count"]])
def test_before_it_the_stock_is_not_available(
    database: str, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    fill(database)
    assert lots_verb.main(Settings(str(tmp_path), database), words) == 1
    assert "the database is not available: " in capsys.readouterr().err


def test_before_it_a_mistake_in_a_statement_is_still_one(database: str) -> None:
    fill(database)
    store = Store.open(database)
    with closing(store), pytest.raises(sa.exc.DBAPIError), store.reading() as connection:
        connection.exec_driver_sql("SELECT skus.nonsense FROM skus")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_constraint_that_is_not_as_expected_stops_the_migration(database: str) -> None:
    with at_0007(database) as connection:
        connection.exec_driver_sql("PRAGMA writable_schema=ON")
        connection.exec_driver_sql(
            "UPDATE sqlite_master SET sql = replace(sql, 'allocate', 'give') WHERE name='movements'"
        )
    with pytest.raises(AssertionError, match="movements has no constraint"):
        migrate(database)

from __future__ import annotations

import logging
import sqlite3
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from processors.store import Store, StoreError, StoreUnavailable, migrate
from processors.tables import metadata, skus
from tests.processors.kit import House, on_sqlite, undone


def insert_sku(store: Store, sku: str) -> None:
    with store.writing() as connection:
        connection.execute(sa.insert(skus).values(sku=sku, seq=0))


def count_skus(connection: sa.Connection) -> int:
    return int(connection.exec_driver_sql("SELECT count(*) FROM skus").scalar_one())


@on_sqlite
@pytest.mark.parametrize(
    ("pragma", "value"), [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)]
)
def test_every_connection_is_durable_and_checks_foreign_keys(
    house: House, pragma: str, value: object
) -> None:
    with house.store.reading() as connection:
        assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar_one() == value


def test_reading_is_one_snapshot_whatever_is_committed_meanwhile(house: House) -> None:
    with house.store.reading() as connection:
        assert count_skus(connection) == 0
        insert_sku(house.store, "HAM")
        assert count_skus(connection) == 0
    with house.store.reading() as connection:
        assert count_skus(connection) == 1


def test_an_exception_rolls_back(house: House) -> None:
    with undone(house.store) as connection:
        connection.exec_driver_sql("INSERT INTO skus (sku, seq) VALUES ('HAM', 0)")
    with house.store.reading() as connection:
        assert count_skus(connection) == 0


@on_sqlite
def test_a_writer_has_the_lock_from_its_begin(house: House) -> None:
    impatient = Store.open(house.url, busy_timeout_s=0)
    with house.store.writing():
        with pytest.raises(StoreUnavailable, match="locked"), impatient.writing():
            pass
        with impatient.reading() as connection:
            assert count_skus(connection) == 0
    insert_sku(impatient, "HAM")
    impatient.close()


def test_no_connection_left_within_the_timeout_is_unavailable(house: House) -> None:
    store = Store.open(house.url, busy_timeout_s=0.01, connections_max=1)
    with store.reading():
        with pytest.raises(StoreUnavailable), store.reading():
            pass
    store.close()


def test_a_mistake_in_a_statement_is_not_taken_for_an_outage(house: House) -> None:
    with pytest.raises(sa.exc.DBAPIError, match=r"no such table|\"nowhere\" does not exist"):
        with house.store.reading() as connection:
            connection.exec_driver_sql("SELECT * FROM nowhere")


@pytest.mark.parametrize("content", [b"", b"this is no database at all, but long" * 40])
def test_a_file_that_is_not_migrated_or_no_database_is_unavailable(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "a.db").write_bytes(content)
    store = Store.open(f"sqlite:///{tmp_path / 'a.db'}")
    with pytest.raises(StoreUnavailable), store.reading() as connection:
        count_skus(connection)
    store.close()


def test_a_folder_that_is_missing_is_unavailable(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/none/a.db")
    with pytest.raises(StoreUnavailable), store.reading():
        pass
    store.close()


@pytest.mark.parametrize("url", ["nonsense", "oracle9i://x", "sqlite+nodriver:///x"])
def test_a_url_of_no_database_is_a_configuration_error(url: str) -> None:
    with pytest.raises(StoreError, match="--database"):
        migrate(url)


def test_sqlite_without_its_wal_is_a_configuration_error() -> None:
    store = Store.open("sqlite://")
    with pytest.raises(StoreError, match=r"WAL.*--database"), store.reading():
        pass
    store.close()


def test_migrated_twice_is_as_migrated_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'deep' / 'a.db'}"
    migrate(url)
    first = sqlite3.connect(tmp_path / "deep" / "a.db")
    before = first.execute("SELECT name, sql FROM sqlite_master").fetchall()
    migrate(url)
    assert first.execute("SELECT name, sql FROM sqlite_master").fetchall() == before
    first.close()


@on_sqlite
def test_the_migrations_make_what_the_tables_say(house: House) -> None:
    with house.store.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        found = connection.exec_driver_sql(
            "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"
            " AND name <> 'alembic_version'"
        ).all()
    other = sa.create_engine("sqlite://")
    with other.begin() as connection:
        metadata.create_all(connection)
        wanted = connection.exec_driver_sql(
            "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"
        ).all()
    other.dispose()
    # Constraints may come in another order; everything else is equal word by word.
    normal = {name: sorted(sql.replace(",", "").split()) for name, sql in found}
    assert normal == {name: sorted(sql.replace(",", "").split()) for name, sql in wanted}


def test_several_that_migrate_at_once_all_succeed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    errors: list[BaseException] = []
    barrier = threading.Barrier(4)

    def run() -> None:
        barrier.wait()
        try:
            migrate(url)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_migration_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    url = f"sqlite:///{tmp_path / 'a.db'}"
    with monkeypatch.context() as patch:
        patch.setattr("alembic.op.create_index", fail)
        with pytest.raises(ZeroDivisionError):
            migrate(url)
    connection = sqlite3.connect(tmp_path / "a.db")
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []
    connection.close()
    migrate(url)


def test_a_database_of_a_newer_version_is_refused_by_name(house: House) -> None:
    house.tamper("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match=r"newer Rasher.*9999.*0008"):
        migrate(house.url)


def test_migrating_logs_nothing_and_leaves_logging_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    handlers = list(logging.getLogger().handlers)
    migrate(f"sqlite:///{tmp_path / 'a.db'}")
    assert caplog.records == []
    assert logging.getLogger().handlers == handlers


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE lots SET available = -1",
        "UPDATE orders SET status = 'queued'",
        "UPDATE movements SET kind = 'gift'",
        "UPDATE movements SET order_id = NULL WHERE kind = 'allocate'",
        "UPDATE movements SET lot = 99",
    ],
)
def test_the_database_itself_refuses_what_no_row_may_be(house: House, statement: str) -> None:
    house.stock(house.lot("a", "HAM", 1000))
    house.put(("HAM", 500))
    house.work()
    with pytest.raises(sa.exc.IntegrityError), house.store.writing() as connection:
        connection.exec_driver_sql(statement)

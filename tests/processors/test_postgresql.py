"""What only PostgreSQL has: settings of a server, lost answers, locks of rows."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from processors import postgres as driver
from processors.audit import run_audit
from processors.inventory import add_lots
from processors.postgres import Postgres as Driver
from processors.store import (
    Store,
    StoreBusy,
    StoreContended,
    StoreError,
    StoreUnavailable,
    migrate,
)
from processors.tables import metadata, orders, skus
from processors.verdict import Verdict
from tests.postgres import WITH_PASSWORD, Postgres
from tests.processors.kit import House, on_postgresql
from tests.proxy import Fault, Proxy

SECRET = "no-such-secret"

Open = Callable[..., Store]


@pytest.fixture
def opened() -> Iterator[Open]:
    stores: list[Store] = []

    def open_store(url: str, **given: float) -> Store:
        stores.append(Store.open(url, **given))  # type: ignore[arg-type]
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


@pytest.fixture
def proxied(house: House, postgres: Postgres) -> Iterator[Proxy]:
    """The house's store goes through a proxy."""
    proxy = Proxy(postgres.port)
    house.store.close()
    direct, house.store = (
        house.store,
        Store.open(house.url.replace(f":{postgres.port}/", f":{proxy.port}/")),
    )
    yield proxy
    house.store.close()
    house.store = direct
    proxy.close()


def ask(store: Store) -> int:
    with store.reading() as connection:
        return int(connection.scalar(sa.text("SELECT 1")) or 0)


# ---- sessions -----------------------------------------------------------------------------------


@on_postgresql
def test_a_writer_waits_for_the_disk_and_a_reader_sees_one_snapshot(house: House) -> None:
    with house.store.writing() as connection:
        said = connection.execute(
            sa.text(
                "SELECT current_setting('synchronous_commit'), current_setting('lock_timeout'),"
                " current_setting('transaction_isolation'),"
                " current_setting('transaction_read_only')"
            )
        ).one()
    assert tuple(said) == ("on", "5s", "read committed", "off")
    with house.store.reading() as connection:
        said = connection.execute(
            sa.text(
                "SELECT current_setting('transaction_isolation'),"
                " current_setting('transaction_read_only')"
            )
        ).one()
    assert tuple(said) == ("repeatable read", "on")


def test_a_server_that_does_not_sync_is_refused_by_the_name_of_the_setting(
    own_postgres: Postgres, opened: Open
) -> None:
    for setting in ("fsync", "full_page_writes"):
        with own_postgres.session() as session:
            session.execute(f"ALTER SYSTEM SET {setting} = off".encode())
            session.execute("SELECT pg_reload_conf()")
        until_it_is(own_postgres, setting, "off")
        with pytest.raises(StoreError, match=rf"{setting} = off; Rasher needs on \(--database\)"):
            ask(opened(own_postgres.url()))
        with own_postgres.session() as session:
            session.execute(f"ALTER SYSTEM RESET {setting}".encode())
            session.execute("SELECT pg_reload_conf()")
        until_it_is(own_postgres, setting, "on")
    assert ask(opened(own_postgres.url())) == 1


def until_it_is(server: Postgres, setting: str, value: str) -> None:
    deadline = time.monotonic() + 10
    while True:
        with server.session() as session:
            row = session.execute(f"SHOW {setting}".encode()).fetchone()
        if row == (value,):
            return
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def test_a_database_in_another_encoding_is_refused(postgres: Postgres, opened: Open) -> None:
    with postgres.session() as session:
        session.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    with pytest.raises(StoreError, match="server_encoding = LATIN1; Rasher needs UTF8"):
        ask(opened(postgres.url("latin")))


@pytest.mark.parametrize(
    ("user", "database", "reason"),
    [
        (f"{WITH_PASSWORD}:{SECRET}", "postgres", "password authentication failed"),
        (WITH_PASSWORD, "postgres", "no password supplied"),
        (f"nobody:{SECRET}", "postgres", 'role "nobody" does not exist'),
        ("rasher", "nowhere", 'database "nowhere" does not exist'),
        ("rasher", "postgres?nonsense=1", "nonsense"),
    ],
)
def test_wrong_credentials_are_no_outage_and_no_password_is_shown(
    postgres: Postgres, opened: Open, user: str, database: str, reason: str
) -> None:
    with postgres.session() as session:
        session.execute(f"DROP ROLE IF EXISTS {WITH_PASSWORD}".encode())
        session.execute(f"CREATE ROLE {WITH_PASSWORD} LOGIN PASSWORD 'right'".encode())
    with pytest.raises(StoreError, match=reason) as refused:
        ask(opened(postgres.url(database, user)))
    assert SECRET not in str(refused.value)


def test_a_url_that_can_not_be_read_is_refused_without_its_parts() -> None:
    with pytest.raises(StoreError, match="percent-encoded") as refused:
        Store.open("postgresql://u:secret@h:port/d")
    assert "secret" not in str(refused.value)


# ---- away ---------------------------------------------------------------------------------------


def test_a_stopped_server_is_unavailable_and_the_first_question_after_it_is_answered(
    own_postgres: Postgres, opened: Open
) -> None:
    store = opened(own_postgres.url())
    assert ask(store) == 1
    own_postgres.stop()
    with pytest.raises(StoreUnavailable, match="Connection refused"):
        ask(store)
    own_postgres.start()
    assert ask(store) == 1
    own_postgres.kill()
    own_postgres.start()
    assert ask(store) == 1


@on_postgresql
def test_connections_that_died_while_idle_are_replaced_unnoticed(house: House) -> None:
    with house.store.reading() as one, house.store.reading() as two:
        assert one.scalar(sa.text("SELECT 1")) == two.scalar(sa.text("SELECT 1")) == 1
    house.rows("SELECT 1")
    engine = sa.create_engine(house.url)
    with engine.connect() as other:
        ended = other.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        ).all()
    engine.dispose()
    assert len(ended) == 2
    with house.store.reading() as one, house.store.reading() as two:
        assert one.scalar(sa.text("SELECT 1")) == two.scalar(sa.text("SELECT 1")) == 1


def test_a_server_with_no_connection_left_is_unavailable(postgres: Postgres, opened: Open) -> None:
    with postgres.session() as session:
        session.execute("CREATE ROLE single LOGIN CONNECTION LIMIT 1")
    with psycopg.connect(postgres.url(user="single")):
        with pytest.raises(StoreUnavailable, match="too many connections"):
            ask(opened(postgres.url(user="single")))


def test_a_server_that_only_reads_is_unavailable(postgres: Postgres, opened: Open) -> None:
    name = postgres.database()
    migrate(postgres.url(name))
    with postgres.session() as session:
        session.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
    store = opened(postgres.url(name))
    with pytest.raises(StoreUnavailable, match="read-only"), store.writing() as connection:
        connection.execute(sa.insert(skus).values(sku="HAM", seq=0))


def test_a_database_without_tables_is_unavailable_until_it_is_migrated(
    postgres: Postgres, opened: Open
) -> None:
    url = postgres.url(postgres.database())
    store = opened(url)
    with pytest.raises(StoreUnavailable, match="orders"), store.reading() as connection:
        connection.execute(sa.select(orders.c.id))
    migrate(url)
    with store.reading() as connection:
        assert connection.execute(sa.select(orders.c.id)).all() == []


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("57P01", Verdict.UNAVAILABLE),
        ("57P03", Verdict.UNAVAILABLE),
        ("08006", Verdict.UNAVAILABLE),
        ("53100", Verdict.UNAVAILABLE),
        ("53300", Verdict.UNAVAILABLE),
        ("57014", Verdict.UNAVAILABLE),
        ("42501", Verdict.UNAVAILABLE),
        ("55P03", Verdict.BUSY),
        ("40P01", Verdict.CONTENDED),
        ("40001", Verdict.CONTENDED),
        ("58030", Verdict.BROKEN),
        ("XX001", Verdict.BROKEN),
        ("XX002", Verdict.BROKEN),
        ("28P01", Verdict.UNFIT),
        ("3D000", Verdict.UNFIT),
        ("23505", None),
        ("22P02", None),
        ("42601", None),
        ("42P01", None),
    ],
)
def test_errors_are_told_apart_by_their_code(code: str, verdict: Verdict | None) -> None:
    assert Driver(1.0).verdict(psycopg.errors.lookup(code)("text")) == verdict


# ---- lost answers -------------------------------------------------------------------------------


@on_postgresql
@pytest.mark.parametrize("fault", ["cut", "silent"])
def test_a_commit_whose_answer_is_lost_is_found_by_the_order_id(
    house: House, proxied: Proxy, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver.Patient, "silent_s_max", 0.3)
    monkeypatch.setattr(house.store.kind, "_silent_s_max", 0.3)
    house.stock(house.lot("a", "HAM", 10_000))
    keys = [house.put(("HAM", 1000)) for _ in range(5)]
    proxied.fault = fault
    healing = threading.Thread(target=heal_after_one, args=(proxied,))
    healing.start()
    worker = house.work()
    healing.join()
    assert proxied.swallowed >= 1
    assert worker.redelivered == 5
    assert [house.given(key) for key in keys] == [[("HAM", "a", "1")]] * 5
    assert house.rows("SELECT available FROM lots") == [(5000,)]
    assert house.audit().ok


def heal_after_one(proxy: Proxy) -> None:
    deadline = time.monotonic() + 10
    while not proxy.swallowed and time.monotonic() < deadline:
        threading.Event().wait(0.001)
    proxy.fault = None


@on_postgresql
def test_a_silent_server_is_given_up_and_the_time_is_named(
    house: House, proxied: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(house.store.kind, "_silent_s_max", 0.3)
    proxied.fault = "silent"
    begun = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"no answer within 0\.3 s"):
        with house.store.writing() as connection:
            connection.execute(sa.insert(skus).values(sku="HAM", seq=0))
    assert time.monotonic() - begun < 3
    proxied.fault = None
    assert house.rows("SELECT sku FROM skus") == [("HAM",)]


def test_a_server_that_takes_connections_and_says_nothing_is_unavailable(opened: Open) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"postgresql://u@127.0.0.1:{listener.getsockname()[1]}/d?connect_timeout=2"
        begun = time.monotonic()
        with pytest.raises(StoreUnavailable, match="timeout"):
            ask(opened(url))
        assert time.monotonic() - begun < 4


# ---- others at the same rows --------------------------------------------------------------------


@on_postgresql
def test_a_locked_row_is_waited_for_and_then_it_is_busy(house: House, opened: Open) -> None:
    house.stock(house.lot("a", "HAM", 10_000))
    impatient = opened(house.url, busy_timeout_s=0.05)
    lock = sa.select(skus.c.id).with_for_update()
    with house.store.writing() as connection:
        connection.execute(lock)
        with pytest.raises(StoreBusy, match="lock timeout"), impatient.writing() as other:
            other.execute(lock)
    with impatient.writing() as other:
        assert len(other.execute(lock).all()) == 1


@on_postgresql
def test_two_that_settle_one_order_at_the_same_instant_settle_it_once(
    house: House, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.stock(house.lot("a", "HAM", 10_000))
    key = house.put(("HAM", 1000))
    house.work()
    rows = house.rows("SELECT * FROM orders")
    assert len(rows) == 1
    house.tamper("DELETE FROM orders", "DELETE FROM outbox", "DELETE FROM movements WHERE seq = 2",
                 "UPDATE skus SET seq = 1", "UPDATE lots SET available = 10000")  # fmt: skip
    house.put(("HAM", 1000), key=key)
    caplog.clear()
    first = house.store.writing()
    connection = first.__enter__()
    columns = [column.name for column in orders.c]
    connection.execute(sa.insert(orders).values(dict(zip(columns, rows[0], strict=True))))
    working = threading.Thread(target=house.work)
    working.start()
    until_somebody_waits(house)
    first.__exit__(None, None, None)
    working.join()
    assert house.rows("SELECT count(*) FROM orders") == [(1,)]
    assert house.rows("SELECT available FROM lots") == [(10_000,)]
    assert house.view(key).status == "allocated"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def until_somebody_waits(house: House) -> None:
    deadline = time.monotonic() + 10
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    while house.rows(waiting) == [(0,)]:
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


@on_postgresql
def test_work_that_others_always_beat_is_given_back_after_some_tries(house: House) -> None:
    tries = 0

    def work(connection: sa.Connection) -> None:
        nonlocal tries
        tries += 1
        raise psycopg.errors.DeadlockDetected

    with pytest.raises(StoreContended):
        house.store.commit(work)
    assert tries == 10


@on_postgresql
def test_many_that_enter_lots_of_the_same_new_skus_all_succeed(house: House, opened: Open) -> None:
    errors: list[BaseException] = []
    barrier = threading.Barrier(4)

    def run(number: int) -> None:
        store = opened(house.url)
        lots = [house.lot(f"L{number}-{i}", f"SKU{i}", 1000) for i in range(20)]
        barrier.wait()
        try:
            add_lots(store, lots[::-1] if number % 2 else lots)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert house.rows("SELECT count(*) FROM lots") == [(80,)]
    assert house.rows("SELECT count(*) FROM skus") == [(20,)]
    assert run_audit([], house.store).ok


# ---- migrations ---------------------------------------------------------------------------------


def test_the_migrations_make_what_the_tables_say(postgres: Postgres, opened: Open) -> None:
    url = postgres.url(postgres.database())
    migrate(url)
    migrate(url)
    with opened(url).reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        collations = connection.execute(
            sa.text("SELECT attname FROM pg_attribute JOIN pg_collation c ON c.oid = attcollation"
                    " WHERE collname = 'C' AND attrelid IN ('skus'::regclass, 'lots'::regclass)")
        ).scalars()  # fmt: skip
        assert sorted(collations) == ["lot_id", "sku"]


def test_several_that_migrate_at_once_all_succeed(postgres: Postgres) -> None:
    url = postgres.url(postgres.database())
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
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    name = postgres.database()
    with monkeypatch.context() as patch:
        patch.setattr("alembic.op.create_index", fail)
        with pytest.raises(ZeroDivisionError):
            migrate(postgres.url(name))
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
    assert postgres.column(tables, name) == []
    migrate(postgres.url(name))


def test_nothing_is_left_in_the_data_dir(postgres: Postgres, tmp_path: Path) -> None:
    migrate(postgres.url(postgres.database()))
    assert list(tmp_path.iterdir()) == []

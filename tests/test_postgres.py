"""The tests' own PostgreSQL."""

from __future__ import annotations

import os

import psutil

from tests.postgres import Postgres


def test_each_database_is_new_and_a_server_syncs_what_it_commits(postgres: Postgres) -> None:
    first, second = postgres.database(), postgres.database()
    with postgres.session(first) as session:
        session.execute("CREATE TABLE here (n int)")
    tables = "SELECT relname FROM pg_class WHERE relname = 'here'"
    assert postgres.column(tables, first) == ["here"]
    assert postgres.column(tables, postgres.database(template=first)) == ["here"]
    assert postgres.column(tables, second) == []
    assert postgres.column("SHOW fsync") == ["on"]


def test_a_killed_server_starts_again_with_what_was_committed(own_postgres: Postgres) -> None:
    with own_postgres.session() as session:
        session.execute("CREATE TABLE here AS SELECT 1 AS n")
    port = own_postgres.port
    own_postgres.kill()
    own_postgres.start()
    assert own_postgres.column("SELECT n FROM here") == [1]
    own_postgres.stop()
    own_postgres.start()
    assert own_postgres.column("SELECT n FROM here") == [1]
    assert own_postgres.port == port


def test_a_server_never_runs_as_root(postgres: Postgres) -> None:
    assert postgres.process is not None
    uid = psutil.Process(postgres.process.pid).uids().effective
    assert uid == os.geteuid() or os.geteuid() == 0 != uid

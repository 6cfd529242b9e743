from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from processors.allocation import Allocator
from processors.recording import Recorder
from processors.statements import KEYS_MAX, Hot, HotKeys
from processors.tables import skus
from tests.processors.kit import House, on_sqlite, undone


def test_rows_go_in_as_tuples_in_the_order_of_the_names(house: House) -> None:
    insert = Hot(sa.insert(skus), "sku", "seq")
    with undone(house.store) as connection:
        insert.many(connection, [("A", 1), ("B", 2)])
        insert.many(connection, [])
        select = Hot(sa.select(skus.c.sku, skus.c.seq).where(skus.c.sku == sa.bindparam("s")), "s")
        assert select.all(connection, ("B",)) == [("B", 2)]


@on_sqlite
def test_names_in_another_order_than_in_the_text_are_refused(house: House) -> None:
    update = Hot(
        sa.update(skus).where(skus.c.id == sa.bindparam("number")).values(seq=sa.bindparam("last")),
        *("number", "last"),
    )
    with undone(house.store) as connection, pytest.raises(ValueError, match="occur"):
        update.many(connection, [(1, 2)])


@pytest.mark.parametrize("count", [0, 1, 2, 3, 64, 65, KEYS_MAX, KEYS_MAX + 1, 3 * KEYS_MAX - 1])
def test_keys_of_any_number_find_exactly_their_rows(house: House, count: int) -> None:
    select = HotKeys(sa.select(skus.c.sku), skus.c.sku)
    names = [f"S{i}" for i in range(count)]
    with undone(house.store) as connection:
        Hot(sa.insert(skus), "sku", "seq").many(
            connection, [(name, 0) for name in [*names, "another"]]
        )
        assert sorted(select.all(connection, names)) == sorted((name,) for name in names)


def test_the_statements_of_the_pipeline_compile_for_other_databases_too() -> None:
    dialect: Any = PGDialect_psycopg
    hot = [value for value in vars(Allocator()).values() if isinstance(value, Hot)]
    hot += [value for value in vars(Recorder(1)).values() if isinstance(value, Hot)]
    assert len(hot) == 9
    for statement in hot:
        assert "%(" in str(statement._statement.compile(dialect=dialect()))

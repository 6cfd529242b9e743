"""Hot statements: written in SQLAlchemy Core, compiled once, run on the driver's own cursor.

Core costs several times what SQLite does for one small row. A statement that runs for every batch
is therefore compiled for the dialect at its first use; from then on only its text and tuples go to
the driver. Its errors are the driver's own, which `Store` tells apart as well.

On PostgreSQL every statement costs a round trip, so a batch is one statement: its columns go as
arrays, which the server makes rows of again (`unnest`), and a set of keys is one array.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.sql import ClauseElement, visitors

Bind = sa.BindParameter
Row = tuple[Any, ...]
KEYS_MAX = 256


class Hot:
    """One statement whose parameters are `names`, given as tuples in the order in which they occur
    in its text. Belongs to whoever runs it; compiled for the dialect of its first connection."""

    def __init__(self, statement: ClauseElement, *names: str) -> None:
        self._statement = statement
        self._names = names
        self._text: str | None = None
        self._in_arrays: str | None = None

    def many(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Runs it once for each row, in one call of the driver. Its parameters have types."""
        if not rows:
            return
        with closing(connection.connection.cursor()) as cursor:
            if connection.dialect.positional:
                cursor.executemany(self._text or self._compile(connection), rows)
                return
            text = self._in_arrays or self._compile_in_arrays(connection)
            columns = map(list, zip(*rows, strict=True))
            cursor.execute(text, dict(zip(self._names, columns, strict=True)))

    def all(self, connection: Connection, row: Row) -> list[Row]:
        """Runs it and returns every row of the result."""
        text = self._text or self._compile(connection)
        with closing(connection.connection.cursor()) as cursor:
            positional = connection.dialect.positional
            cursor.execute(text, row if positional else dict(zip(self._names, row, strict=True)))
            return list(cursor.fetchall())

    def _compile(self, connection: Connection) -> str:
        keys = list(self._names) if isinstance(self._statement, sa.Insert) else None
        compiled: Any = self._statement.compile(dialect=connection.dialect, column_keys=keys)
        if compiled.positional and tuple(compiled.positiontup) != self._names:
            raise ValueError(f"parameters occur as {compiled.positiontup}, not {self._names}")
        self._text = str(compiled)
        return self._text

    def _compile_in_arrays(self, connection: Connection) -> str:
        statement = in_arrays(self._statement, self._names)
        self._in_arrays = str(statement.compile(dialect=connection.dialect))
        return self._in_arrays


class HotKeys:
    """The rows of `select` in which `column` is one of a set of keys. On SQLite one text per power
    of two: a short set is filled up with its last key, so that a handful of compiled statements
    serves every size."""

    def __init__(self, select: sa.Select[Any], column: sa.Column[Any]) -> None:
        self._select = select
        self._column = column
        self._by_size: dict[int, Hot] = {}
        keys = sa.bindparam("keys", type_=sa.ARRAY(column.type))
        self._of_array = Hot(select.where(column == sa.any_(keys)), "keys")

    def all(self, connection: Connection, keys: Sequence[Any]) -> list[Row]:
        """The rows of all keys; in the statement's order, on SQLite for each KEYS_MAX of them."""
        if not connection.dialect.positional:
            return self._of_array.all(connection, (list(keys),)) if keys else []
        found: list[Row] = []
        for start in range(0, len(keys), KEYS_MAX):
            some = tuple(keys[start : start + KEYS_MAX])
            size = 1 << (len(some) - 1).bit_length()
            found += self._of_size(size).all(connection, some + some[-1:] * (size - len(some)))
        return found

    def _of_size(self, size: int) -> Hot:
        if size not in self._by_size:
            names = [f"key{i}" for i in range(size)]
            binds: list[sa.BindParameter[Any]] = [sa.bindparam(name) for name in names]
            self._by_size[size] = Hot(self._select.where(self._column.in_(binds)), *names)
        return self._by_size[size]


def in_arrays(statement: ClauseElement, names: Sequence[str]) -> ClauseElement:
    """The statement for all rows at once: each parameter is an array, a column of the rows."""
    if isinstance(statement, sa.Insert):
        columns: Any = statement.table.c
        given = _unnested({name: columns[name].type for name in names})
        return sa.insert(statement.table).from_select(list(names), sa.select(*given.c))
    types = {bind.key: bind.type for bind in visitors.iterate(statement) if isinstance(bind, Bind)}
    rows = _unnested({name: types[name] for name in names})

    def replace(element: Any, **_: Any) -> Any:
        return rows.c[element.key] if isinstance(element, Bind) else None

    replaced: Any = visitors.replacement_traverse(statement, {}, replace)
    return cast(ClauseElement, replaced)


def _unnested(types: dict[str, Any]) -> sa.TableValuedAlias:
    binds = [sa.bindparam(name, type_=sa.ARRAY(kind)) for name, kind in types.items()]
    columns = [sa.column(name, kind) for name, kind in types.items()]
    return sa.func.unnest(*binds).table_valued(*columns, name="given").render_derived()

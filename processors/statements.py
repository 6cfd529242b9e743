"""Hot statements: written in SQLAlchemy Core, compiled once, run on the driver's own cursor.

Core costs several times what SQLite does for one small row. A statement that runs for every batch
is therefore compiled for the dialect at its first use; from then on only its text and tuples go to
the driver. Its errors are the driver's own, which `Store` tells apart as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.sql import ClauseElement

Row = tuple[Any, ...]
KEYS_MAX = 256


class Hot:
    """One statement whose parameters are `names`, given as tuples in the order in which they occur
    in its text. Belongs to whoever runs it; compiled for the dialect of its first connection."""

    def __init__(self, statement: ClauseElement, *names: str) -> None:
        self._statement = statement
        self._names = names
        self._text: str | None = None
        self._positional = True

    def many(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Runs it once for each row, in one call of the driver."""
        if rows:
            text = self._text or self._compile(connection)
            with closing(connection.connection.cursor()) as cursor:
                cursor.executemany(text, rows if self._positional else self._named(rows))

    def all(self, connection: Connection, row: Row) -> list[Row]:
        """Runs it and returns every row of the result."""
        text = self._text or self._compile(connection)
        with closing(connection.connection.cursor()) as cursor:
            cursor.execute(text, row if self._positional else self._named([row])[0])
            return list(cursor.fetchall())

    def _compile(self, connection: Connection) -> str:
        keys = list(self._names) if isinstance(self._statement, sa.Insert) else None
        compiled: Any = self._statement.compile(dialect=connection.dialect, column_keys=keys)
        self._positional = bool(compiled.positional)
        if self._positional and tuple(compiled.positiontup) != self._names:
            raise ValueError(f"parameters occur as {compiled.positiontup}, not {self._names}")
        self._text = str(compiled)
        return self._text

    def _named(self, rows: Iterable[Row]) -> list[dict[str, Any]]:
        return [dict(zip(self._names, row, strict=True)) for row in rows]


class HotKeys:
    """A select over a set of keys. One text per power of two: a short set is filled up with its
    last key, so that a handful of compiled statements serves every size."""

    def __init__(self, select: Callable[[Sequence[sa.BindParameter[Any]]], sa.Select[Any]]) -> None:
        self._select = select
        self._by_size: dict[int, Hot] = {}

    def all(self, connection: Connection, keys: Sequence[Any]) -> list[Row]:
        """The rows of all keys; in the statement's order for each KEYS_MAX of them."""
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
            self._by_size[size] = Hot(self._select(binds), *names)
        return self._by_size[size]

"""Constraints that allow more than they did."""

from __future__ import annotations

from collections.abc import Mapping

from alembic import op

# By table and name of the constraint: the rule that was, and the wider one.
Checks = Mapping[tuple[str, str], tuple[str, str]]


def widen(checks: Checks) -> None:
    """Puts the wider rules into force."""
    if op.get_bind().dialect.name == "sqlite":
        widen_in_place(checks)
        return
    for (table, name), (_, rule) in checks.items():
        op.drop_constraint(name, table)
        op.create_check_constraint(name, table, rule)


def widen_in_place(checks: Checks) -> None:
    """SQLite can't alter a constraint, and to copy a table would take minutes and its size once
    more. Its own way for what changes no row is to change the text of the schema
    (https://www.sqlite.org/lang_altertable.html#otheralter); all of it is in the transaction."""
    connection = op.get_bind()
    version = connection.exec_driver_sql("PRAGMA schema_version").scalar_one()
    connection.exec_driver_sql("PRAGMA writable_schema=ON")
    for (table, _), (was, rule) in checks.items():
        changed = connection.exec_driver_sql(
            "UPDATE sqlite_master SET sql = replace(sql, ?, ?)"
            " WHERE type = 'table' AND name = ? AND instr(sql, ?)",
            (f"({was})", f"({rule})", table, f"({was})"),
        ).rowcount
        assert changed == 1, f"{table} has no constraint ({was})"
    connection.exec_driver_sql(f"PRAGMA schema_version={version + 1}")
    connection.exec_driver_sql("PRAGMA writable_schema=RESET")

"""Orders that were cancelled, stock that came back, lots that were recalled."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# By table and name of the constraint: the rule that was, and the wider one.
CHECKS = {
    ("orders", "orders_status"): (
        "status IN ('allocated', 'rejected', 'dead')",
        "status IN ('allocated', 'rejected', 'dead', 'cancelled')",
    ),
    ("movements", "movements_kind"): (
        "kind IN ('receive', 'adjust', 'allocate')",
        "kind IN ('receive', 'adjust', 'allocate', 'return')",
    ),
    ("movements", "movements_order_id"): (
        "(kind = 'allocate') = (order_id IS NOT NULL)",
        "(kind IN ('allocate', 'return')) = (order_id IS NOT NULL)",
    ),
}


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        widen_in_place()
    else:
        for (table, name), (_, rule) in CHECKS.items():
            op.drop_constraint(name, table)
            op.create_check_constraint(name, table, rule)
    op.add_column("lots", sa.Column("recalled_us", BIG))
    op.add_column("lots", sa.Column("recalled_seq", BIG))
    op.drop_index("lots_in_stock", "lots")
    in_stock = sa.text("available > 0 AND recalled_us IS NULL")
    op.create_index(
        "lots_in_stock",
        "lots",
        ["sku_id", "expires_us", "received_us", "lot_id"],
        sqlite_where=in_stock,
        postgresql_where=in_stock,
    )


def widen_in_place() -> None:
    """SQLite can't alter a constraint, and to copy both tables would take minutes and their size
    once more. Its own way for what changes no row is to change the text of the schema
    (https://www.sqlite.org/lang_altertable.html#otheralter); all of it is in the transaction."""
    connection = op.get_bind()
    version = connection.exec_driver_sql("PRAGMA schema_version").scalar_one()
    connection.exec_driver_sql("PRAGMA writable_schema=ON")
    for (table, _), (was, rule) in CHECKS.items():
        changed = connection.exec_driver_sql(
            "UPDATE sqlite_master SET sql = replace(sql, ?, ?)"
            " WHERE type = 'table' AND name = ? AND instr(sql, ?)",
            (f"({was})", f"({rule})", table, f"({was})"),
        ).rowcount
        assert changed == 1, f"{table} has no constraint ({was})"
    connection.exec_driver_sql(f"PRAGMA schema_version={version + 1}")
    connection.exec_driver_sql("PRAGMA writable_schema=RESET")

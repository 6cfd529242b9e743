"""The order line: orders, stock, movements, outbox."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
BYTE_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    orders()
    stock()
    movements()
    outbox()


def orders() -> None:
    op.create_table(
        "orders",
        sa.Column("id", sa.LargeBinary(16), primary_key=True),
        sa.Column("round", BIG, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("customer", sa.Text),
        sa.Column("reference", sa.Text),
        sa.Column("metadata", sa.Text),
        sa.Column("lines", sa.Text),
        sa.Column("body_hash", sa.LargeBinary(16)),
        sa.Column("ring_epoch", sa.LargeBinary(8), nullable=False),
        sa.Column("ring_sequence", BIG, nullable=False),
        sa.Column("accepted_us", BIG, nullable=False),
        sa.Column("taken_us", BIG, nullable=False),
        sa.Column("committed_us", BIG, nullable=False),
        sa.Column("attempts", BIG, nullable=False),
        sa.Column("cause", sa.Text),
        sa.Column("payload", sa.LargeBinary),
        sa.CheckConstraint("status IN ('allocated', 'rejected', 'dead')", name="orders_status"),
        sqlite_with_rowid=False,
        sqlite_strict=True,
    )


def stock() -> None:
    op.create_table(
        "skus",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("sku", BYTE_TEXT, nullable=False, unique=True),
        sa.Column("seq", BIG, nullable=False),
        sqlite_strict=True,
    )
    op.create_table(
        "lots",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("lot_id", BYTE_TEXT, nullable=False, unique=True),
        sa.Column("sku_id", BIG, sa.ForeignKey("skus.id"), nullable=False),
        sa.Column("received", BIG, nullable=False),
        sa.Column("available", BIG, nullable=False),
        sa.Column("expires_us", BIG, nullable=False),
        sa.Column("received_us", BIG, nullable=False),
        sa.Column("supplier", sa.Text),
        sa.Column("body_hash", sa.LargeBinary(16), nullable=False),
        sa.CheckConstraint("available >= 0", name="lots_available"),
        sqlite_strict=True,
    )
    order_of_use = ["sku_id", "expires_us", "received_us", "lot_id"]
    in_stock = sa.text("available > 0")
    op.create_index("lots_in_order", "lots", order_of_use)
    # The last one: where both serve, SQLite prefers the index that was made later.
    op.create_index(
        "lots_in_stock", "lots", order_of_use, sqlite_where=in_stock, postgresql_where=in_stock
    )


def movements() -> None:
    op.create_table(
        "movements",
        sa.Column("sku_id", BIG, primary_key=True, autoincrement=False),
        sa.Column("seq", BIG, primary_key=True, autoincrement=False),
        sa.Column("lot", BIG, sa.ForeignKey("lots.id"), nullable=False),
        sa.Column("delta", BIG, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("order_id", sa.LargeBinary(16)),
        sa.Column("at_us", BIG, nullable=False),
        sa.Column("reason", sa.Text),
        sa.CheckConstraint("kind IN ('receive', 'adjust', 'allocate')", name="movements_kind"),
        sa.CheckConstraint(
            "(kind = 'allocate') = (order_id IS NOT NULL)", name="movements_order_id"
        ),
        sqlite_with_rowid=False,
        sqlite_strict=True,
    )
    of_an_order = sa.text("order_id IS NOT NULL")
    op.create_index(
        "movements_of_order",
        "movements",
        ["order_id"],
        sqlite_where=of_an_order,
        postgresql_where=of_an_order,
    )


def outbox() -> None:
    op.create_table(
        "outbox",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("order_id", sa.LargeBinary(16), nullable=False),
        sa.Column("round", BIG, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("created_us", BIG, nullable=False),
        sqlite_strict=True,
    )

"""Sums of each sku's stock, expiry as a movement, events of stock; cheaper constraints."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from processors.migrations.widening import widen

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
BYTE_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
ZERO = sa.text("0")
# From three values on SQLite builds a table for `IN`, for each row that is written.
CHECKS = {
    ("movements", "movements_kind"): (
        "kind IN ('receive', 'adjust', 'allocate', 'return')",
        "kind = 'receive' OR kind = 'adjust' OR kind = 'allocate' OR kind = 'return'"
        " OR kind = 'expire'",
    ),
    ("orders", "orders_status"): (
        "status IN ('allocated', 'rejected', 'dead', 'cancelled')",
        "status = 'allocated' OR status = 'rejected' OR status = 'dead' OR status = 'cancelled'",
    ),
    ("deliveries", "deliveries_state"): (
        "state IN ('waiting', 'delivered', 'failed')",
        "state = 'waiting' OR state = 'delivered' OR state = 'failed'",
    ),
}
IN_STOCK = sa.text("available > 0 AND recalled_us IS NULL AND expired_seq IS NULL")
NOT_EXPIRED = sa.text("expired_seq IS NULL")
# No lot has expired yet, as far as this schema knows: that is noted in the next minutes.
SUM_UP = """
UPDATE skus SET available = coalesce(
    (SELECT sum(available) FROM lots WHERE lots.sku_id = skus.id AND recalled_us IS NULL), 0)
"""
FIND_RECEIPTS = """
UPDATE lots SET received_seq = receipts.seq
    FROM (SELECT lot, seq FROM movements WHERE kind = 'receive') AS receipts
    WHERE receipts.lot = lots.id
"""


def upgrade() -> None:
    widen(CHECKS)
    for name in ("available", "expired", "low_below"):
        op.add_column("skus", sa.Column(name, BIG, nullable=False, server_default=ZERO))
    for name in ("received_seq", "expired_seq"):
        op.add_column("lots", sa.Column(name, BIG))
    op.add_column("endpoints", sa.Column("failing_us", BIG, nullable=False, server_default=ZERO))
    op.execute(SUM_UP)
    op.execute(FIND_RECEIPTS)
    op.drop_index("lots_in_stock", "lots")
    for name, columns, where in (
        ("lots_in_stock", ["sku_id", "expires_us", "received_us", "lot_id"], IN_STOCK),
        ("lots_expiring", ["expires_us"], NOT_EXPIRED),
    ):
        op.create_index(name, "lots", columns, sqlite_where=where, postgresql_where=where)
    make_tables()


def make_tables() -> None:
    op.create_table(
        "stock_events",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("sku_id", BIG, sa.ForeignKey("skus.id"), nullable=False),
        sa.Column("seq", BIG, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("lot", BIG, sa.ForeignKey("lots.id")),
        sa.Column("quantity", BIG, nullable=False),
        sa.Column("below", BIG),
        sa.Column("created_us", BIG, nullable=False),
        sa.CheckConstraint("type IN ('stock.low', 'stock.expired')", name="stock_events_type"),
        sqlite_strict=True,
    )
    op.create_index("stock_events_of_sku", "stock_events", ["sku_id", "seq"])
    op.create_table(
        "low_stock",
        sa.Column("sku", BYTE_TEXT, primary_key=True),
        sa.Column("below", BIG, nullable=False),
        sqlite_with_rowid=False,
        sqlite_strict=True,
    )

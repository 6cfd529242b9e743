"""Orders that were cancelled, stock that came back, lots that were recalled."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from processors.migrations.widening import widen

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
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
    widen(CHECKS)
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

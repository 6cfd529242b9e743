"""What retention needs: opening balances, up to where movements were folded into them, and the
moment before which orders may be gone."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("lots", sa.Column("opening", BIG))
    op.add_column("skus", sa.Column("folded", BIG, nullable=False, server_default=sa.text("0")))
    replayed = sa.text("round > 0")
    op.create_index(
        "outbox_of_replayed",
        "outbox",
        ["order_id"],
        sqlite_where=replayed,
        postgresql_where=replayed,
    )
    meta = sa.table("meta", sa.column("name", sa.Text), sa.column("value", sa.LargeBinary))
    op.bulk_insert(meta, [{"name": "forgotten_before", "value": bytes(8)}])

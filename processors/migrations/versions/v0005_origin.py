"""Whose order it is, what its request was called, and what requests with a key were answered."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    for name in ("owner", "request_id", "traceparent"):
        op.add_column("orders", sa.Column(name, sa.Text))
    op.create_table(
        "requests",
        sa.Column("id", sa.LargeBinary(16), primary_key=True),
        sa.Column("body_hash", sa.LargeBinary(16), nullable=False),
        sa.Column("answer", sa.LargeBinary, nullable=False),
        sa.Column("created_us", BIG, nullable=False),
        sqlite_with_rowid=False,
        sqlite_strict=True,
    )
    op.create_index("requests_in_order", "requests", ["created_us"])

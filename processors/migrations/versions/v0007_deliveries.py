"""Endpoints that are told of outcomes, and what became of each event."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "endpoints",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("event", BIG, nullable=False),
        sa.Column("stock_event", BIG, nullable=False),
        sa.Column("disabled_us", BIG),
        sa.Column("why", sa.Text),
        sqlite_with_rowid=False,
        sqlite_strict=True,
    )
    op.create_table(
        "deliveries",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("event_id", sa.LargeBinary(16), nullable=False),
        sa.Column("subject", sa.LargeBinary, nullable=False),
        sa.Column("number", BIG, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("created_us", BIG, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempts", BIG, nullable=False),
        sa.Column("first_us", BIG),
        sa.Column("next_us", BIG),
        sa.Column("ended_us", BIG),
        sa.Column("status", BIG),
        sa.Column("error", sa.Text),
        sa.CheckConstraint("state IN ('waiting', 'delivered', 'failed')", name="deliveries_state"),
        sa.UniqueConstraint("event_id", "endpoint", name="deliveries_once"),
        sqlite_strict=True,
    )
    waiting = sa.text("state = 'waiting'")
    for name, columns in (
        ("deliveries_waiting", ["endpoint", "next_us", "id"]),
        ("deliveries_behind", ["endpoint", "subject", "id"]),
    ):
        op.create_index(name, "deliveries", columns, sqlite_where=waiting, postgresql_where=waiting)

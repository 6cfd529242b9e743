"""What a journal needs of the database: a name that no other database has."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    meta = op.create_table(
        "meta",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
        sqlite_strict=True,
    )
    rows = {"database_id": secrets.token_bytes(16), "touched": bytes(8)}
    op.bulk_insert(meta, [{"name": name, "value": value} for name, value in rows.items()])

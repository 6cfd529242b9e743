"""Whose order it is, and what its request was called."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("owner", "request_id", "traceparent"):
        op.add_column("orders", sa.Column(name, sa.Text))

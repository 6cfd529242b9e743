"""Dead letters in the order in which they died, however many orders there are."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    dead = sa.text("status = 'dead' AND reason <> 'discarded'")
    op.create_index(
        "dead_letters", "orders", ["committed_us", "id"], sqlite_where=dead, postgresql_where=dead
    )

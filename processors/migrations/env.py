"""What Alembic runs. The connection and its transaction belong to `processors.store.migrate`."""

from __future__ import annotations

from alembic import context

# SQLite's DDL is transactional, which Alembic doesn't assume: with it a killed upgrade leaves
# the database as it was.
context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
context.run_migrations()

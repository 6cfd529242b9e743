"""Runs the migrations by program: no ini file, no logging set-up, the caller's transaction."""

from __future__ import annotations

import logging
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.engine import Connection

from processors.store import StoreError

FOLDER = Path(__file__).with_name("migrations")


def upgrade(connection: Connection) -> None:
    """Runs what is missing inside the connection's transaction. Raises StoreError."""
    # At info Alembic tells of every context that it makes, also when there is nothing to do.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        newest = ScriptDirectory.from_config(config).get_current_head()
        raise StoreError(
            f"the database was migrated by a newer Rasher: {error}; "
            f"the newest version known here is {newest}"
        ) from error

"""The supervisor's short visits to the database: a connection for one question, then none.

What speaks with a database takes as long to import as all the rest of a start, so it is imported
when it is needed: a refused start or --help has no use for it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, TypeVar

from processors.datadir import CannotStart
from processors.journal import journal_dir
from processors.policy import MIGRATE_EVERY_S
from processors.settings import Settings
from ringbuf.segment import remove_half_made

if TYPE_CHECKING:
    from processors.store import Store

T = TypeVar("T")

log = logging.getLogger(__name__)


def migrated(settings: Settings) -> bool:
    """Brings the database to this version's schema and these thresholds; False: it can't be reached
    now."""
    from processors.low_stock import set_thresholds  # noqa: PLC0415
    from processors.store import Store, StoreError, StoreUnavailable, migrate  # noqa: PLC0415

    try:
        migrate(settings.database)
        with closing(Store.open(settings.database, connections_max=1, long=True)) as store:
            set_thresholds(store, settings.stock.thresholds)
    except StoreUnavailable as error:
        log.warning("%s; tried again every %g s (--database)", error, MIGRATE_EVERY_S)
        return False
    except StoreError as error:
        raise CannotStart(f"--database: {error}") from error
    return True


def asked(settings: Settings, question: Callable[[Store], T]) -> T | None:
    """What the database says; None: it can't be asked now."""
    from processors.store import Store, StoreError, StoreUnavailable  # noqa: PLC0415

    store = Store.open(settings.database, connections_max=1)
    try:
        return question(store)
    except StoreUnavailable as error:
        log.warning("%s (--database)", error)
        return None
    except StoreError as error:
        raise CannotStart(f"--database: {error}") from error
    finally:
        store.close()


def name_of_database(settings: Settings) -> bytes | None:
    """The 16 bytes that it calls itself; None: it can't be asked now."""
    from processors.known import database_id  # noqa: PLC0415

    return asked(settings, database_id)


def tidy(settings: Settings, *, empty: bool) -> None:
    """Everybody who used the database has ended; what they left beside it is no error, nor are
    segments of the journal. empty: nothing is left of which they would have to tell."""
    from processors.recycling import Recycler  # noqa: PLC0415
    from processors.store import StoreError, StoreUnavailable, leave_one_file  # noqa: PLC0415

    try:
        remove_half_made(journal_dir(settings))
        if empty:
            asked(settings, lambda store: Recycler(journal_dir(settings), store).step(sys.maxsize))
        leave_one_file(settings.database)
    except (CannotStart, StoreError, StoreUnavailable, OSError) as error:
        log.info("what lies beside the database stays until the next start: %s", error)

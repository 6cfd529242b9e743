"""`rasher backup TARGET_DIR`: a copy of a running or stopped system that a start can go on from.

Every order that was answered before the command began is in it, none twice. It goes with the flow:

    journal     what the database does not know yet, segment by segment
    rings       what waits and what lies in hands, as a stop would write it
    database    in one snapshot, begun after that; what moved on meanwhile is in it

A start with `--data-dir TARGET_DIR` finds segments of rings that are gone, and puts back what the
copied database does not know (processors/recovery.py); what both have is known by its id.

The copy is made beside its place under another name, synced, and renamed: what has the name that
was asked for is whole.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, islice
from pathlib import Path

import sqlalchemy as sa
from rich.console import Console
from rich.progress import Progress

from processors.backup_database import copy_database
from processors.datadir import attach_rings
from processors.journal import journal_dir
from processors.known import Known, database_id
from processors.settings import Settings
from processors.spill import in_order, record, write_items
from processors.statements import KEYS_MAX
from processors.store import Store, StoreError, StoreUnavailable
from ringbuf import Identity, Item, Ring, RingError, Segment, SegmentError
from ringbuf.segment import grouped, make_segment, segment_paths, sync_directory

EXIT_FAILED, EXIT_USAGE = 1, 2
USAGE = "usage: rasher backup TARGET_DIR   (a directory that is not there yet, or is empty)"

log = logging.getLogger(__name__)

Told = Callable[[str, int, int], None]


class BackupError(Exception):
    """There is no backup, for the reason that the text gives."""


def main(settings: Settings, args: Sequence[str]) -> int:
    """The verb. Exit 0 when the copy is whole and on disk, 1 when there is none, 2: wrong usage."""
    if len(args) != 1 or args[0].startswith("-"):
        sys.stderr.write(f"{USAGE}\n")
        return EXIT_USAGE
    target, begun = Path(args[0]).absolute(), time.monotonic()
    try:
        with _progress() as told:
            count = back_up(settings, target, told)
    except (BackupError, OSError, sqlite3.Error, RingError) as error:
        sys.stderr.write(f"backup: {error}; there is none\n")
        return EXIT_FAILED
    seconds, size = time.monotonic() - begun, _bytes_of(target)
    sys.stdout.write(
        f"backup: {target} is whole: {size:,} bytes, {count:,} orders that had no outcome yet, "
        f"in {seconds:.1f} s\n"
    )
    return 0


def back_up(settings: Settings, target: Path, told: Told = lambda *_: None) -> int:
    """Makes the copy -> how many orders are in it without an outcome, as far as was known.

    `told(what, done, total)` hears of the progress. Raises BackupError, OSError, sqlite3.Error,
    RingError; then nothing is left.
    """
    check_target(target)
    half = target.parent / f".{target.name}.{secrets.token_hex(4)}.partial"
    half.mkdir(mode=0o700)
    try:
        (half / "journal").mkdir(mode=0o700)
        count = _copy_flow(settings, half / "journal", told)
        copy_database(settings.database, half, told)
        sync_directory(half)
        half.rename(target)
        half = target
        sync_directory(target.parent)
    except BaseException:
        shutil.rmtree(half, ignore_errors=True)
        raise
    return count


def check_target(target: Path) -> None:
    """Whether a backup may have that name. Raises BackupError."""
    if not target.parent.is_dir():
        raise BackupError(f"{target.parent}: there is no such directory")
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        raise BackupError(f"{target}: it is there already and is no directory")
    if any(target.iterdir()):
        raise BackupError(f"{target}: it is not empty; a backup needs a directory of its own")


# ---- what has no outcome yet ------------------------------------------------------------------


def _copy_flow(settings: Settings, into: Path, told: Told) -> int:
    path = sa.make_url(settings.database).database
    if settings.database.startswith("sqlite") and path and not Path(path).exists():
        raise BackupError(f"there is no database: {path} (--data-dir, --database)")
    store = Store.open(settings.database, connections_max=1)
    try:
        database = database_id(store)
        count = sum(
            _copy_segment(settings, store, path, into)
            for path in _told_of(segment_paths(journal_dir(settings)), told)
        )
        with ExitStack() as stack:
            for ring in [stack.enter_context(one) for one in attach_rings(settings)]:
                count += _copy_ring(ring, into, database)
    except (StoreError, StoreUnavailable) as error:
        raise BackupError(f"{error} (--database)") from error
    except SegmentError as error:
        raise BackupError(f"the journal can't be read: {error}") from error
    finally:
        store.close()
    sync_directory(into)
    return count


def _told_of(paths: Sequence[Path], told: Told) -> Iterator[Path]:
    for number, path in enumerate(paths):
        told("journal", number, len(paths))
        yield path
    told("journal", len(paths), len(paths))


def _copy_segment(settings: Settings, store: Store, path: Path, into: Path) -> int:
    """What the database does not know of it, as a segment of the same ring -> how many items."""
    try:
        segment = _opened(path)
    except FileNotFoundError:
        return 0  # recycled: the database knows all of it
    tally: Counter[str] = Counter()
    with segment:
        records = (record(item) for item in _unknown(store, segment))
        first = next(records, None)
        if first is not None:
            header, some = segment.header, _counted(chain([first], records), tally)
            fd, made = make_segment(into, header, grouped(header.serial, some))
            os.close(fd)
            made.rename(made.with_suffix(".sealed"))
        _refuse_damage(settings, segment)
    return tally["records"]


def _counted(records: Iterable[bytes], tally: Counter[str]) -> Iterator[bytes]:
    for one in records:
        tally["records"] += 1
        yield one


def _opened(path: Path) -> Segment:
    try:
        return Segment.open(path)
    except FileNotFoundError:
        return Segment.open(path.with_suffix(".sealed"))


def _unknown(store: Store, segment: Segment) -> Iterator[Item]:
    known, items = Known(), segment.items()
    while some := list(islice(items, KEYS_MAX)):
        identities = [Identity(item.key, item.round) for item in some]
        with store.reading() as connection:
            settled = known.of(connection, identities)
        yield from (item for item, one in zip(some, identities, strict=True) if one not in settled)


def _refuse_damage(settings: Settings, segment: Segment) -> None:
    for one in segment.damage:
        text = f"{segment.path} is damaged from byte {one.at} to {one.until}"
        if settings.journal.damaged == "refuse":
            raise BackupError(f"{text}. To go on without that: --damaged-journal skip")
        log.error("%s. Going on without that (--damaged-journal skip)", text)


def _copy_ring(ring: Ring, into: Path, database: bytes) -> int:
    items = list(in_order(ring))
    if items:
        made = write_items(into, ring.epoch, items, database)
        made.rename(made.with_suffix(".sealed"))
    return len(items)


# ---- what people see --------------------------------------------------------------------------


def _bytes_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


@contextmanager
def _progress() -> Iterator[Told]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks = {}

        def told(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what)
            progress.update(tasks[what], completed=done, total=total or None)

        yield told

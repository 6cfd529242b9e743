"""The journal as Rasher uses it: where it lies, and whose it is."""

from __future__ import annotations

from pathlib import Path

from processors.settings import Settings
from ringbuf import JournalRules, SegmentHeader, boot_id, own_identity
from ringbuf.segment import sync_directory


def journal_dir(settings: Settings) -> Path:
    """It need not be there."""
    return Path(settings.data_dir, "journal")


def make_journal_dir(settings: Settings) -> Path:
    """Made, and its name on disk. Raises OSError."""
    path = journal_dir(settings)
    if not path.is_dir():
        path.mkdir(mode=0o700, exist_ok=True)
        sync_directory(path.parent)
    return path


def own_header(epoch: int, database: bytes) -> SegmentHeader:
    """Of segments that this process makes for items of that ring; the maker adds the rest."""
    return SegmentHeader(
        serial=0,
        epoch=epoch,
        boot_id=boot_id(),
        database=database,
        writer=own_identity(),
        made_ns=0,
    )


def journal_rules(settings: Settings, epoch: int, database: bytes) -> JournalRules:
    """Of a front's journal."""
    return JournalRules(
        directory=journal_dir(settings),
        header=own_header(epoch, database),
        segment_bytes=settings.journal.segment_bytes,
        segments_max=settings.journal.segments_max,
    )

"""Audits the journal: what it holds must be somewhere further on, or waits for the next start.

Read first, for an item is in its slot before it is in the journal, and moves on from there.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from msgspec import Struct

from processors.audit_report import Report
from ringbuf import Identity, Segment, SegmentError
from ringbuf.segment import segment_paths


class Journaled(Struct):
    """What it holds. `living`: items of rings that are there; `left`: of such that are gone, which
    the next start puts back if the database does not know them."""

    living: set[Identity]
    left: set[Identity]


def read_journal(directory: Path, epochs: Collection[int], report: Report) -> Journaled:
    """Rule journal, as far as the files tell. `epochs`: of the rings that are there."""
    found = Journaled(set(), set())
    for path in segment_paths(directory):
        try:
            with Segment.open(path) as segment:
                items = found.living if segment.header.epoch in epochs else found.left
                for group in segment.groups():
                    items.update(group.identities())
                    report.counts["in the journal"] += group.records
                for one in segment.damage:
                    text = f"{path} is damaged from byte {one.at} to {one.until}"
                    report.violate("journal", text)
        except FileNotFoundError:
            continue  # sealed under another name, or all of it is committed
        except (SegmentError, OSError) as error:
            report.violate("journal", f"it can't be read: {error}")
    return found

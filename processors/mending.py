"""An item that was damaged in shared memory is read again from the journal, which has it whole."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from processors.stop import Stop
from ringbuf import Item, Segment, SegmentError
from ringbuf.segment import segment_paths

# A worker may be faster than the sync of what it took.
TRIES = 10
PAUSE_S = 0.02

Mend = Callable[[Item], Item]

log = logging.getLogger(__name__)


def mender(directory: Path, epoch: int, stop: Stop) -> Mend:
    """-> what gives back a damaged item as the journal of that ring has it, or as it is. Found by
    its place in the ring: its key may be what is damaged."""

    def mend(item: Item) -> Item:
        for _ in range(TRIES):
            found, any_segment = _look(directory, epoch, item.sequence)
            if found is not None:
                log.error("slot %d was damaged in memory, the journal has it whole", item.sequence)
                return Item(
                    found.payload, found.key, sequence=item.sequence, attempts=item.attempts,
                    accepted_ns=found.accepted_ns, header=found.header, round=found.round,
                    cell=item.cell,
                )  # fmt: skip
            if not any_segment or stop.wait(PAUSE_S):
                break
        return item

    return mend


def _look(directory: Path, epoch: int, sequence: int) -> tuple[Item | None, bool]:
    """-> the item, and whether there is a journal of that ring at all."""
    any_segment = False
    for path in segment_paths(directory):
        try:
            with Segment.open(path) as segment:
                if segment.header.epoch != epoch:
                    continue
                any_segment = True
                found = next((one for one in segment.items() if one.sequence == sequence), None)
        except (OSError, SegmentError) as error:
            log.debug("a segment can't be looked at now: %s", error)
            continue
        if found is not None:
            return found, True
    return None, any_segment

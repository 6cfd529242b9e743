"""A bounded queue of bytes in shared memory that survives the death of any of its processes.

``Ring.create`` makes the file, ``Ring.attach`` joins it; ``ring.writer()`` puts, ``ring.reader(i)``
takes. A full ring makes writers wait. Nothing in here knows of orders or HTTP.
"""

from ringbuf._kernel import Item
from ringbuf.errors import (
    Closed,
    Empty,
    Full,
    HandFull,
    InUse,
    Misfit,
    NotHeld,
    RingError,
    TooLarge,
)
from ringbuf.journal import Journal, JournalRules, RoomGone
from ringbuf.pages import PAGE_WORDS
from ringbuf.participants import Participant, boot_id, own_identity
from ringbuf.reader import Reader
from ringbuf.ring import Found, Ring, Snapshot
from ringbuf.segment import Identity, Segment, SegmentError, SegmentHeader
from ringbuf.writer import Writer

__all__ = [
    "PAGE_WORDS",
    "Closed",
    "Empty",
    "Found",
    "Full",
    "HandFull",
    "Identity",
    "InUse",
    "Item",
    "Journal",
    "JournalRules",
    "Misfit",
    "NotHeld",
    "Participant",
    "Reader",
    "Ring",
    "RingError",
    "RoomGone",
    "Segment",
    "SegmentError",
    "SegmentHeader",
    "Snapshot",
    "TooLarge",
    "Writer",
    "boot_id",
    "own_identity",
]

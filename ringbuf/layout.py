"""The mapping as numpy sees it: the same bytes as kernel.h describes."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

from ringbuf._kernel import Mapping

SLOT_HEAD_BYTES = 64


def slot_dtype(slot_bytes: int) -> np.dtype[Any]:
    """One slot: ``stamp`` is its sequence + 1, 0 while it is being written; ``data`` holds the
    record header (``header_bytes`` long) and then the payload."""
    return np.dtype(
        [
            ("stamp", "<u8"),
            ("key", "V16"),
            ("accepted_ns", "<u8"),
            ("payload_bytes", "<u4"),
            ("header_bytes", "<u2"),
            ("header_version", "<u2"),
            ("round", "<u4"),
            ("crc", "<u4"),
            ("reserved", "V16"),
            ("data", "u1", (slot_bytes - SLOT_HEAD_BYTES,)),
        ]
    )


def slots_view(mapping: Mapping, fd: int) -> npt.NDArray[Any]:
    """The slots, shape (capacity,), through a mapping of their own that can't be written."""
    memory = mmap.mmap(fd, mapping.file_bytes, prot=mmap.PROT_READ)
    return np.ndarray((mapping.capacity,), slot_dtype(mapping.slot_bytes), memory, mapping.slots_at)

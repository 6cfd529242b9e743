"""The clock that orders and movements are stamped with."""

from __future__ import annotations

import time

# A timer of uvloop's has whole milliseconds, and rings up to half a one before its time: who asks
# the clock whether that time has come allows for it.
EARLY_S = 0.001


def now_us() -> int:
    """Microseconds since 1970 UTC, by the machine's clock."""
    return time.time_ns() // 1000

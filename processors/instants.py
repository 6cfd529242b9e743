"""The clock that orders and movements are stamped with."""

from __future__ import annotations

import time


def now_us() -> int:
    """Microseconds since 1970 UTC, by the machine's clock."""
    return time.time_ns() // 1000

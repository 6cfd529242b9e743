"""What an error of a database says about the database, whichever it is."""

from __future__ import annotations

from enum import Enum


class Verdict(Enum):
    """What explains an error, if the statement does not.

    BROKEN: a write or a sync has failed. UNFIT: it can't be used as it is configured.
    UNAVAILABLE: away, full, read-only; waiting can help. BUSY: others hold what was needed, and it
    was waited for. CONTENDED: somebody was faster; the same again will see what he did.
    """

    BROKEN = "broken"
    UNFIT = "unfit"
    UNAVAILABLE = "unavailable"
    BUSY = "busy"
    CONTENDED = "contended"


class Unfit(Exception):
    """Raised while connecting: waiting will not help."""

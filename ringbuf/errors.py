"""What can go wrong with a ring, as a small tree."""

from __future__ import annotations


class RingError(Exception):
    """The ring can't do that, for a reason that the text gives."""


class Full(RingError):
    """No room came within the timeout; nothing was put."""


class Empty(RingError):
    """Nothing came within the timeout; nothing was taken."""


class Closed(RingError):
    """Closed: to a writer at once, to a reader when everything has been taken."""


class HandFull(RingError):
    """Every cell of the reader's hand is held: release before the next take."""


class NotHeld(RingError):
    """Released what the reader does not hold; nothing was released."""


class TooLarge(RingError, ValueError):
    """The message does not fit a slot; the text gives both sizes."""


class Misfit(RingError):
    """The file is no ring that this code can attach; the text says what was found and wanted."""


class InUse(RingError):
    """The index belongs to a process that lives; the text names it."""

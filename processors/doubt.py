"""The end of a process that can't vouch for what is on disk."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import NoReturn

from ringbuf import Ring, RingError

EXIT_DOUBT = 4

log = logging.getLogger(__name__)


def give_up(ring: Ring, error: BaseException) -> NoReturn:
    """Ends this process at once, its connections unanswered, and keeps every other from answering:
    a closed ring takes nothing in, and fronts answer nothing that waits for its sync.

    A sync that failed is not tried again: the kernel may have dropped what it could not write, and
    the next one would say that all is well. The next start finds what is on disk.
    """
    with contextlib.suppress(RingError):
        ring.close()
    # After it: whoever reads the log may be slow.
    log.critical("stopping, for it is not sure what is on disk: %s", error)
    os._exit(EXIT_DOUBT)

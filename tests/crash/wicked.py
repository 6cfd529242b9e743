"""A processor for orders that mean harm: what they do stands in their reference.

    crash, abort          a signal of the process's own
    exit, leave           sys.exit, and an exit without any Python code
    loop, deaf            an endless loop, and one in C that never lets go of the GIL
    greedy, raise         an exception
    hold                  sleeps for ever
    sulk                  an exception, as long as the file is there that its metadata name

Everything else is allocated.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from sqlalchemy.engine import Connection

from processors.pipeline import Outcome, Processor, Work, fefo


def loop() -> None:
    while True:
        pass


def refuse() -> None:
    raise ZeroDivisionError("bad bacon")


def sulk(work: Work) -> None:
    if Path((work.order.metadata or {})["while"]).exists():
        raise RuntimeError("sulks")


HARM: dict[str, Callable[[], object]] = {
    "crash": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "exit": lambda: sys.exit(7),
    "leave": lambda: os._exit(0),
    "loop": loop,
    "deaf": lambda: any(itertools.repeat(0)),
    "greedy": lambda: bytearray(1 << 60),
    "raise": refuse,
    "hold": threading.Event().wait,
}
# What the row of each says: reason, and a word of its cause.
FOUND = {
    "crash": ("worker_crashed", "SIGSEGV"),
    "abort": ("worker_crashed", "SIGABRT"),
    "exit": ("worker_crashed", "exit code 7"),
    "leave": ("worker_crashed", "exit code 0"),
    "loop": ("timed_out", "in loop"),
    "deaf": ("timed_out", "SIGALRM"),
    "greedy": ("processor_error", "MemoryError"),
    "raise": ("processor_error", "ZeroDivisionError: bad bacon"),
}


def wicked() -> Processor:
    inner = fefo()

    def process(transaction: Connection, orders: Sequence[Work], moment: int) -> Sequence[Outcome]:
        for work in orders:
            if work.order.reference == "sulk":
                sulk(work)
            if work.order.reference in HARM:
                HARM[work.order.reference]()
        return inner(transaction, orders, moment)

    return process

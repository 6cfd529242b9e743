"""What a test must not leave behind in its process: descriptors, threads, children, ring files."""

from __future__ import annotations

import gc
import threading
import time
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
# Pools that their owners keep for the next call, and the watchman of pytest-timeout.
POOLED_THREADS = ("AnyIO worker", "asyncio_", "ThreadPoolExecutor", "pytest_timeout", "QueueFeeder")
# Servers that a session's tests share; whoever starts one adds its pid, and ends it.
KEPT_CHILDREN: set[int] = set()
LASTING_FILES = ("/dev/urandom", "/dev/random", "/dev/null", "/dev/pts/", "/dev/tty")


@dataclass(frozen=True)
class Belongings:
    descriptors: frozenset[tuple[int, str]]
    threads: frozenset[threading.Thread]
    children: frozenset[int]
    ring_files: frozenset[str]

    @classmethod
    def now(cls) -> Belongings:
        return cls(_descriptors(), _threads(), _children(), _ring_files())


def left_over(before: Belongings, owner: str, patience_s: float = 3.0) -> list[str]:
    """What is there now and was not before, once threads and children had time to end.

    ``owner``: only ring files that name this path in their header count, for other sessions of the
    same machine make theirs at the same time.
    """
    deadline = time.monotonic() + patience_s
    found = _compare(before, owner)
    if found:
        gc.collect()  # a dropped loop or socket goes by the collector, not by a leak
    while found and time.monotonic() < deadline:
        time.sleep(0.01)
        found = _compare(before, owner)
    return found


def _compare(before: Belongings, owner: str) -> list[str]:
    now = Belongings.now()
    tracked = _tracker_belongings()
    found = [f"descriptor {fd} ({name})" for fd, name in now.descriptors - before.descriptors]
    found += [f"thread {thread.name}" for thread in now.threads - before.threads]
    found += [f"child process {pid}" for pid in now.children - before.children - KEPT_CHILDREN]
    found = [each for each in found if not each.startswith(tracked)]
    files = now.ring_files - before.ring_files
    return found + [f"ring file {name}" for name in files if _names(name, owner)]


def _tracker_belongings() -> tuple[str, ...]:
    """multiprocessing starts one helper per process on first use and keeps it."""
    tracker = resource_tracker._resource_tracker
    fd, pid = getattr(tracker, "_fd", None), getattr(tracker, "_pid", None)
    return (f"descriptor {fd} ", f"child process {pid}") if pid else ("descriptor None ",)


def _descriptors() -> frozenset[tuple[int, str]]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:  # the listing's own
            continue
        if not target.startswith(LASTING_FILES):
            found.add((int(entry.name), target))
    return frozenset(found)


def _threads() -> frozenset[threading.Thread]:
    living = threading.enumerate()
    return frozenset(thread for thread in living if not thread.name.startswith(POOLED_THREADS))


def _children() -> frozenset[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            found.update(map(int, (task / "children").read_text().split()))
        except (FileNotFoundError, ProcessLookupError):  # the thread has just ended
            continue
    return frozenset(found)


def _ring_files() -> frozenset[str]:
    return frozenset(entry.name for entry in SHARED_MEMORY.glob("rasher-*"))


def _names(ring_file: str, owner: str) -> bool:
    try:
        with (SHARED_MEMORY / ring_file).open("rb") as file:
            return owner.encode() in file.read(4096)
    except OSError:
        return False

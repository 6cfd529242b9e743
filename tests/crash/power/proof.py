"""Judges many images of one recorded run, in several processes, some by the whole program."""

from __future__ import annotations

import logging
import multiprocessing
import shutil
import signal
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from processors.schema import format_uuid
from tests.crash.power.disk import Choice, Disk, boundaries, choices, lay_out
from tests.crash.power.recording import read_events
from tests.crash.power.verdict import Verdict, judge
from tests.program import Rasher, verb

FRESH_EVERY = 100


@dataclass(frozen=True)
class Task:
    """One process's share: every `shares`-th of the chosen boundaries. `into`: the recording;
    `root`: what was recorded; `images` in all; `fresh`: some are started by the whole program, in
    this folder on a real disk."""

    into: Path
    root: str
    images: int
    share: int = 0
    shares: int = 1
    fresh: Path | None = None


def prove(task: Task) -> Verdict:
    """Its images, spread over all boundaries."""
    logging.disable(logging.WARNING)  # each one says what it puts back
    verdict, events = Verdict(), read_events(task.into)
    count = sum(1 for _ in boundaries(events, task.root))
    each = max(3, -(-task.images // count))
    wanted = -(-task.images // each)
    for number, disk in boundaries(events, task.root):
        chosen = number * wanted // count
        if chosen == (number - 1) * wanted // count or chosen % task.shares != task.share:
            continue
        for choice in choices(number, each):
            verdict.add(_judge(task, disk, choice, f"boundary {number}, {choice}"))
    logging.disable(logging.NOTSET)
    return verdict


def prove_in_parallel(task: Task, shares: int) -> Verdict:
    """The same by so many processes."""
    tasks = [
        Task(task.into, task.root, task.images, share, shares, task.fresh)
        for share in range(shares)
    ]
    verdict = Verdict()
    with multiprocessing.get_context("spawn").Pool(shares) as pool:
        for one in pool.imap_unordered(prove, tasks):
            verdict.add(one)
    return verdict


def _judge(task: Task, disk: Disk, choice: Choice, what: str) -> Verdict:
    image = disk.image(choice)
    verdict = judge(image, disk.sent, what)
    if task.fresh is not None and crc32(what.encode()) % FRESH_EVERY == 1:
        verdict.fresh = 1
        verdict.wrong += _start_program(image, disk.sent, task.fresh, what)
    return verdict


def _start_program(
    image: dict[str, bytes], answered: Collection[bytes], folder: Path, what: str
) -> list[str]:
    """The whole program on that image, drained, and audited from the outside."""
    data_dir = Path(tempfile.mkdtemp(dir=folder))
    ring_dir = Path(tempfile.mkdtemp(prefix="rasher-power-", dir="/dev/shm"))
    try:
        lay_out(image, data_dir)
        ledger = data_dir / "ledger"
        ledger.write_text("".join(f"{format_uuid(one)} 202\n" for one in answered))
        run = Rasher("supervisor.py", ["--ring-dir", str(ring_dir)], data_dir, {}).ready()
        code = run.end(signal.SIGTERM)
        audit = verb(run, "audit", "--ledger", str(ledger))
        if code or audit.returncode:
            return [f"{what}: exit {code}, {audit.stdout}{audit.stderr}"]
        return []
    finally:
        shutil.rmtree(data_dir)
        shutil.rmtree(ring_dir)

"""`rasher lots add --file FILE`: enters lots from a file, one JSON object a line, as `POST /lots`.

Needs nothing running. A line that is refused is reported with its number while the others go in;
the file can be repaired and given again, for lots with a lot_id that are there already stay as they
are.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rich.console import Console
from rich.progress import Progress

from processors.inventory import LotResult, add_lots
from processors.schema import Invalid, Lot, Malformed, decode_lot
from processors.settings import Settings
from processors.store import Store, migrate

LINE_BYTES_MAX = 65536
LOTS_AT_ONCE = 500

Numbered = tuple[int, Lot]


class Entering:
    """Enters lots batch by batch and counts what became of each line."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._batch: list[Numbered] = []
        self.counts: Counter[str] = Counter()

    def add_line(self, number: int, line: bytes) -> None:
        """Takes one line; blank ones count for nothing. Raises StoreUnavailable."""
        if not line.strip():
            return
        if len(line) > LINE_BYTES_MAX:
            self.refuse(number, f"longer than {LINE_BYTES_MAX} bytes")
            return
        try:
            self._batch.append((number, decode_lot(line)))
        except (Malformed, Invalid) as error:
            self.refuse(number, str(error))
        if len(self._batch) >= LOTS_AT_ONCE:
            self.commit()

    def commit(self) -> None:
        """Enters what has come together. Raises StoreUnavailable, then none of it is in."""
        batch, self._batch = self._batch, []
        if not batch:
            return
        results = add_lots(self._store, [lot for _, lot in batch])
        for (number, _), result in zip(batch, results, strict=True):
            self._count(number, result)

    def refuse(self, number: int, reason: str) -> None:
        """Counts and reports a line."""
        self.counts["refused"] += 1
        sys.stderr.write(f"line {number}: {reason}\n")

    def _count(self, number: int, result: LotResult) -> None:
        if result.outcome == "conflict":
            self.refuse(number, f"lot {result.lot_id} is there already, with another body")
        else:
            self.counts[result.outcome] += 1


def add(settings: Settings, options: argparse.Namespace) -> int:
    """The word of `rasher lots`: 0 when every line is in, 1 when one was refused. Raises OSError
    for the file, StoreError and StoreUnavailable."""
    with _opened(options.file) as (file, size):
        counts = enter_file(settings.database, file, size)
    sys.stdout.write(
        f"lots add: {counts['created']} added, {counts['same']} there already, "
        f"{counts['refused']} refused\n"
    )
    return 1 if counts["refused"] else 0


def enter_file(database: str, file: BinaryIO, size: int | None) -> Counter[str]:
    """Migrates the database and enters every line. `size` in bytes, if known, is for the display.

    Returns the counts of created, same and refused. Raises StoreUnavailable.
    """
    migrate(database)
    store = Store.open(database)
    entering = Entering(store)
    try:
        with _progress(size) as advance:
            for number, line in enumerate(_bounded_lines(file), 1):
                entering.add_line(number, line)
                advance(len(line))
            entering.commit()
    finally:
        store.close()
    return entering.counts


def _bounded_lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines, of which one that is too long is cut: LINE_BYTES_MAX + 1 bytes of it are kept."""
    while line := file.readline(LINE_BYTES_MAX + 1):
        yield line
        while not line.endswith(b"\n") and (line := file.readline(LINE_BYTES_MAX + 1)):
            pass


@contextmanager
def _opened(name: str) -> Iterator[tuple[BinaryIO, int | None]]:
    if name == "-":
        yield sys.stdin.buffer, None
        return
    path = Path(name)
    with path.open("rb") as file:
        yield file, path.stat().st_size or None


@contextmanager
def _progress(size: int | None) -> Iterator[Callable[[int], None]]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("lots", total=size)
        yield lambda count: progress.advance(task, count)

"""Disk errors, a full disk and another time of day for all processes of a program; see faults.c.

What is set here holds from the next call on, in processes that run already, too.
"""

from __future__ import annotations

import ctypes
import mmap
import subprocess
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

SOURCE = Path(__file__).with_name("faults.c")


class Kind(IntEnum):
    """Of files; in the order of the enum of faults.c."""

    JOURNAL = 0
    HALF = 1  # a segment that is being made
    DATABASE = 2
    WAL = 3
    ROLLBACK = 4
    DATA_DIR = 5
    JOURNAL_DIR = 6
    OTHER = 7


EVERY = frozenset(Kind)
ROOMY, FULL, FULL_EVERYWHERE = range(3)


class Control(ctypes.Structure):
    _fields_: ClassVar[list[Any]] = [
        ("fail_sync", ctypes.c_uint64),
        ("fail_write", ctypes.c_uint64),
        ("sync_kinds", ctypes.c_uint32),
        ("write_kinds", ctypes.c_uint32),
        ("full", ctypes.c_uint32),
        ("full_kinds", ctypes.c_uint32),
        ("read_only", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
        ("clock_ns", ctypes.c_int64),
        ("syncs", ctypes.c_uint64),
        ("writes", ctypes.c_uint64),
        ("syncs_of", ctypes.c_uint64 * len(Kind)),
        ("writes_of", ctypes.c_uint64 * len(Kind)),
        ("refused", ctypes.c_uint64),
        ("failed_ns", ctypes.c_uint64),
        ("failed_pid", ctypes.c_uint32),
        ("failed_kind", ctypes.c_uint32),
        ("taken_back", ctypes.c_uint64),
        ("after", ctypes.c_uint64),
        ("answers", ctypes.c_uint64),
        ("last_answer_ns", ctypes.c_uint64),
    ]


def bits(kinds: Iterable[Kind]) -> int:
    return sum(1 << kind for kind in set(kinds))


def build_faults(folder: Path) -> Path:
    """Needs gcc -> the library."""
    library = folder / "faults.so"
    words = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", str(SOURCE)]
    subprocess.run(["gcc", *words, "-o", str(library), "-ldl"], check=True, timeout=60)
    return library


class Faults:
    """Those of one directory. `told` is what the processes say: counts, and what failed when."""

    def __init__(self, library: Path, file: Path, directory: Path) -> None:
        self.environ = {
            "LD_PRELOAD": str(library),
            "FAULTS_CONTROL": str(file),
            "FAULTS_UNDER": str(directory),
        }
        file.write_bytes(bytes(ctypes.sizeof(Control)))
        with file.open("r+b") as opened:
            self._memory = mmap.mmap(opened.fileno(), ctypes.sizeof(Control))
        self.told = Control.from_buffer(self._memory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        del self.told
        self._memory.close()

    def reset(self) -> None:
        """No fault, all counts 0."""
        ctypes.memset(ctypes.addressof(self.told), 0, ctypes.sizeof(Control))

    def fail_sync(self, which: int, kinds: Iterable[Kind] = EVERY) -> None:
        """The which-th from now on of these kinds, once."""
        self.told.syncs = 0
        self.told.sync_kinds, self.told.fail_sync = bits(kinds), which

    def fail_write(self, which: int, kinds: Iterable[Kind] = EVERY) -> None:
        """The which-th from now on of these kinds, once."""
        self.told.writes = 0
        self.told.write_kinds, self.told.fail_write = bits(kinds), which

    def fill(self, how: int = FULL, kinds: Iterable[Kind] = EVERY) -> None:
        """No file of these kinds can grow, or be written."""
        self.told.full_kinds, self.told.full = bits(kinds), how

    def empty(self) -> None:
        """There is space again."""
        self.told.full = ROOMY

    @property
    def failed(self) -> Kind | None:
        """What failed, if anything has."""
        return Kind(self.told.failed_kind) if self.told.failed_ns else None

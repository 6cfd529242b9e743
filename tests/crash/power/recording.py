"""What the recorder has written: everything that a service asked of the disk, and answered."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast
from uuid import UUID

SOURCE = Path(__file__).with_name("recorder.c")
HEAD = struct.Struct("<QQQqqIIII")
KINDS = ("", "create", "write", "truncate", "rename", "unlink", "sync", "sent", "mkdir")

Kind = Literal["create", "write", "truncate", "rename", "unlink", "sync", "sent", "mkdir"]


@dataclass(frozen=True, slots=True)
class Event:
    """`before`, `after`: numbers in one order over all processes, around the call. `first`: the
    bytes written, or the path; `offset`: of a write, the new size of a file, or of a name the inode
    of its directory."""

    before: int
    after: int
    kind: Kind
    inode: int
    offset: int
    result: int
    first: bytes
    second: bytes

    @property
    def path(self) -> str:
        return self.first.decode()

    @property
    def order_id(self) -> bytes:
        return UUID(self.first.decode()).bytes


def build_recorder(folder: Path) -> Path:
    """The library to preload."""
    library = folder / "recorder.so"
    words = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-lpthread"]
    subprocess.run(words, check=True)
    return library


def environ(library: Path, under: Path, into: Path) -> dict[str, str]:
    """For a service that is to be recorded."""
    return {"LD_PRELOAD": str(library), "RECORD_UNDER": str(under), "RECORD_INTO": str(into)}


def read_events(into: Path) -> list[Event]:
    """All of them, in the order in which they began."""
    found = [event for log in into.glob("*.log") for event in _read_log(log)]
    return sorted(found, key=lambda event: event.before)


def _read_log(log: Path) -> Iterator[Event]:
    data, at = log.read_bytes(), 0
    while at + HEAD.size <= len(data):
        before, after, inode, offset, result, kind, first, second, _ = HEAD.unpack_from(data, at)
        at += HEAD.size
        if at + first + second > len(data):
            return  # killed while it wrote this: the call had returned, and nothing came of it
        yield Event(
            before, after, cast("Kind", KINDS[kind]), inode, offset, result,
            data[at : at + first], data[at + first : at + first + second],
        )  # fmt: skip
        at += first + second

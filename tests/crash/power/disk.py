"""Disks as a power loss may leave them, rebuilt from what was asked of one.

What a sync had reached is there: the writes that had returned before it was called. Of the others
each sector may be there or not, whatever came later, at 512 or at 4,096 bytes a sector; where two
writes kept the same sector the later one counts. A file's size follows what is kept of it. A name
(made, renamed, removed) is there for certain once its directory was synced; before that, the first
so many of them are: file systems with a journal keep the order of names, and no more. What lies
in a directory is there only if the directory's own name is.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.power.recording import Event

SECTORS = (512, 4096)


@dataclass
class File:
    """One inode's life: `kept` is on disk, `pending` may be, from the earliest on."""

    kept: bytearray = field(default_factory=bytearray)
    pending: list[Event] = field(default_factory=list)

    def sync(self, began: int) -> None:
        """A sync that was called then has returned."""
        reached = [event for event in self.pending if event.after < began]
        for event in reached:
            _apply(self.kept, event)
        self.pending = [event for event in self.pending if event.after >= began]


@dataclass(frozen=True)
class Choice:
    """Which of what is pending is there. `share`: of sectors; `names`: how many of the pending
    names; sector 0: calls are there whole or not at all."""

    seed: int
    share: float
    sector: int
    names_share: float


NOTHING = Choice(0, 0.0, 0, 0.0)
EVERYTHING = Choice(0, 1.0, 0, 1.0)


class Disk:
    """The state after the events so far. `root`: the directory that was recorded."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.names: dict[str, File | None] = {}  # on disk; None: a directory
        self.pending_names: list[tuple[Event, File | None]] = []
        self.sent: list[bytes] = []
        self._files: dict[int, File] = {}  # by inode, whose numbers come round again

    def learn(self, event: Event) -> None:
        """The next event, in the order in which they began."""
        match event.kind:
            case "sent":
                self.sent.append(event.order_id)
            case "write" | "truncate":
                self._files[event.inode].pending.append(event)
            case "create":
                file = self._files[event.inode] = File()
                self.pending_names.append((event, file))
            case "rename" | "unlink":
                self.pending_names.append((event, None))
            case "mkdir":
                self._files.pop(event.inode, None)
                self.pending_names.append((event, None))

    def synced(self, event: Event) -> None:
        """A sync that began as the event says has returned."""
        if event.result:
            return
        if event.inode in self._files:
            self._files[event.inode].sync(event.before)
            return
        left = []  # it is a directory's
        for one, file in self.pending_names:
            if one.offset == event.inode and one.after < event.before:
                _name(self.names, one, file)
            else:
                left.append((one, file))
        self.pending_names = left

    def image(self, choice: Choice) -> dict[str, bytes]:
        """Paths below the root, and contents."""
        chance = random.Random(choice.seed)
        names = dict(self.names)
        count = round(choice.names_share * len(self.pending_names))
        for name in self.pending_names[:count]:
            _name(names, *name)
        contents = {}
        for path, file in names.items():
            directory = path.rpartition("/")[0]
            if file is None or (directory != self.root and directory not in names):
                continue
            content = bytearray(file.kept)
            for event in file.pending:
                for part in _parts(event, choice, chance):
                    _apply(content, part)
            contents[path.removeprefix(self.root).lstrip("/")] = bytes(content)
        return contents


def _parts(event: Event, choice: Choice, chance: random.Random) -> Iterator[Event]:
    """What of a call is there."""
    if choice.share in (0.0, 1.0):
        if choice.share:
            yield event
        return
    if event.kind != "write" or not choice.sector:
        if chance.random() < choice.share:
            yield event
        return
    begin, end = event.offset, event.offset + len(event.first)
    at = begin
    while at < end:
        until = min(end, at - at % choice.sector + choice.sector)
        if chance.random() < choice.share:
            yield Event(
                event.before, event.after, "write", event.inode, at, 0,
                event.first[at - begin : until - begin], b"",
            )  # fmt: skip
        at = until


def _apply(content: bytearray, event: Event) -> None:
    if event.kind == "truncate":
        del content[event.offset :]
        content.extend(bytes(event.offset - len(content)))
        return
    end = event.offset + len(event.first)
    if end > len(content):
        content.extend(bytes(end - len(content)))
    content[event.offset : end] = event.first


def _name(names: dict[str, File | None], event: Event, file: File | None) -> None:
    match event.kind:
        case "mkdir":
            names[event.path] = None
        case "create":
            assert file is not None
            names[event.path] = file
        case "unlink":
            names.pop(event.path, None)
        case "rename":
            moved = names.pop(event.path, None)
            if moved is not None:
                names[event.second.decode()] = moved


def boundaries(events: Sequence[Event], root: str) -> Iterator[tuple[int, Disk]]:
    """The disk after each call that began and after each sync that returned. It is one object that
    changes: rebuild images of it before the next."""
    disk = Disk(root)
    steps = [(event.before, 0, event) for event in events if event.kind != "sync"]
    steps += [(event.after, 1, event) for event in events if event.kind == "sync"]
    for number, (_, _, event) in enumerate(sorted(steps, key=lambda step: step[:2])):
        if event.kind == "sync":
            disk.synced(event)
        else:
            disk.learn(event)
        yield number, disk


def choices(number: int, wanted: int) -> list[Choice]:
    """So many ways for the boundary of that number: nothing and everything first, then torn ones,
    few and many, with few names and many."""
    chance = random.Random(number)
    found = [NOTHING, EVERYTHING]
    while len(found) < wanted:
        found.append(
            Choice(
                seed=chance.getrandbits(32),
                share=chance.choice([0.1, 0.5, 0.9]),
                sector=chance.choice([0, *SECTORS]),
                names_share=chance.choice([0.0, 0.5, 1.0]),
            )
        )
    return found[:wanted]


def lay_out(image: dict[str, bytes], folder: Path) -> None:
    """The image as files."""
    for name, content in image.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

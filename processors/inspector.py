"""`rasher ring`: what a live ring and its journal hold, as text or with `--json` for programs.

Looks only: nothing is locked, taken or changed, and what moves meanwhile may be seen twice.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from processors.datadir import attach_rings
from processors.journal import journal_dir
from processors.recycling import is_finished
from processors.settings import Settings
from processors.tally import OWNER, RELAY
from ringbuf import Participant, Ring, RingError, Segment, SegmentError
from ringbuf.segment import segment_paths

EXIT_USAGE = 2
USAGE = "usage: rasher ring [--json]"


class SegmentView(Struct):
    """state: written, full (nobody writes it any more), or what is wrong with it. `living`: the
    ring of its items is there."""

    name: str
    state: str
    living: bool = False
    groups: int = 0
    orders: int = 0
    bytes_used: int = 0
    bytes: int = 0
    damaged: list[tuple[int, int]] = []


class RingView(Struct):
    """oldest_s: age of the next order, None when none waits. hands: orders by worker."""

    path: str
    epoch: str
    capacity: int
    depth: int
    slot_bytes: int
    closed: bool
    taken_in: int
    oldest_s: float | None
    hands: dict[int, int]
    processes: list[str]
    locks_of_the_dead: int


def main(settings: Settings, args: Sequence[str]) -> int:
    """The verb. Exit 0; 1 when there is neither ring nor journal; 2 for wrong usage."""
    if list(args) not in ([], ["--json"]):
        sys.stderr.write(f"ring: {' '.join(args)}: {USAGE}\n")
        return EXIT_USAGE
    try:
        rings = attach_rings(settings)
    except (RingError, OSError) as error:
        sys.stderr.write(f"ring: {error}\n")
        return 1
    try:
        views = [look_at_ring(ring) for ring in rings]
        epochs = {ring.epoch for ring in rings}
    finally:
        for ring in rings:
            ring.detach()
    segments = list(look_at_journal(journal_dir(settings), epochs))
    if args:
        told = msgspec.json.encode({"rings": views, "journal": segments}).decode()
    else:
        told = "\n".join(lines(views, segments, journal_dir(settings)))
    sys.stdout.write(f"{told}\n")
    return 0 if views or segments else 1


def look_at_ring(ring: Ring) -> RingView:
    head = ring.head
    waiting = ring.slots[head % ring.capacity] if ring.depth else None
    age = None if waiting is None else max(0.0, time.time() - int(waiting["accepted_ns"]) / 1e9)
    held = {index: ring.held_count(index) for index in range(ring.readers)}
    return RingView(
        path=str(ring.path),
        epoch=f"{ring.epoch:016x}",
        capacity=ring.capacity,
        depth=ring.depth,
        slot_bytes=ring.slot_bytes,
        closed=ring.closed,
        taken_in=ring.tail,
        oldest_s=age,
        hands={index: count for index, count in held.items() if count},
        processes=[
            f"{_name(ring, one)}: pid {one.pid}{'' if one.alive() else ', dead'}"
            for one in ring.participants()
        ],
        locks_of_the_dead=ring.repairs,
    )


def _name(ring: Ring, one: Participant) -> str:
    of_relay = one.role == "writer" and ring.pages()[ring.readers + one.index][OWNER] == RELAY
    return f"{one.role} {one.index}{' (the relay)' if of_relay else ''}"


def look_at_journal(directory: Path, epochs: set[int]) -> Iterator[SegmentView]:
    for path in segment_paths(directory):
        try:
            with Segment.open(path) as segment:
                yield look_at_segment(segment, living=segment.header.epoch in epochs)
        except FileNotFoundError:
            continue  # all of it was committed meanwhile
        except (SegmentError, OSError) as error:
            yield SegmentView(path.name, str(error))


def look_at_segment(segment: Segment, *, living: bool) -> SegmentView:
    path = segment.path
    view = SegmentView(path.name, "full" if is_finished(path) else "written", living)
    view.bytes = path.stat().st_size
    for group in segment.groups():
        view.groups += 1
        view.orders += group.records
        view.bytes_used = group.until
    view.damaged = [(one.at, one.until) for one in segment.damage]
    return view


def lines(rings: Sequence[RingView], segments: Sequence[SegmentView], place: Path) -> Iterator[str]:
    """The same as text."""
    for ring in rings:
        age = "" if ring.oldest_s is None else f", the oldest for {ring.oldest_s:.1f} s"
        yield f"ring {ring.path}{', closed' if ring.closed else ''}"
        yield f"  waiting    {ring.depth:,} of {ring.capacity:,}{age}; {ring.taken_in:,} taken in"
        held = ", ".join(f"{count} in hand {index}" for index, count in ring.hands.items())
        yield f"  held       {held or 'none'}"
        for process in ring.processes:
            yield f"  process    {process}"
        yield f"  locks taken over from the dead: {ring.locks_of_the_dead}"
    yield f"journal {place}: {len(segments)} segments"
    for one in segments:
        whose = "this ring's" if one.living else "of a ring that is gone"
        yield (
            f"  {one.name}  {one.state}, {whose}: {one.orders:,} orders in {one.groups:,} groups, "
            f"{one.bytes_used:,} of {one.bytes:,} bytes"
        )
        for at, until in one.damaged:
            yield f"    DAMAGED from byte {at:,} to {until:,}"

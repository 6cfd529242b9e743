"""Nothing that is sent has two readings: beside the lane and on it, whole and byte by byte."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from tests.ingest.malformed import CASES, NEXT, Case, in_pieces, malformed
from tests.ingest.test_lane import in_a_loop, statuses
from tests.ingest.twins import Front, front

SUITE_REQUESTS = 20_000
PROVE_REQUESTS = 1_000_000
PROVE_BYTE_BY_BYTE = 20_000
# As often the loop turns when a request waits for what will not come.
LAST_TURNS = 30
# Ids are given one after the other, and one of the twins may be ahead.
IDS = re.compile(rb"[0-9a-f]{8}-[0-9a-f-]{27}")


@dataclass(frozen=True)
class Reading:
    """What became of a conversation."""

    written: bytes
    orders: list[bytes]
    ended: bool

    @property
    def statuses(self) -> list[int]:
        return [status for status in statuses(self.written) if status != 100]


async def read(twin: Front, reads: Iterable[bytes]) -> Reading:
    """All that comes back until the server waits for more or has closed; then the client leaves."""
    wire = twin.connect()
    tasks, protocol = twin.server.server_state.tasks, wire.protocol
    for data in filter(None, reads):  # a transport tells of no read without bytes
        await twin.until(lambda: wire.closing or not wire.paused)
        if wire.closing:
            break
        wire.protocol.data_received(data)
    turns = itertools.count()
    await twin.until(
        lambda: (
            not tasks or (next(turns) > LAST_TURNS and getattr(protocol.cycle, "more_body", False))
        )
    )
    await twin.turn(2)
    ended = wire.closing or wire.ended
    written = IDS.sub(b"ID", bytes(wire.written))
    wire.hang_up()
    await twin.until(lambda: not tasks)
    orders = []
    while twin.ring.depth:
        items = twin.reader.take(timeout=0)
        orders += [item.payload for item in items]
        twin.reader.release(items)
    return Reading(written, orders, ended)


def faults(reading: Reading) -> list[str]:
    """What may be in no conversation at all."""
    # There are no tables, so what asks the database is 503.
    found = [f"status {status}" for status in reading.statuses if status >= 500 and status != 503]
    if reading.statuses.count(202) != len(reading.orders):
        found.append(f"{len(reading.orders)} orders were taken, told were {reading.statuses}")
    last = reading.written.rfind(b"\r\nconnection: close\r\n")
    if last >= 0 and b"\r\nHTTP/1.1 " in reading.written[last:]:
        found.append("more was answered behind a close")
    # Of a body that is too large the rest is read for a while; here it never comes.
    if last >= 0 and not reading.ended and reading.statuses[-1] != 413:
        found.append("a close was announced and did not come")
    return found


def same_but_for_the_fault_named(one: Reading, other: Reading) -> bool:
    """A head that is both too large and no HTTP is refused for what the parser tells of first:
    it tells of a field when the next name ends or the read does."""
    if one == other:
        return True
    refused = {one.statuses[-1], other.statuses[-1]}
    same = one.statuses[:-1] == other.statuses[:-1] and one.orders == other.orders
    return same and refused == {400, 431} and one.ended and other.ended


def expected(case: Case) -> list[int]:
    return [202] * (case.taken + case.goes_on) or [400]


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("lane", ["on", "off"])
def test_each_way_of_smuggling_has_one_reading(tmp_path: Path, lane: str, known: bool) -> None:
    """However it is cut, and whether or not the lane knows the head of what is behind it."""

    async def run() -> list[str]:
        found = []
        with front(tmp_path, lane) as twin:
            if known:
                await read(twin, [NEXT])
            for case in CASES:
                both = case.sent + NEXT
                for reads in ([both], [case.sent, NEXT], pieces_of_one(both)):
                    reading = await read(twin, reads)
                    wrong = faults(reading)
                    if reading.statuses != expected(case) or reading.ended == case.goes_on:
                        wrong.append(f"{reading.statuses}, ended: {reading.ended}")
                    found += [f"{case.name}: {fault}" for fault in wrong]
        return found

    assert in_a_loop(run) == []


def pieces_of_one(sent: bytes) -> list[bytes]:
    return [sent[at : at + 1] for at in range(len(sent))]


def compare(folder: Path, count: int, seed: int, *, byte_by_byte: bool = False) -> list[str]:
    """Malformed requests, each to a front with the lane and to one without -> what is wrong."""

    async def run() -> list[str]:
        found: list[str] = []
        chance = Random(seed)
        with front(folder / "on", "on") as lane, front(folder / "off", "off") as route:
            for sent in itertools.islice(malformed(seed), count):
                reads = [sent, NEXT] if chance.random() < 0.5 else in_pieces(chance, sent + NEXT)
                readings = [await read(twin, reads) for twin in (lane, route)]
                alike = readings[0] == readings[1]
                if byte_by_byte:
                    readings.append(await read(lane, pieces_of_one(b"".join(reads))))
                    alike = alike and same_but_for_the_fault_named(readings[0], readings[2])
                wrong = [fault for reading in readings for fault in faults(reading)]
                if not alike:
                    wrong.append(f"read otherwise: {readings}")
                found += [f"{reads}: {fault}" for fault in wrong]
        return found

    return in_a_loop(run)


def test_malformed_requests_are_read_alike_and_never_break_a_front(tmp_path: Path) -> None:
    (tmp_path / "on").mkdir()
    (tmp_path / "off").mkdir()
    assert compare(tmp_path, SUITE_REQUESTS // 2, 7)[:3] == []


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_malformed_requests_are_read_alike_byte_by_byte(tmp_path: Path) -> None:
    (tmp_path / "on").mkdir()
    (tmp_path / "off").mkdir()
    assert compare(tmp_path, PROVE_BYTE_BY_BYTE, 11, byte_by_byte=True)[:3] == []
    print(f"\n{PROVE_BYTE_BY_BYTE} malformed requests byte by byte: each read as when whole")

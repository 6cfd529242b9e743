"""Every limit of a connection holds at n-1 and n, and not at n+1, on the lane and beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ingest import exchange, protocol, unsent
from ingest.front import KEEP_ALIVE_S
from tests.ingest.test_lane import GOOD, LAST, in_a_loop, post, statuses
from tests.ingest.twins import BODY_BYTES_MAX, Clock, Front, Wire, front

if TYPE_CHECKING:
    from tests.ingest.conftest import Start

pytestmark = pytest.mark.parametrize("lane", ["on", "off"])
around = pytest.mark.parametrize("more", [-1, 0, 1])

CHUNKED = b"Transfer-Encoding: chunked\r\n"
HEAD = b"POST /orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
LIVEZ = LAST.replace(b"Connection: close\r\n", b"")
TICK_S = 0.001


def answers(
    folder: Path, lane: str, reads: Iterable[bytes], turns: int = 30
) -> tuple[list[int], int]:
    """Statuses, and how many orders were taken in. The connection ends by itself."""

    async def ask() -> tuple[list[int], int]:
        with front(folder, lane) as twin:
            return statuses(await twin.converse(reads, turns)), len(twin.accepted())

    return in_a_loop(ask)


def verdict(more: int, refused: int) -> tuple[list[int], int]:
    """What is answered, with LAST behind it."""
    return ([refused], 0) if more > 0 else ([202, 200], 1)


def padded(size: int) -> bytes:
    """An order whose head counts so many bytes."""
    plain = b"/orders" + b"".join(HEAD.split(b"\r\n")[1:-1]) + b"Content-Length%d" % len(GOOD)
    counted = len(plain) - 4 + 3 * 4  # the two `: ` of the lines above count with the 4
    pad = b"X" + b": " + b"x" * (size - counted - 4 - 1) + b"\r\n"
    return HEAD + pad + b"Content-Length: %d\r\n\r\n" % len(GOOD) + GOOD


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@around
@pytest.mark.parametrize("size", [2**20, 997])
def test_head_bytes(tmp_path: Path, lane: str, more: int, size: int) -> None:
    sent = padded(protocol.HEAD_BYTES_MAX + more)
    assert answers(tmp_path, lane, [*pieces(sent, size), LAST]) == verdict(more, 431)


@around
def test_head_fields(tmp_path: Path, lane: str, more: int) -> None:
    extra = b"X: x\r\n" * (protocol.HEADERS_MAX - 3 + more)
    assert answers(tmp_path, lane, [post(GOOD, extra=extra), LAST]) == verdict(more, 431)


@around
def test_head_bytes_with_blanks(tmp_path: Path, lane: str, more: int) -> None:
    blanks = b" " * (protocol.RAW_HEAD_BYTES_MAX + more)
    sent = post(GOOD, extra=b"X: x\r\n")
    at = sent.index(b"x\r\nContent-Length")
    assert answers(tmp_path, lane, [sent[:at], blanks, sent[at:], LAST]) == verdict(more, 431)


def chunked(end: bytes = b"", extension: bytes = b"") -> bytes:
    return HEAD + CHUNKED + b"\r\n%x%s\r\n%s\r\n0\r\n%s\r\n" % (len(GOOD), extension, GOOD, end)


@around
def test_trailer_fields(tmp_path: Path, lane: str, more: int) -> None:
    end = b"X: x\r\n" * (protocol.HEADERS_MAX - 3 + more)
    assert answers(tmp_path, lane, [chunked(end), LAST]) == verdict(more, 431)


@around
def test_trailer_bytes(tmp_path: Path, lane: str, more: int) -> None:
    counted = len(b"/orders" + b"Hostx" + b"Content-Typeapplication/json")
    counted += len(b"Transfer-Encodingchunked") + 3 * 4
    value = b"x" * (protocol.HEAD_BYTES_MAX - counted - len(b"X") - 4 + more)
    assert answers(tmp_path, lane, [chunked(b"X: %s\r\n" % value), LAST]) == verdict(more, 431)


@around
@pytest.mark.parametrize("where", ["size", "extension", "trailer"])
def test_framing_bytes(tmp_path: Path, lane: str, more: int, where: str) -> None:
    framing = protocol.FRAMING_BYTES_MAX + more
    if where == "size":
        sent, at = chunked(), len(HEAD + CHUNKED) + 2
    elif where == "extension":
        sent = chunked(extension=b";x")
        at = sent.index(b";x") + 2
    else:
        sent = chunked(b"X: x\r\n")
        at = sent.index(b"x\r\n\r\n")
        framing += protocol.FRAMING_BYTES_PER_BYTE_MAX * len(GOOD) - len(b"\r\n0\r\nX: ")
    reads = [sent[:at], (b"0" if where == "size" else b"x") * framing, sent[at:], LAST]
    if where == "trailer":
        reads[:1] = [sent[: sent.index(GOOD)], sent[sent.index(GOOD) : at]]
    assert answers(tmp_path, lane, reads) == verdict(more, 400)


def test_the_smallest_chunks_are_within_the_limit(tmp_path: Path, lane: str) -> None:
    body = GOOD + b" " * (BODY_BYTES_MAX - len(GOOD))
    reads = [HEAD + CHUNKED + b"\r\n", *(b"1\r\n%c\r\n" % byte for byte in body), b"0\r\n\r\n"]
    assert answers(tmp_path, lane, [*reads, LAST], 0) == ([202, 200], 1)


@around
@pytest.mark.parametrize("form", ["length", "chunked"])
@pytest.mark.parametrize("size", [2**20, 499])
def test_body_bytes(tmp_path: Path, lane: str, more: int, form: str, size: int) -> None:
    sent = post(GOOD + b" " * (BODY_BYTES_MAX - len(GOOD) + more), form=form)
    assert answers(tmp_path, lane, [*pieces(sent, size), LAST]) == verdict(more, 413)


@around
@pytest.mark.parametrize("pace", [(True, 0), (True, 30), (False, 0), (False, 30)])
def test_requests_of_a_connection(
    tmp_path: Path, lane: str, more: int, pace: tuple[bool, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last is answered with the close announced; what comes behind it is never an order.

    `pace`: whether each comes in a read of its own, and how often the loop turns in between.
    """
    known, turns = pace
    monkeypatch.setattr(protocol, "REQUESTS_MAX", 5)
    count = protocol.REQUESTS_MAX + more

    async def ask() -> None:
        with front(tmp_path, lane) as twin:
            wire = twin.connect()
            for data in [post(GOOD)] * count if known else [post(GOOD) * count]:
                if not wire.closing:
                    wire.protocol.data_received(data)
                await twin.turn(turns)
            expected = min(count, protocol.REQUESTS_MAX)
            await twin.until(lambda: len(statuses(wire.written)) == expected)
            await twin.turn(30)
            assert statuses(wire.written) == [202] * expected
            assert len(twin.accepted()) == expected
            assert wire.written.count(b"connection: close") == int(more >= 0)
            assert wire.lost == (more >= 0)
            wire.hang_up()

    in_a_loop(ask)


@around
def test_requests_ahead_of_their_answers(tmp_path: Path, lane: str, more: int) -> None:
    """Behind an order that waits, for the lane answers at once."""
    behind = protocol.PIPELINE_MAX + more

    async def ask() -> None:
        with front(tmp_path, lane, capacity=1) as twin:
            wire = twin.connect()
            wire.protocol.data_received(post(GOOD))
            await twin.until(lambda: wire.written)
            wire.protocol.data_received(post(GOOD) + LIVEZ * behind)
            await twin.until(lambda: twin.acceptor.parked)
            twin.reader.release(twin.reader.take(timeout=0))
            expected = [202, 202] + [200] * min(behind, protocol.PIPELINE_MAX) + [400] * (more > 0)
            await twin.until(lambda: statuses(wire.written) == expected)
            assert wire.ended == (more > 0)
            wire.hang_up()
            await twin.until(lambda: not twin.server.server_state.tasks)

    in_a_loop(ask)


def at_times(run: Callable[[Clock], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=Clock) as runner:
        clock = runner.get_loop()
        assert isinstance(clock, Clock)
        runner.run(run(clock))


# What is sent, after which time (a constant by name), and what is answered then.
DEADLINES: dict[str, tuple[list[bytes], Callable[[], float], list[int]]] = {
    "no byte": ([], lambda: protocol.HEAD_S_MAX, []),
    "line ends alone": ([b"\r\n"], lambda: protocol.HEAD_S_MAX, []),
    "part of a head": ([post(GOOD)[:30]], lambda: protocol.HEAD_S_MAX, [408]),
    "second head": ([LIVEZ, post(GOOD)[:30]], lambda: protocol.HEAD_S_MAX, [200, 408]),
    "second head behind an order": (
        [post(GOOD), post(GOOD)[:30]],
        lambda: protocol.HEAD_S_MAX,
        [202, 408],
    ),
    "part of a body": ([post(GOOD)[:-1]], lambda: exchange.BODY_S_MAX, [408]),
    "no body": ([post(GOOD)[: -len(GOOD)]], lambda: exchange.BODY_S_MAX, [408]),
    "part of a chunk": (
        [post(GOOD, form="chunked")[:-9]],
        lambda: exchange.BODY_S_MAX,
        [408],
    ),
    "no last chunk": ([post(GOOD, form="chunked")[:-5]], lambda: exchange.BODY_S_MAX, [408]),
    "part of a trailer": (
        [post(GOOD, form="chunked")[:-2] + b"X: "],
        lambda: exchange.BODY_S_MAX,
        [408],
    ),
    "a body that nobody reads": (
        [b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n1"],
        lambda: exchange.DROPPING_S_MAX,
        [404],
    ),
    "more behind a refusal": ([b"nonsense\r\n\r\n"], lambda: exchange.DROPPING_S_MAX, [400]),
    "idle": ([LIVEZ], lambda: KEEP_ALIVE_S, [200]),
    "idle behind an order": ([post(GOOD)], lambda: KEEP_ALIVE_S, [202]),
    "line ends behind an answer": ([LIVEZ, b"\r\n"], lambda: KEEP_ALIVE_S, [200]),
    "line ends behind an order": ([post(GOOD), b"\r\n"], lambda: KEEP_ALIVE_S, [202]),
}


@pytest.mark.parametrize("what", DEADLINES)
def test_a_connection_ends_at_its_deadline_and_no_earlier(
    tmp_path: Path, lane: str, what: str
) -> None:
    reads, deadline_s, expected = DEADLINES[what]

    async def run(clock: Clock) -> None:
        with front(tmp_path, lane) as twin:
            wire = twin.connect()
            for data in reads:
                wire.protocol.data_received(data)
                await twin.turn(30)
            left_s = deadline_s()
            while left_s > 1:  # nothing in between moves it
                await clock.pass_by(1)
                left_s -= 1
            await clock.pass_by(left_s - TICK_S)
            assert not wire.closing
            await clock.pass_by(TICK_S)
            await twin.until(lambda: wire.lost or wire.ended)
            assert statuses(wire.written) == expected
            wire.hang_up()
            await twin.until(lambda: not twin.server.server_state.tasks)
            assert twin.accepted() == [] or expected[0] == 202

    at_times(run)


@pytest.mark.parametrize("closing", [False, True])
@pytest.mark.parametrize("taken", [0, unsent.SEND_BYTES_MIN - 1])
def test_answers_that_nobody_takes_end_a_connection(
    tmp_path: Path, lane: str, closing: bool, taken: int
) -> None:
    """Whether the connection goes on behind them, or closes and waits for its last byte."""

    async def run(clock: Clock) -> None:
        with front(tmp_path, lane) as twin:
            wire = lying(twin, 2**20, closing=closing)
            await twin.turn(30)
            await clock.pass_by(unsent.SEND_S_MAX - TICK_S)
            wire.unsent_bytes -= taken
            assert not wire.lost
            await clock.pass_by(TICK_S)
            assert wire.lost

    at_times(run)


@pytest.mark.parametrize("more", [0, 1])
def test_whoever_takes_enough_of_his_answers_keeps_his_connection(
    tmp_path: Path, lane: str, more: int
) -> None:
    async def run(clock: Clock) -> None:
        with front(tmp_path, lane) as twin:
            wire = lying(twin, 5 * 2**16, closing=False)
            await twin.turn(30)
            while wire.unsent_bytes > 2**16:
                wire.unsent_bytes -= unsent.SEND_BYTES_MIN + more
                await clock.pass_by(unsent.SEND_S_MAX)
                assert not wire.lost
            wire.unsent_bytes = 0
            wire.protocol.resume_writing()
            await twin.turn(30)
            await clock.pass_by(KEEP_ALIVE_S - TICK_S)
            assert not wire.lost
            await clock.pass_by(TICK_S)
            assert wire.lost

    at_times(run)


def lying(twin: Front, size: int, *, closing: bool) -> Wire:
    """A connection whose answers are not taken."""
    wire = twin.connect()
    wire.unsent_bytes = size
    if closing:
        wire.protocol.data_received(LAST)
    else:
        wire.protocol.pause_writing()
        wire.protocol.data_received(LIVEZ)
    return wire


@around
def test_bytes_dropped_behind_a_refusal(tmp_path: Path, lane: str, more: int) -> None:
    async def ask() -> None:
        with front(tmp_path, lane) as twin:
            wire = twin.connect()
            wire.protocol.data_received(b"nonsense\r\n\r\n")
            for data in pieces(bytes(exchange.DROPPED_BYTES_MAX + more), 2**20):
                wire.protocol.data_received(data)
            assert wire.closing == (more > 0)
            assert statuses(wire.written) == [400]
            wire.hang_up()

    in_a_loop(ask)


def test_a_body_in_the_read_that_ends_the_head_is_no_part_of_the_head(
    tmp_path: Path, lane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "RAW_HEAD_BYTES_MAX", 500)
    monkeypatch.setattr(protocol, "HEAD_BYTES_MAX", 400)
    sent = post(GOOD + b" " * 1000)
    assert answers(tmp_path, lane, [sent[:30], sent[30:], LAST]) == ([202, 200], 1)


BROKEN = HEAD + CHUNKED + b"\r\n2\r\n{}\r\nno size\r\n"


def test_a_body_that_breaks_off_is_answered_once(tmp_path: Path, lane: str) -> None:
    behind = post(GOOD)
    early = BROKEN.replace(b"/orders", b"/nowhere")
    cut = early.index(b"no size")
    for reads, expected in (
        ([BROKEN + behind], ([400], 0)),
        ([BROKEN, behind], ([400], 0)),
        ([early[:cut], early[cut:], behind], ([404], 0)),  # answered before it broke off
        ([post(GOOD) + BROKEN + behind], ([202, 400], 1)),
        ([LIVEZ + BROKEN + behind], ([200, 400], 0)),
        ([LIVEZ + LIVEZ + BROKEN, behind], ([200, 200, 400], 0)),
    ):
        assert answers(tmp_path, lane, reads) == expected


@pytest.mark.anyio
async def test_a_client_that_reads_nothing_is_cut_off_while_others_are_served(
    start: Start, lane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unsent, "SEND_S_MAX", 0.1)
    service = await start(lane=lane)
    raw = await service.raw()
    transport: Any = raw.writer.transport
    transport.pause_reading()
    large = b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
    raw.writer.write(large * 4)  # more than the kernel takes
    connections = service.server.server_state.connections
    await service.until(lambda: connections)
    (connection,) = connections
    while connection in connections:
        assert (await service.client.get("/livez")).status_code == 200
    transport.resume_reading()
    with pytest.raises(ConnectionResetError):  # the kernel, too, has forgotten the rest
        await raw.reader.read()

"""The lane answers as the application does, to the byte, whatever comes in and however split."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import shutil
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest import exchange, memo, protocol
from ingest._lane import render_queued
from ingest.answers import Queued
from ingest.lane import LaneProtocol
from ingest.memo import Memo
from ingest.origin import NOBODY
from processors.schema import parse_uuid
from tests.ingest.keyring import READING, TOKEN, fixed_keyring
from tests.ingest.twins import BODY_BYTES_MAX, DATE, FULL_TIMEOUT_S, Front, Wire, front, journaled

T = TypeVar("T")
GOOD = b'{"customer":"Funky Foods","lines":[{"sku":"BELLY","quantity":"1.5"}]}'
OWN = b'{"order_id":"018f0000-0000-7000-8000-00000000000%d",' + GOOD[1:]
BODIES = [
    GOOD,
    OWN % 1,
    (OWN % 1).replace(b"1.5", b"2.5"),
    OWN % 2,
    b"",
    b"{",
    b"[]",
    b'{"customer":"","lines":[]}',
    GOOD.replace(b"}]", b'}],"note":1'),
    GOOD + b" " * (BODY_BYTES_MAX - len(GOOD)),
    GOOD + b" " * (BODY_BYTES_MAX - len(GOOD) + 1),
    b"\xff" + GOOD,
]
TYPES = [
    b"Content-Type: application/json\r\n",
    b"content-type:  Application/JSON ; charset=utf-8\r\n",
    b"Content-Type: application/json\r\nContent-Type: text/plain\r\n",
    b"Content-Type: text/plain\r\n",
    b"",
]
EXTRAS = [
    b"",
    b"Connection: keep-alive\r\n",
    b"Connection: close\r\n",
    b"Expect: 100-continue\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
    b"X-Request-ID: web-17\r\n",
    b"X-Request-ID: web-17\r\nTraceparent: 00-%s-%s-01\r\n" % (b"a" * 32, b"b" * 16),
    b"X-Request-ID: no good\r\n",
    b"Traceparent: nonsense\r\n",
    b"Idempotency-Key: k\r\n",
    b"Authorization: Bearer %s\r\n" % TOKEN.encode(),
    b"Authorization: Bearer %s\r\n" % READING.encode(),
    b"Authorization: Bearer %s\r\nX-Request-ID: web-18\r\n" % TOKEN.encode(),
    b"X-Long: " + b"x" * 3000 + b"\r\n",
]
LAST = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def post(
    body: bytes, kind: bytes = TYPES[0], extra: bytes = b"", form: str = "length",
    start: bytes = b"POST /orders HTTP/1.1"
) -> bytes:  # fmt: skip
    """`form`: how the end of the body is told."""
    head = start + b"\r\nHost: x\r\n" + kind + extra
    if form == "chunked":
        half = len(body) // 2
        parts = [part for part in (body[:half], body[half:]) if part]
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    if form == "nothing":
        return head + b"\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


STRAYS = st.sampled_from([b""] * 8 + [b"\r\n", b"\r", b"\n", b"\r\n\r\n", b"P"])
requests = st.builds(
    post,
    st.sampled_from(BODIES),
    st.sampled_from([*TYPES[:1] * 6, *TYPES]),
    st.sampled_from([*EXTRAS[:1] * 6, *EXTRAS[-4:-3] * 3, *EXTRAS]),
    st.sampled_from(["length"] * 6 + ["chunked", "nothing"]),
    st.sampled_from(
        [b"POST /orders HTTP/1.1"] * 8
        + [b"POST /orders HTTP/1.0", b"POST /orders?x=1 HTTP/1.1", b"POST /%6frders HTTP/1.1",
           b"PUT /orders HTTP/1.1", b"POST /lots HTTP/1.1"]
    ),
)  # fmt: skip


@st.composite
def conversations(draw: Callable[[Any], Any]) -> list[bytes]:
    """Requests one behind the other, as the reads in which they come: one for each, which the lane
    may know again, or cut anywhere."""
    asked = draw(st.lists(st.tuples(requests, STRAYS).map(b"".join), min_size=1, max_size=5))
    if draw(st.booleans()):
        return [*(request for request in asked for _ in range(draw(st.integers(1, 3)))), LAST]
    sent = b"".join(asked) + LAST
    cuts = draw(st.lists(st.integers(1, len(sent) - 1), max_size=8))
    places = sorted({0, len(sent), *cuts})
    return [sent[a:b] for a, b in itertools.pairwise(places)]


def statuses(written: bytes | bytearray) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", written)]


def answered_with(wire: Wire, codes: list[int]) -> bool:
    return statuses(wire.written) == codes


def in_a_loop(run: Callable[[], Coroutine[Any, Any, T]]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


def both(
    folder: Path, reads: list[bytes], turns: int = 0, *, disk: bool = False, keys: bool = False
) -> list[tuple[bytes, Any]]:
    """What each twin answers and has accepted, the lane's first; `disk`: with a journal each;
    `keys`: they take requests of known keys only."""

    async def ask(lane: str) -> tuple[bytes, Any]:
        async with AsyncExitStack() as stack:
            keyring = fixed_keyring() if keys else None
            twin = stack.enter_context(front(folder, lane, keyring=keyring))
            if disk:
                # Of many conversations the segments would be more than a journal may have.
                stack.callback(shutil.rmtree, folder / lane)
                await stack.enter_async_context(journaled(twin, folder / lane))
            return await twin.converse(reads, turns), twin.accepted()

    return [in_a_loop(lambda lane=lane: ask(lane)) for lane in ("on", "off")]  # type: ignore[misc]


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(conversations(), st.sampled_from([0, 1, 3, 30]), st.booleans(), st.booleans())
def test_lane_and_application_answer_alike(
    tmp_path: Path, reads: list[bytes], turns: int, disk: bool, keys: bool
) -> None:
    lane, application = both(tmp_path, reads, turns, disk=disk, keys=keys)
    assert lane == application


@pytest.mark.prove
@pytest.mark.timeout(1800)
@settings(
    max_examples=20_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(conversations(), st.sampled_from([0, 1, 3, 30]), st.booleans(), st.booleans())
def test_lane_and_application_answer_alike_for_long(
    tmp_path: Path, reads: list[bytes], turns: int, disk: bool, keys: bool
) -> None:
    lane, application = both(tmp_path, reads, turns, disk=disk, keys=keys)
    assert lane == application


@pytest.mark.parametrize("turns", [0, 2])
def test_a_request_may_be_split_anywhere(tmp_path: Path, turns: int) -> None:
    sent = post(GOOD) + post(OWN % 1) + post(b"{")
    whole = both(tmp_path, [sent, LAST], turns)
    assert whole[0] == whole[1]
    assert statuses(whole[0][0]) == [202, 202, 400, 200]
    assert both(tmp_path, [sent[i : i + 1] for i in range(len(sent))] + [LAST], turns) == whole

    async def in_two() -> None:
        for place in range(1 + turns, len(sent), 5):
            with front(tmp_path, "on") as twin:
                reads = [sent[:place], sent[place:] + LAST]
                assert (await twin.converse(reads, turns), twin.accepted()) == whole[0]

    in_a_loop(in_two)


def test_a_plain_order_takes_the_lane_and_no_task(tmp_path: Path) -> None:
    async def one() -> None:
        with front(tmp_path, "on") as twin:
            wire = twin.connect()
            wire.protocol.data_received(post(GOOD))
            assert wire.written.startswith(b"HTTP/1.1 202 Accepted\r\n")
            assert not twin.server.server_state.tasks
            await close(twin, wire)

    in_a_loop(one)


def test_a_head_that_was_parsed_once_is_not_parsed_again(tmp_path: Path) -> None:
    async def one() -> None:
        with front(tmp_path, "on") as twin:
            first, wire = twin.connect(), twin.connect()
            first.protocol.data_received(post(GOOD))
            wire.protocol.parser = None  # type: ignore[assignment]
            for number in range(3):
                wire.protocol.data_received(post(GOOD.replace(b"1.5", b"2.%d" % number)))
            assert statuses(wire.written) == [202, 202, 202]
            assert len({payload for _, payload in twin.accepted()}) == 4
            first.hang_up()
            await close(twin, wire)

    in_a_loop(one)


DISGUISED = b"POST nonsense\r\n" + TYPES[0] + b"Content-Length: 69\r\n\r\n" + GOOD
TAIL = b"POST "


@pytest.mark.parametrize(
    "reads",
    [
        [b"POST /orders HTTP/1.1\r\nX: ", DISGUISED, DISGUISED],
        [post(TAIL)[: -len(TAIL)], TAIL + post(GOOD), TAIL + post(GOOD)],
        [b"\r\n" + post(GOOD), b"\r\n" + post(GOOD), post(GOOD)],
        [post(GOOD) + b"\r", post(GOOD), b"\n" + post(GOOD), post(GOOD)],
        [post(GOOD), post(GOOD) + post(GOOD)[:60], post(GOOD)[60:], post(GOOD)],
        [post(GOOD), post(GOOD) + post(GOOD), post(GOOD)],
        [post(b""), post(b""), post(b"")],
        [post(GOOD), LAST.replace(b"close", b"keep-alive"), post(GOOD), post(GOOD)],
        [post(GOOD + b"\n"), post(GOOD + b"\n"), post(GOOD)],
    ],
)
@pytest.mark.parametrize("turns", [0, 30])
def test_only_what_begins_a_message_is_known_again(
    tmp_path: Path, reads: list[bytes], turns: int
) -> None:
    assert len(GOOD) == 69
    lane, application = both(tmp_path, [*reads, LAST], turns)
    assert lane == application


@pytest.mark.parametrize("headers", [[], [DATE], [DATE, (b"server", b"caf\xe9")]])
@pytest.mark.parametrize("position", [0, 9, 10, 99, 65_536, 2**64 - 1])
def test_the_answer_in_one_go_is_the_answer_in_parts(
    tmp_path: Path, headers: list[tuple[bytes, bytes]], position: int
) -> None:
    async def one() -> None:
        with front(tmp_path, "on") as twin:
            wire = twin.connect()
            twin.server.server_state.default_headers = headers
            for key in (bytes(16), bytes(range(0xF0, 0x100)), b"0123456789abcdef"):
                in_one_go = render_queued(Memo().queued_head(headers), key, position)
                assert in_one_go == wire.protocol._plain(Queued(key, position).answer())
            await close(twin, wire)

    in_a_loop(one)


@pytest.mark.parametrize(
    "wrong", [(b"", bytes(15), 1), (b"", bytes(16), -1), (b"", bytes(16), 2**64), ("", b"", 1), ()]
)
def test_an_answer_is_made_of_bytes_a_key_and_a_position(wrong: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        render_queued(*wrong)


def test_a_new_date_makes_a_new_answer() -> None:
    known = Memo()
    first = known.queued_head([DATE])
    assert b"1970" in first
    assert b"1971" in known.queued_head([(DATE[0], DATE[1].replace(b"1970", b"1971"))])


def test_no_more_heads_are_remembered_than_the_limit() -> None:
    known = Memo()
    for number in range(3 * memo.HEADS_MAX):
        known.learn(b"%d" % number, number, NOBODY)
        assert len(known.requests) <= memo.HEADS_MAX
        assert known.requests[b"%d" % number] == (number, NOBODY)
    known.learn(b"x" * (memo.HEAD_BYTES_MAX + 1), 1, NOBODY)
    assert max(map(len, known.requests)) <= memo.HEAD_BYTES_MAX


def test_off_is_the_application_alone(tmp_path: Path) -> None:
    async def one() -> None:
        with front(tmp_path, "off") as twin:
            wire = twin.connect()
            assert not isinstance(wire.protocol, LaneProtocol)
            wire.protocol.data_received(post(GOOD))
            assert wire.written == b""
            await twin.until(lambda: wire.written)
            await close(twin, wire)

    in_a_loop(one)


async def close(twin: Front, wire: Wire) -> None:
    wire.hang_up()
    await twin.until(lambda: not twin.server.server_state.tasks)


@pytest.mark.parametrize("lane", ["on", "off"])
def test_behind_a_parked_order_answers_stay_in_order(tmp_path: Path, lane: str) -> None:
    async def one() -> None:
        with front(tmp_path, lane, capacity=1) as twin:
            wire = twin.connect()
            wire.protocol.data_received(post(GOOD) + post(GOOD))
            await twin.until(lambda: twin.acceptor.parked)
            wire.protocol.data_received(post(b"{") + post(GOOD)[:40])
            wire.protocol.data_received(post(GOOD)[40:] + LAST)
            for answered in ([202], [202, 202, 400]):
                await twin.until(lambda: twin.acceptor.parked)
                await twin.until(partial(answered_with, wire, answered))
                twin.reader.release(twin.reader.take(timeout=0))
            await twin.until(lambda: wire.lost)
            assert statuses(wire.written) == [202, 202, 400, 202, 200]

    in_a_loop(one)


@pytest.mark.parametrize("lane", ["on", "off"])
def test_a_hang_up_behind_a_parked_order_leaves_nothing(tmp_path: Path, lane: str) -> None:
    """It is seen although more was sent, for the connection is read on into a bounded buffer."""

    async def one() -> None:
        with front(tmp_path, lane, capacity=1) as twin:
            wire = twin.connect()
            wire.protocol.data_received(post(GOOD) + post(GOOD))
            await twin.until(lambda: twin.acceptor.parked)
            more = post(GOOD) * (protocol.HELD_BYTES_MAX // len(post(GOOD)))
            wire.protocol.data_received(more)
            assert not wire.paused
            wire.protocol.data_received(post(GOOD) * 2)
            assert wire.paused
            await close(twin, wire)
            assert twin.acceptor.parked == 0
            assert len(twin.accepted()) == 1

    in_a_loop(one)


@pytest.mark.parametrize("lane", ["on", "off"])
def test_who_is_gone_before_its_request_begins_is_not_waited_for(tmp_path: Path, lane: str) -> None:
    async def one() -> None:
        with front(tmp_path, lane, capacity=1) as twin:
            await twin.converse([post(GOOD) + LAST])
            loop = asyncio.get_running_loop()
            began_s, wire = loop.time(), twin.connect()
            wire.protocol.data_received(post(GOOD))
            await close(twin, wire)
            assert loop.time() - began_s < FULL_TIMEOUT_S / 2
            assert len(twin.accepted()) == 1

    in_a_loop(one)


@pytest.mark.parametrize("lane", ["on", "off"])
def test_a_body_that_never_comes_ends_with_408(
    tmp_path: Path, lane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "BODY_S_MAX", 0.02)

    async def one() -> bytes:
        with front(tmp_path, lane) as twin:
            wire = twin.connect()
            wire.protocol.data_received(post(GOOD)[:-1])
            async with asyncio.timeout(10):
                while not wire.lost:  # noqa: ASYNC110 - a timer of the server's ends it
                    await asyncio.sleep(0.001)
            return bytes(wire.written)

    assert in_a_loop(one).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("lane", ["on", "off"])
def test_an_idle_connection_ends_after_its_time_and_no_earlier(tmp_path: Path, lane: str) -> None:
    async def one() -> None:
        with front(tmp_path, lane) as twin:
            twin.server.config.timeout_keep_alive = 0.2  # type: ignore[assignment]
            wire = twin.connect()
            loop = asyncio.get_running_loop()
            for _ in range(3):
                wire.protocol.data_received(post(GOOD))
                await twin.until(lambda: wire.written.count(b"202 Accepted") == 1)
                wire.written.clear()
                await asyncio.sleep(0.05)
            last = loop.time()
            async with asyncio.timeout(10):
                while not wire.lost:  # noqa: ASYNC110 - a timer of the server's ends it
                    await asyncio.sleep(0.001)
            assert loop.time() - last > 0.1

    in_a_loop(one)


def broken(*_: object) -> None:
    raise ZeroDivisionError


def test_a_mistake_of_ours_is_500_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def one() -> bytes:
        with front(tmp_path, "on") as twin:
            monkeypatch.setattr(twin.acceptor, "_new_id", broken)
            return await twin.converse([post(GOOD), LAST])

    with caplog.at_level(logging.ERROR):
        written = in_a_loop(one)
    assert written.startswith(b"HTTP/1.1 500 ")
    assert b"200 OK" in written
    assert "ZeroDivisionError" in caplog.text


def test_an_order_that_was_there_is_told_apart(tmp_path: Path) -> None:
    reads = [post(OWN % 1), post(OWN % 1), post((OWN % 1).replace(b"1.5", b"2")), LAST]
    (lane, accepted), application = both(tmp_path, reads, 30)
    assert (lane, accepted) == application
    assert [key for key, _ in accepted] == [parse_uuid("018f0000-0000-7000-8000-000000000001")]
    assert lane.count(b"idempotency-replayed: true") == 1
    assert lane.count(b"HTTP/1.1 422 ") == 1

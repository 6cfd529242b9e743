"""Server-sent events: counters, one order's progress, and how streams end."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from ingest import counters, events, progress, sse
from ingest.answers import Refused, unavailable
from ingest.ending import Ending
from ingest.problems import DATABASE_AWAY
from ingest.sse import Event, Listener
from processors.tally import OWNER, PARKED, RELAY
from ringbuf import RingError

if TYPE_CHECKING:
    from tests.ingest.conftest import Service, Start

pytestmark = pytest.mark.anyio

BODY = b'{"customer":"c","lines":[{"sku":"A","quantity":"1"}]}'
UNKNOWN = "018f0000-0000-7000-8000-000000000001"
EVENTS = b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n"
Told = tuple[str, str, Any]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is gained by waiting in a test."""
    monkeypatch.setattr(counters, "EVERY_S", 0.01)
    monkeypatch.setattr(progress, "LOOK_S", 0.01)


async def told(answer: httpx.Response) -> AsyncIterator[Told]:
    """Name, id and data of each event until the stream ends; ("", "", comment) of a comment."""
    assert answer.status_code == 200
    fields: dict[str, str] = {}
    async for line in answer.aiter_lines():
        name, _, value = line.partition(": ")
        if line and name:
            fields[name] = value
        elif line:
            yield "", "", value
        elif "data" in fields:
            yield fields["event"], fields.get("id", ""), json.loads(fields["data"])
            fields = {}


async def order(service: Service) -> str:
    answer = await service.post(BODY)
    assert answer.status_code == 202
    return str(answer.json()["order_id"])


async def all_told(service: Service, order_id: str) -> list[Told]:
    async with service.client.stream("GET", f"/events?order_id={order_id}") as answer:
        return [one async for one in told(answer)]


def listening(service: Service) -> int:
    """Connections of the front; each is a stream where a test has no other."""
    return len(service.server.server_state.connections)


# ---- counters ------------------------------------------------------------------------------------


async def test_counters_are_told_at_once_and_again_and_again(service: Service) -> None:
    await order(service)
    await service.post(b"{")
    async with service.client.stream("GET", "/events") as answer:
        headers = answer.headers
        assert headers["content-type"] == "text/event-stream"
        assert headers["cache-control"] == "no-store"
        assert headers["x-accel-buffering"] == "no"
        stream = told(answer)
        name, identity, first = await anext(stream)
        assert (name, identity) == ("counters", "")
        assert (first["accepted"], first["depth"], first["capacity"]) == (1, 1, 100)
        assert (first["refused"]["malformed"], first["completed"]["rejected"]) == (1, 0)
        assert (first["workers_up"], first["fronts_up"], first["parked"]) == (1, 1, 0)
        assert first["oldest_s"] >= 0
        service.work_off()
        while (await anext(stream))[2]["completed"]["rejected"] == 0:
            pass


async def test_orders_that_wait_for_room_are_told(start: Start) -> None:
    service = await start(capacity=1)
    await service.post(BODY)
    waiting = await service.raw()
    await waiting.send(service.posting(BODY))
    await service.parked(1)
    async with service.client.stream("GET", "/events") as answer:
        stream = told(answer)
        assert (await anext(stream))[2]["parked"] == 1
        await waiting.hang_up()
        while (await anext(stream))[2]["parked"]:
            pass
        # What a front left that was killed is not told.
        service.ring.page("writer", service.writer.index + 1)[PARKED] = 3
        assert counters.figures(service.ring)["parked"] == 0


async def test_a_relay_is_no_front(service: Service) -> None:
    with service.ring.writer() as place:
        assert counters.figures(service.ring)["fronts_up"] == 2
        page = service.ring.page("writer", place.index)
        page[OWNER], page[PARKED] = RELAY, 3
        figures = counters.figures(service.ring)
        assert (figures["fronts_up"], figures["parked"]) == (1, 0)


async def test_counters_are_added_up_once_for_all_who_listen(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    figures = counters.figures

    def counting(ring: Any) -> dict[str, Any]:
        made.append(ring)
        return figures(ring)

    monkeypatch.setattr(counters, "EVERY_S", 3600.0)
    monkeypatch.setattr(counters, "figures", counting)
    again = counters.Counters(service.ring)
    listeners = [Listener() for _ in range(3)]
    with again.listening(listeners[0]), again.listening(listeners[1]):
        first = await listeners[0].news(1.0)
        with again.listening(listeners[2]):
            assert [await one.news(1.0) for one in listeners[1:]] == [first, first]
    assert len(made) == 1
    running = again._rounds._running
    assert running is not None
    running.cancel()
    await asyncio.wait({running})


async def test_nothing_runs_when_nobody_listens_any_more(service: Service) -> None:
    again = counters.Counters(service.ring)
    listener = Listener()
    with again.listening(listener):
        await listener.news(1.0)
        assert again._rounds.running
    await service.until(lambda: not again._rounds.running)


async def test_a_mistake_ends_the_streams_and_the_next_one_begins_anew(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Any) -> Any:
        raise RingError("damaged")

    with monkeypatch.context() as patch:
        patch.setattr(counters, "figures", broken)
        async with service.client.stream("GET", "/events") as answer:
            assert [one async for one in told(answer)] == []
    assert "damaged" in caplog.text
    async with service.client.stream("GET", "/events") as answer:
        assert (await anext(told(answer)))[0] == "counters"


# ---- one order -----------------------------------------------------------------------------------


async def test_an_order_is_told_from_the_ring_to_its_outcome_and_the_stream_ends(
    service: Service,
) -> None:
    ahead, order_id = await order(service), await order(service)
    async with service.client.stream("GET", f"/events?order_id={order_id}") as answer:
        stream = told(answer)
        name, _, view = await anext(stream)
        assert (name, view["status"], view["position"]) == ("progress", "queued", 1)
        service.reader.release(service.reader.take(1))
        name, _, view = await anext(stream)
        assert (name, view["status"], view["position"]) == ("progress", "queued", 0)
        service.reader.take(1)
        name, _, view = await anext(stream)
        assert (name, view["status"], "position" in view) == ("progress", "processing", False)
        service.reader.close()
        service.reader = service.ring.reader(service.reader.index)
        service.work_off()
        name, identity, view = await anext(stream)
        assert (name, view["status"]) == ("outcome", "rejected")
        assert [one async for one in stream] == []
    known = await service.client.get(f"/orders/{order_id}")
    assert view == known.json()
    assert f'"{identity}"' == known.headers["etag"]
    assert ahead != order_id


async def test_who_comes_again_is_told_only_what_is_new_and_in_the_end_to_stay_away(
    service: Service,
) -> None:
    order_id = await order(service)
    path = f"/events?order_id={order_id}"
    async with service.client.stream("GET", path) as answer:
        _, queued, _ = await anext(told(answer))
    async with service.client.stream("GET", path, headers={"last-event-id": queued}) as answer:
        service.work_off()
        assert [name async for name, _, _ in told(answer)] == ["outcome"]
    ((_, final, _),) = await all_told(service, order_id)
    answer = await service.client.get(path, headers={"last-event-id": final})
    assert (answer.status_code, answer.content) == (204, b"")
    assert "content-length" not in answer.headers


@pytest.mark.parametrize("counted", [True, False])
async def test_an_order_that_is_cancelled_while_it_waits_is_told_counted_or_not(
    service: Service, monkeypatch: pytest.MonkeyPatch, *, counted: bool
) -> None:
    """Not counted, as by a worker that is killed between its commit and the count of it."""
    monkeypatch.setattr(progress, "FALLBACK_S", 3600.0 if counted else 0.05)
    order_id = await order(service)
    async with service.client.stream("GET", f"/events?order_id={order_id}") as answer:
        stream = told(answer)
        await anext(stream)
        if not counted:
            monkeypatch.setattr(service.ring, "bump_commits", lambda: None)
        assert (await service.client.delete(f"/orders/{order_id}")).status_code == 200
        ((name, _, view),) = [one async for one in stream]
    assert (name, view["status"]) == ("outcome", "cancelled")


async def test_a_database_that_is_away_for_a_while_only_delays_the_outcome(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    order_id = await order(service)
    asked: list[object] = []
    ask = service.database.ask

    async def away_at_first(function: Any, *args: Any) -> Any:
        asked.append(function)
        if len(asked) < 3:
            raise Refused(unavailable(DATABASE_AWAY, "away", 1))
        return await ask(function, *args)

    async with service.client.stream("GET", f"/events?order_id={order_id}") as answer:
        stream = told(answer)
        await anext(stream)
        monkeypatch.setattr(service.database, "ask", away_at_first)
        service.work_off()
        assert [name async for name, _, _ in stream] == ["outcome"]
    assert len(asked) == 3


async def test_all_orders_that_are_done_are_asked_for_together(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [await order(service) for _ in range(5)]
    found: list[int] = []
    find_done = progress.find_done

    def counting(*args: Any) -> Any:
        done = find_done(*args)
        found.append(len(done))
        return done

    monkeypatch.setattr(progress, "find_done", counting)
    async with AsyncExitStack() as stack:
        paths = [f"/events?order_id={one}" for one in ids] * 2
        answers = [service.client.stream("GET", path) for path in paths]
        streams = [told(await stack.enter_async_context(answer)) for answer in answers]
        for stream in streams:
            await anext(stream)
        service.work_off()
        for stream in streams:
            assert [name async for name, _, _ in stream] == ["outcome"]
    assert [count for count in found if count] == [len(ids)]  # and nobody again


async def test_an_order_that_is_forgotten_ends_its_stream(service: Service) -> None:
    order_id = await order(service)
    async with service.client.stream("GET", f"/events?order_id={order_id}") as answer:
        stream = told(answer)
        await anext(stream)
        service.reader.release(service.reader.take(1))
        assert [one async for one in stream] == []


# ---- what is refused -----------------------------------------------------------------------------


async def test_what_cannot_be_listened_to_is_a_problem_and_head_has_the_head_alone(
    service: Service,
) -> None:
    for query, status, kind in (
        ("order_id=x", 422, "bad-query"),
        ("order_id=", 422, "bad-query"),
        ("since=1", 422, "bad-query"),
        (f"order_id={UNKNOWN}", 404, "no-such-order"),
    ):
        answer = await service.client.get(f"/events?{query}")
        assert (answer.status_code, answer.json()["type"]) == (status, f"/docs/problems#{kind}")
    order_id = await order(service)
    for path in ("/events", f"/events?order_id={order_id}"):
        answer = await service.client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-type"] == "text/event-stream"


async def test_more_listeners_than_there_may_be_are_refused_until_one_goes(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "LISTENERS_MAX", 2)
    first, second = await service.raw(), await service.raw()
    for raw in (first, second):
        await raw.send(EVENTS)
        assert (await raw.answer())[0] == 200
    refused = await service.client.get("/events")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert refused.json()["type"] == "/docs/problems#too-many-listeners"
    await first.hang_up()
    await service.until(lambda: listening(service) == 2)
    async with service.client.stream("GET", "/events") as answer:
        assert answer.status_code == 200


async def test_who_hangs_up_while_the_database_is_asked_leaves_no_listener(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "LISTENERS_MAX", 1)
    asked = asyncio.Event()

    async def never(*_: Any) -> None:
        asked.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(service.database, "ask", never)
        raw = await service.raw()
        await raw.send(f"GET /events?order_id={UNKNOWN} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await asked.wait()
        await raw.hang_up()
        await service.until(lambda: not service.server.server_state.tasks)
    assert (await service.client.head("/events")).status_code == 200


# ---- how streams end -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["drain", "retire"])
async def test_streams_end_cleanly_and_at_once_with_their_front(start: Start, how: str) -> None:
    service = await start(drain_timeout_s=60.0)
    order_id = await order(service)
    counting, following = await service.raw(), await service.raw()
    await counting.send(EVENTS)
    await following.send(EVENTS.replace(b"/events", f"/events?order_id={order_id}".encode()))
    for raw in (counting, following):
        assert (await raw.answer())[1]["connection"] == "close"
        await raw.reader.readuntil(b"event: ")
    getattr(service.server, how)()
    for raw in (counting, following):
        assert (await raw.rest()).endswith(b"\n\n\r\n0\r\n\r\n")


async def test_a_retiring_front_tells_what_is_known_and_sends_the_listener_on(
    service: Service,
) -> None:
    order_id = await order(service)
    raw = await service.raw()
    await service.until(lambda: listening(service) == 2)
    service.server.retire()
    await raw.send(EVENTS.replace(b"/events", f"/events?order_id={order_id}".encode()))
    answer = await raw.rest()
    assert b"connection: close\r\n" in answer
    assert b"retry: 2000\n\n" in answer
    assert b"event: progress\n" in answer
    assert answer.endswith(b"0\r\n\r\n")


async def test_a_quiet_stream_has_a_heartbeat_and_a_longest_time(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(sse, "STREAM_S_MAX", 0.1)
    first, *others = await all_told(service, await order(service))
    assert first[0] == "progress"
    assert set(others) == {("", "", "heartbeat")}


async def test_a_reader_that_takes_nothing_is_cut_off_and_the_others_go_on(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters, "EVERY_S", 0.0)
    monkeypatch.setattr(sse, "STALLED_S_MAX", 0.2)
    with socket.socket() as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.setblocking(False)
        await asyncio.get_running_loop().sock_connect(stalled, ("127.0.0.1", service.port))
        await asyncio.get_running_loop().sock_sendall(stalled, EVENTS)
        async with service.client.stream("GET", "/events") as answer:
            stream = told(answer)
            await anext(stream)
            await service.until(lambda: listening(service) == 2)
            async with asyncio.timeout(20):
                while listening(service) == 2:
                    await anext(stream)
            assert (await anext(stream))[0] == "counters"


async def test_a_reader_that_takes_all_but_the_end_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sse, "STALLED_S_MAX", 0.01)
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        if not message.get("more_body", True):
            await asyncio.Event().wait()
        sent.append(message.get("body", b""))

    listener = Listener()
    listener.tell(Event("outcome", b"1", "a", last=True))
    with pytest.raises(sse.Stalled):
        await sse.stream({"method": "GET"}, send, listener, Ending())
    assert sent[1:] == [sse.RETRY, b"event: outcome\nid: a\ndata: 1\n\n"]


# ---- a listener by itself ------------------------------------------------------------------------


async def test_a_listener_holds_the_newest_event_only() -> None:
    listener = Listener()
    for number in range(1000):
        listener.tell(Event("e", b"%d" % number))
    assert await listener.news(1.0) == Event("e", b"999")
    with pytest.raises(TimeoutError):
        await listener.news(0.001)


async def test_a_listener_is_told_nothing_after_the_last_event() -> None:
    listener = Listener()
    last = Event("outcome", b"1", "a", last=True)
    listener.tell(last)
    listener.tell(Event("e", b"2"))
    assert [await listener.news(1.0) for _ in range(2)] == [last, None]


async def test_the_last_event_that_is_known_already_only_ends_the_stream() -> None:
    listener = Listener("a")
    listener.tell(Event("progress", b"0", "a"))
    with pytest.raises(TimeoutError):
        await listener.news(0.001)
    listener.tell(Event("outcome", b"1", "a", last=True))
    assert await listener.news(1.0) is None


async def test_every_line_of_an_event_is_a_field() -> None:
    text = Event("progress", b'{"customer":"a\\nb"}', "7").text()
    assert text == b'event: progress\nid: 7\ndata: {"customer":"a\\nb"}\n\n'

"""Calls that are cancelled, by a timeout of the caller for one, leave the client as it was."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from functools import partial

import httpx
import pytest

from rasher_client import AsyncClient, connections

ID = "018f0000-0000-7000-8000-000000000001"
SOON_S = 20

Requests = asyncio.Queue[asyncio.StreamWriter]


def at_most(connections_max: int, url: str) -> AsyncClient:
    return AsyncClient(url, limits=httpx.Limits(max_connections=connections_max))


async def held(
    requests: Requests, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """A connection to a service that answers nothing by itself."""
    with contextlib.suppress(asyncio.IncompleteReadError):
        while await reader.readuntil(b"\r\n\r\n"):
            requests.put_nowait(writer)
    writer.close()


@contextlib.asynccontextmanager
async def silent() -> AsyncIterator[tuple[str, Requests]]:
    """A service's URL, and the requests that it has got."""
    requests: Requests = asyncio.Queue()
    async with await asyncio.start_server(partial(held, requests), "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", requests


async def answer(requests: Requests) -> None:
    """All, also those of calls that are gone."""
    body = json.dumps({"order_id": ID, "status": "queued"}).encode()
    while True:
        writer = await requests.get()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)


def test_calls_that_are_cut_off_cost_no_connection() -> None:
    asyncio.run(asyncio.wait_for(cut_off_calls(), SOON_S))


async def cut_off_calls() -> None:
    """At every step of the loop, while connections are made, waited for and used."""
    for steps in range(40):
        async with silent() as (url, requests), at_most(2, url) as rasher:
            calls = [asyncio.ensure_future(rasher.get(ID)) for _ in range(6)]
            for _ in range(steps):
                await asyncio.sleep(0)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            answering = asyncio.ensure_future(answer(requests))
            calls = [asyncio.ensure_future(rasher.get(ID)) for _ in range(6)]
            assert [one["order_id"] for one in await asyncio.gather(*calls)] == [ID] * 6
            answering.cancel()


def test_what_was_cut_off_and_gets_no_answer_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "CUT_OFF_S", 0.1)
    asyncio.run(asyncio.wait_for(unanswered_calls(), SOON_S))


async def unanswered_calls() -> None:
    async with silent() as (url, requests), at_most(2, url) as rasher:
        for _ in range(3):
            calls = [asyncio.ensure_future(rasher.get(ID)) for _ in range(6)]
            for _ in "12":
                await requests.get()
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)


def test_a_connection_is_waited_for_as_long_as_an_answer() -> None:
    asyncio.run(asyncio.wait_for(no_free_connection(), SOON_S))


async def no_free_connection() -> None:
    async with silent() as (url, requests), at_most(1, url) as rasher:
        holds = asyncio.ensure_future(rasher.get(ID))
        await requests.get()
        with pytest.raises(httpx.PoolTimeout, match=r"within 0\.01 s: as many calls"):
            await rasher._http.request("GET", "/livez", 0.01)
        holds.cancel()
        await asyncio.gather(holds, return_exceptions=True)

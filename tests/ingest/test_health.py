"""`/livez` and `/readyz`."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import pytest

from ingest.health import full_for_s

if TYPE_CHECKING:
    from tests.ingest.conftest import Service, Start

pytestmark = pytest.mark.anyio

BODY = b'{"customer":"c","lines":[{"sku":"A","quantity":"1"}]}'


async def test_a_front_is_alive_and_ready(service: Service) -> None:
    assert (await service.client.get("/livez")).json() == {"status": "alive"}
    ready = await service.client.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "degraded": []})


async def test_verbose_shows_the_figures(service: Service) -> None:
    await service.post(BODY)
    shown = (await service.client.get("/readyz?verbose")).json()
    assert (shown["depth"], shown["capacity"], shown["waiting"]) == (1, 100, 0)
    assert "drain_rate" in shown


async def test_a_ring_just_full_is_ready_but_degraded(start: Start) -> None:
    service = await start(capacity=1)
    await service.post(BODY)
    ready = await service.client.get("/readyz")
    assert (ready.status_code, ready.json()["degraded"]) == (200, ["ring"])


async def test_a_ring_full_for_longer_than_the_full_timeout_is_not_ready(start: Start) -> None:
    service = await start(capacity=1, full_timeout_s=0.0)
    await service.post(BODY)
    not_ready = await service.client.get("/readyz")
    assert not_ready.status_code == 503
    assert not_ready.headers["content-type"] == "application/problem+json"
    service.reader.take(timeout=0)
    assert (await service.client.get("/readyz")).status_code == 200


async def test_full_counts_from_the_newest_order(start: Start) -> None:
    service = await start(capacity=2)
    await service.post(BODY)
    assert full_for_s(service.ring) == 0.0
    await service.post(BODY)
    newest = service.ring.snapshot().waiting[-1].accepted_ns
    assert full_for_s(service.ring, lambda: newest + 3_000_000_000) == 3.0
    assert full_for_s(service.ring) < time.monotonic()


async def test_many_may_ask_at_once(service: Service) -> None:
    for _ in range(5):
        answers = await asyncio.gather(*(service.client.get("/readyz") for _ in range(20)))
        assert {answer.status_code for answer in answers} == {200}


async def test_a_database_that_does_not_answer_degrades_but_orders_are_taken(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.database.PROBE_S_MAX", 0.05)
    answers = threading.Event()
    monkeypatch.setattr("ingest.database._touch", lambda _store: answers.wait(20))
    ready = await service.client.get("/readyz")
    answers.set()
    assert (ready.status_code, ready.json()["degraded"]) == (200, ["database"])
    assert (await service.post(BODY)).status_code == 202

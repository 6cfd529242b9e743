"""What the front does when nothing can be promised, or nothing taken in."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ingest.answers import Refused
from ingest.database import Database
from processors.store import Store, StoreBroken

if TYPE_CHECKING:
    from tests.ingest.conftest import Service

pytestmark = pytest.mark.anyio

PATIENCE_S = 10.0


async def test_a_failed_sync_counts_although_whoever_asked_is_gone(tmp_path: Path) -> None:
    asked, gone = threading.Event(), threading.Event()
    heard: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
    store = Store.open(f"sqlite:///{tmp_path / 'a.db'}")
    database = Database(store, on_broken=heard.set_result)

    def fail(_store: Store) -> None:
        asked.set()
        assert gone.wait(PATIENCE_S)
        raise StoreBroken("a sync failed")

    question = asyncio.create_task(database.ask(fail))
    await asyncio.to_thread(asked.wait, PATIENCE_S)
    question.cancel()
    await asyncio.wait({question})
    gone.set()
    assert str(await asyncio.wait_for(heard, PATIENCE_S)) == "a sync failed"
    await database.close()
    store.close()


async def test_a_failed_sync_is_heard_of_before_anybody_is_answered(tmp_path: Path) -> None:
    order: list[str] = []
    store = Store.open(f"sqlite:///{tmp_path / 'a.db'}")
    database = Database(store, on_broken=lambda _: order.append("heard"))

    def fail(_store: Store) -> None:
        raise StoreBroken("a sync failed")

    try:
        await database.ask(fail)
    except Refused:
        order.append("answered")
    assert order == ["heard", "answered"]
    await database.close()
    store.close()


async def test_a_front_that_waits_for_a_recovery_is_not_ready(service: Service) -> None:
    service.server._acceptor.recovering = True
    answer = await service.client.get("/readyz")
    assert answer.status_code == 503
    assert "put back first" in answer.json()["detail"]
    service.server._acceptor.recovering = False
    assert (await service.client.get("/readyz")).status_code == 200

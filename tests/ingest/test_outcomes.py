"""Waiting for an outcome: `Prefer: wait=N` and `?wait=N`, woken by commits."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from ingest import outcomes
from ingest.accept import recovering
from ingest.answers import Refused
from ingest.patience import PREFER_BYTES_MAX, WAIT_S_MAX, asked_wait_s, preferred_wait_s
from processors.orders import OrderView
from processors.store import Store
from ringbuf import Identity
from tests.ingest.test_orders import BODY, ID, own

if TYPE_CHECKING:
    import httpx

    from tests.ingest.conftest import Service, Start

pytestmark = pytest.mark.anyio
LONG_S = 25  # no test waits for so long; it would fail


async def post(service: Service, body: bytes, prefer: str = f"wait={LONG_S}") -> httpx.Response:
    headers = {"content-type": "application/json", "prefer": prefer}
    return await service.client.post("/orders", content=body, headers=headers)


def posting(service: Service, body: bytes, prefer: str = f"wait={LONG_S}") -> asyncio.Task[Any]:
    return asyncio.create_task(post(service, body, prefer))


async def waiting(service: Service, count: int) -> None:
    """Until so many wait for outcomes."""
    await service.until(lambda: len(service.outcomes._waiting) == count)


async def settle_all(service: Service) -> None:
    """What a worker does; beside the loop, as in another process."""
    await asyncio.to_thread(service.work_off)


async def test_a_post_that_waits_has_the_order_as_get_shows_it(service: Service) -> None:
    task = posting(service, own())
    await waiting(service, 1)
    await settle_all(service)
    answer = await task
    shown = await service.client.get(f"/orders/{ID}")
    assert (answer.status_code, answer.json()) == (200, shown.json())
    assert answer.json()["status"] == "rejected"
    assert answer.headers["preference-applied"] == f"wait={LONG_S}"
    assert answer.headers["location"] == f"/orders/{ID}"
    assert answer.headers["etag"] == shown.headers["etag"]


async def test_without_an_outcome_in_time_it_is_202(service: Service) -> None:
    answer = await post(service, own(), "wait=1")
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert "preference-applied" not in answer.headers
    assert not service.outcomes._waiting


async def test_a_repeat_of_a_settled_order_has_its_outcome_at_once(service: Service) -> None:
    await service.post(own())
    await settle_all(service)
    repeat = await post(service, own())
    assert (repeat.status_code, repeat.json()["status"]) == (200, "rejected")
    assert repeat.headers["idempotency-replayed"] == "true"


async def test_what_is_refused_does_not_wait(service: Service) -> None:
    assert (await post(service, b"{")).status_code == 400
    await service.post(own())
    assert (await post(service, own(quantity="1"))).status_code == 422


async def test_a_get_waits_and_sees_the_order_move(service: Service) -> None:
    await service.post(own())
    task = asyncio.create_task(service.client.get(f"/orders/{ID}?wait={LONG_S}"))
    await waiting(service, 1)
    await settle_all(service)
    answer = await task
    assert (answer.status_code, answer.json()["status"]) == (200, "rejected")
    again = await service.client.get(
        f"/orders/{ID}?wait={LONG_S}", headers={"if-none-match": answer.headers["etag"]}
    )
    assert again.status_code == 304


async def test_a_get_that_waited_in_vain_shows_what_is_known_then(service: Service) -> None:
    await service.post(own())
    task = asyncio.create_task(service.client.get(f"/orders/{ID}?wait=1"))
    await waiting(service, 1)
    service.reader.take(timeout=0)
    answer = await task
    assert (answer.status_code, answer.json()["status"]) == (200, "processing")


@pytest.mark.parametrize("text", ["-1", "31", "1.5", "x", "", "٣", "9" * 50])
async def test_a_bad_wait_is_422_with_its_range(service: Service, text: str) -> None:
    answer = await service.client.get(f"/orders/{ID}", params={"wait": text})
    assert answer.status_code == 422
    assert str(WAIT_S_MAX) in answer.json()["detail"]


@pytest.mark.parametrize(("text", "wait_s"), [("0", 0), ("30", 30)])
def test_a_wait_has_limits(text: str, wait_s: int) -> None:
    assert asked_wait_s({"wait": text}) == wait_s
    with pytest.raises(Refused):
        asked_wait_s({"wait": "31"})


@pytest.mark.parametrize(
    ("values", "wait_s"),
    [
        ([b"wait=10"], 10), ([b"WAIT=10"], 10), ([b'wait="10"'], 10), ([b"wait = 10"], 10),
        ([b"respond-async, wait=10"], 10), ([b"respond-async", b"wait=10"], 10),
        ([b'x="a,wait=3", wait=10'], 10), ([b"wait=10; x=y"], 10), ([b"wait=10, wait=20"], 10),
        ([b"wait=100"], WAIT_S_MAX), ([b"wait=30"], 30), ([b"wait=0"], 0),
        ([b"wait"], 0), ([b"wait=-1"], 0), ([b"wait=1.5"], 0), ([b"wait=x, wait=3"], 0),
        ([b""], 0), ([b"waiting=3"], 0), ([b"wait=" + b"9" * 50], 0),
        ([b"wait=3," + b"x" * PREFER_BYTES_MAX], 0), ([], 0),
    ],
)  # fmt: skip
def test_a_preference_is_read_as_rfc_7240_has_it(values: list[bytes], wait_s: int) -> None:
    assert preferred_wait_s({"headers": [(b"prefer", value) for value in values]}) == wait_s


def test_a_preference_that_is_long_to_read_is_read_fast() -> None:
    begun = time.monotonic()
    preferred_wait_s({"headers": [(b"prefer", b'"\\' * (PREFER_BYTES_MAX // 2))]})
    assert time.monotonic() - begun < 1


async def test_one_question_serves_all_who_wait(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    views = service.outcomes._views

    def count(store: Store, some: list[Identity]) -> dict[Identity, OrderView]:
        asked.append(len(some))
        return views(store, some)

    monkeypatch.setattr(service.outcomes, "_views", count)
    tasks = [posting(service, BODY) for _ in range(50)]
    await waiting(service, 50)
    asked.clear()
    await settle_all(service)
    answers = await asyncio.gather(*tasks)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["order_id"] for answer in answers}) == 50
    assert len(asked) <= 3, "a commit, and at most one more while it was asked"


async def test_a_commit_that_nobody_counted_is_found(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.ring, "bump_commits", lambda: None)
    task = posting(service, BODY)
    await waiting(service, 1)
    await settle_all(service)
    assert (await task).status_code == 200


async def test_an_outcome_between_the_look_and_the_wait_is_not_missed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "LOOK_S", 4.0)
    seen = service.outcomes.commits
    await service.post(own())
    await settle_all(service)
    key = bytes.fromhex(ID.replace("-", ""))
    view = await service.outcomes.of(Identity(key, 0), seen, 3.0)
    assert view is not None
    assert view.status == "rejected"


async def test_who_hangs_up_waits_no_more(service: Service) -> None:
    raw = await service.raw()
    await raw.send(service.posting(BODY, headers=f"Prefer: wait={LONG_S}\r\n"))
    await waiting(service, 1)
    await raw.hang_up()
    await waiting(service, 0)
    assert service.ring.depth == 1


async def test_the_thread_ends_with_its_front_and_not_at_the_next_look(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "LOOK_S", LONG_S)
    begun = time.monotonic()
    assert await service.outcomes.of(Identity(bytes(16), 0), service.outcomes.commits, 0.01) is None
    assert service.outcomes._thread is not None
    await service.outcomes.close()
    assert time.monotonic() - begun < LONG_S / 2
    assert not service.outcomes._thread.is_alive()


async def test_a_look_that_was_due_at_the_close_lets_the_thread_end(service: Service) -> None:
    await service.outcomes.close()
    service.outcomes._awake()
    assert service.outcomes._wanted.is_set()


async def test_without_waiters_the_thread_sleeps(service: Service) -> None:
    (answer,) = await asyncio.gather(post(service, BODY, "wait=1"))
    assert answer.status_code == 202
    await service.until(lambda: not service.outcomes._wanted.is_set())
    assert any(one.name == "rasher-outcomes" for one in threading.enumerate())


async def test_a_front_that_ends_lets_nobody_wait_longer(start: Start) -> None:
    service = await start(drain_timeout_s=1.0)
    task = posting(service, BODY)
    await waiting(service, 1)
    begun = time.monotonic()
    service.server.drain()
    assert (await task).status_code == 202
    assert time.monotonic() - begun < LONG_S / 2


async def test_an_order_with_an_outcome_while_the_database_is_away_waits_in_vain(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_store: Store, _some: list[Identity]) -> dict[Identity, OrderView]:
        raise Refused(recovering())

    monkeypatch.setattr(service.outcomes, "_views", away)
    answer = await post(service, BODY, "wait=1")
    assert answer.status_code == 202


async def test_a_dead_order_is_final(service: Service) -> None:
    def broken(*_: Any) -> list[Any]:
        raise RuntimeError

    task = posting(service, BODY)
    await waiting(service, 1)
    await asyncio.to_thread(service.work_off, broken)
    content = json.loads((await task).content)
    assert content["status"] == "dead"
    assert "cause" not in content

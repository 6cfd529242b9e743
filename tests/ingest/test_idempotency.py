"""`Idempotency-Key`: repeats are the same order, lot or adjustment, also for two fronts at once."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from ingest.accept import Acceptor, Pending
from ingest.answers import Refused
from ingest.claims import Claims, place_of
from ingest.idempotency import CHARACTERS_MAX, derived_id, idempotency_key
from tests.ingest.test_orders import BODY, own

if TYPE_CHECKING:
    from tests.ingest.conftest import Service, Start

pytestmark = pytest.mark.anyio
ANOTHER = BODY.replace(b"12.5", b"12.501")
LOT = {"sku": "A", "quantity": "10", "expires_at": "2099-01-01T00:00:00Z"}


def read(value: bytes) -> bytes | None:
    return idempotency_key({"headers": [(b"idempotency-key", value)]})


async def post(service: Service, body: bytes, key: str, path: str = "/orders") -> httpx.Response:
    headers = {"content-type": "application/json", "idempotency-key": key}
    return await service.client.post(path, content=body, headers=headers)


async def test_a_repeat_with_its_key_is_the_same_order(service: Service) -> None:
    first, repeat = await post(service, BODY, "k-1"), await post(service, BODY, "k-1")
    assert (first.status_code, repeat.status_code) == (202, 202)
    assert uuid.UUID(first.json()["order_id"]).version == 8
    assert repeat.headers["location"] == first.headers["location"]
    assert repeat.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert service.ring.depth == 1


async def test_its_key_with_another_body_is_refused_wherever_the_first_is(service: Service) -> None:
    await post(service, BODY, "k-1")
    assert (await post(service, ANOTHER, "k-1")).status_code == 422
    await post(service, BODY, "k-0")
    service.reader.take(1, timeout=0)
    assert (await post(service, ANOTHER, "k-1")).status_code == 422
    service.reader.release(service.reader.held())
    await post(service, BODY, "k-1")
    service.work_off()
    assert (await post(service, ANOTHER, "k-1")).status_code == 422
    assert (await post(service, BODY, "k-1")).json()["status"] == "rejected"
    assert (await post(service, ANOTHER, "k-2")).status_code == 202


async def test_a_key_and_the_id_that_follows_from_it_agree_and_no_other_id_does(
    service: Service,
) -> None:
    refused = await post(service, own(), "k-1")
    assert refused.status_code == 422
    derived = str(uuid.UUID(bytes=derived_id(None, b"k-1")))
    assert derived in refused.json()["detail"]
    assert service.ring.depth == 0
    assert (await post(service, own(derived), "k-1")).json()["order_id"] == derived
    repeat = await service.post(own(derived))
    assert repeat.headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (b"a", b"a"),
        (b' "a" ', b"a"),
        (b'"a b"', b"a b"),
        (rb'"a\"b\\"', rb'a"b' + b"\\"),
        (b'a"b', b'a"b'),
        (b"x" * CHARACTERS_MAX, b"x" * CHARACTERS_MAX),
        (b'"%s"' % (b"x" * CHARACTERS_MAX), b"x" * CHARACTERS_MAX),
    ],
)
def test_a_key_is_bare_or_quoted(value: bytes, key: bytes) -> None:
    assert read(value) == key


@pytest.mark.parametrize(
    "value",
    [b"", b'""', b"a b", b'"a', b'a"\x00', b"\xe4", b'"\\x"', b"x" * (CHARACTERS_MAX + 1),
     b'"%s"' % (b"x" * (CHARACTERS_MAX + 1))],
)  # fmt: skip
def test_what_is_no_key_is_refused_with_its_length(value: bytes) -> None:
    with pytest.raises(Refused) as refused:
        read(value)
    assert refused.value.answer.status == 400
    assert str(len(value)) in json.loads(refused.value.answer.body)["detail"]


def test_ids_differ_by_owner_key_and_line() -> None:
    ids = {
        derived_id(owner, key, line)
        for owner in (None, "a", "b")
        for key in (b"k", b"k1")
        for line in (None, 0, 1, 11)
    }
    assert len(ids) == 24
    assert {uuid.UUID(bytes=one).version for one in ids} == {8}
    assert {uuid.UUID(bytes=one).variant for one in ids} == {uuid.RFC_4122}


async def test_two_fronts_that_take_one_id_at_the_same_instant_let_one_body_in(
    start: Start, tmp_path: Path
) -> None:
    service = await start()
    path = tmp_path / "locked"
    statuses: Counter[int] = Counter()
    with service.ring.writer() as other:
        fronts = [
            Acceptor(service.ring, writer, slow_look, 5, claims=Claims.open(path))
            for writer in (service.writer, other)
        ]
        for number in range(20):
            key = b"key %d" % number
            pending = [
                front.accept(body, idempotency_key=key)
                for front, body in zip(fronts, (BODY, ANOTHER), strict=True)
            ]
            answers = await asyncio.gather(
                *(
                    front.finish(one)
                    for front, one in zip(fronts, pending, strict=True)
                    if isinstance(one, Pending)
                )
            )
            statuses.update(answer.status for answer in answers)
            service.reader.release(service.reader.take(timeout=0))
        for front in fronts:
            assert front._claims is not None
            front._claims.close()
    assert statuses == {202: 20, 422: 20}


async def slow_look(_key: bytes) -> None:
    """Whoever comes meanwhile has looked into the ring before the first is in it."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_claim_of_a_front_that_is_gone_is_free(tmp_path: Path) -> None:
    path = tmp_path / "locked"
    gone, here = Claims.open(path), Claims.open(path)
    assert gone._take(place_of(b"k" * 16))
    waiting = asyncio.create_task(hold(here))
    await asyncio.sleep(0)
    assert not waiting.done()
    gone.close()
    await asyncio.wait_for(waiting, 5)
    here.close()


async def hold(claims: Claims) -> None:
    async with claims.of(b"k" * 16):
        pass


async def test_a_lot_without_an_id_is_entered_once_for_its_key(service: Service) -> None:
    body = json.dumps(LOT).encode()
    first, again = [
        await post(service, body, "delivery 7".replace(" ", "-"), "/lots") for _ in "12"
    ]
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    more = json.dumps({**LOT, "quantity": "11"}).encode()
    assert (await post(service, more, "delivery-7", "/lots")).status_code == 409


async def test_an_adjustment_is_made_once_for_its_key(service: Service) -> None:
    await service.post(json.dumps({**LOT, "lot_id": "L1"}).encode(), "/lots")
    body, path = b'{"delta":"-4","reason":"spoilage"}', "/lots/L1/adjustments"
    answers = await asyncio.gather(*(post(service, body, "count-1", path) for _ in range(8)))
    assert {(one.status_code, one.content) for one in answers} == {
        (201, b'{"lot_id":"L1","available":"6"}')
    }
    assert sum("idempotency-replayed" in one.headers for one in answers) == 7
    assert (await post(service, body, "count-2", path)).json()["available"] == "2"
    assert (await post(service, body, "count-1", path)).json()["available"] == "6"
    other = await post(service, body.replace(b"4", b"5"), "count-1", path)
    assert other.status_code == 422
    refused = await post(service, body, "count-3", path)
    assert refused.status_code == 409, "below zero"
    await service.post(b'{"delta":"2","reason":"found"}', path)
    assert (await post(service, body, "count-3", path)).status_code == 201, "refused is not done"

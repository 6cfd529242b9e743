"""The client, against a service that does what each test wants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from typing import Any
from uuid import UUID

import httpx
import pytest

import rasher_client
from rasher_client import AsyncClient, Client, Counts, Refused, Result, Unavailable

ORDER = {"customer": "Funky Foods", "lines": [{"sku": "BELLY", "quantity": "1.5"}]}
ID = "018f0000-0000-7000-8000-000000000001"
BUSY = httpx.Response(503, json={"status": 503, "detail": "full"}, headers={"retry-after": "7"})
QUEUED = httpx.Response(202, json={"order_id": ID, "status": "queued", "position": 0})
INVALID = {"status": 422, "detail": "1 field", "errors": [{"pointer": "/lines", "detail": "none"}]}

Said = httpx.Response | Exception
Handler = Callable[[httpx.Request], Said]


class Service:
    """Answers with what it is given, one after the other, or by a function; keeps the requests."""

    def __init__(self, *answers: Said, handler: Handler | None = None) -> None:
        self._answers = list(answers)
        self._handler = handler or (lambda _: self._answers.pop(0))
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self._handler(request)
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, content=answer.content, headers=answer.headers)

    @property
    def keys(self) -> list[str]:
        return [request.headers["idempotency-key"] for request in self.requests]

    @property
    def left(self) -> int:
        return len(self._answers)


class Caller:
    """Either client behind the calls of the blocking one."""

    def __init__(self, kind: str, service: Service) -> None:
        transport = httpx.MockTransport(service)
        self._client: Any = (
            Client("http://rasher", token="secret", transport=transport)
            if kind == "sync"
            else AsyncClient("http://rasher", token="secret", transport=transport)
        )
        self._runner = asyncio.Runner() if kind == "async" else None

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._client, name)
        if self._runner is None:
            return function
        return lambda *args, **given: self._runner.run(function(*args, **given))

    def close(self) -> None:
        if self._runner is None:
            self._client.close()
        else:
            self._runner.run(self._client.aclose())
            self._runner.close()


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest) -> Iterator[Callable[[Service], Caller]]:
    made: list[Caller] = []

    def make(service: Service) -> Caller:
        made.append(Caller(request.param, service))
        return made[-1]

    yield make
    for caller in made:
        caller.close()


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Those that were made, in no time."""
    made: list[float] = []

    async def sleep(seconds: float) -> None:
        made.append(seconds)

    monkeypatch.setattr("rasher_client.time.sleep", made.append)
    monkeypatch.setattr("rasher_client.asyncio.sleep", sleep)
    return made


Make = Callable[[Service], Caller]


def test_a_lost_answer_is_asked_for_again_under_the_same_key(client: Make) -> None:
    service = Service(httpx.ReadError("cut"), httpx.ConnectError("gone"), QUEUED)
    assert client(service).submit(ORDER)["order_id"] == ID
    assert len(set(service.keys)) == 1
    assert len({request.content for request in service.requests}) == 1
    assert {request.headers["authorization"] for request in service.requests} == {"Bearer secret"}


def test_two_calls_have_two_keys_and_a_given_one_is_used(client: Make) -> None:
    service = Service(QUEUED, QUEUED, QUEUED)
    caller = client(service)
    for given in (None, None, "mine"):
        caller.submit(ORDER, idempotency_key=given)
    assert len(set(service.keys)) == 3
    assert service.keys[2] == "mine"


def test_an_order_with_an_id_of_its_own_needs_no_key(client: Make) -> None:
    service = Service(BUSY, QUEUED)
    client(service).submit({**ORDER, "order_id": ID})
    assert not any("idempotency-key" in request.headers for request in service.requests)


@pytest.mark.parametrize("status", [408, 429, 503])
def test_what_may_pass_is_tried_again_no_sooner_than_asked(
    client: Make, pauses: list[float], status: int
) -> None:
    later = httpx.Response(status, json={}, headers={"retry-after": "7"})
    assert client(Service(later, later, QUEUED)).submit(ORDER)["status"] == "queued"
    assert len(pauses) == 2
    assert all(7 <= pause <= 7 + rasher_client.PAUSE_S_MAX for pause in pauses)


def test_pauses_grow_differ_and_are_bounded(client: Make, pauses: list[float]) -> None:
    cut = [httpx.ReadError("cut")] * rasher_client.ATTEMPTS
    with pytest.raises(Unavailable, match="cut"):
        client(Service(*cut)).submit(ORDER)
    assert len(pauses) == rasher_client.ATTEMPTS - 1
    assert len(set(pauses)) == len(pauses)
    for attempt, pause in enumerate(pauses):
        assert 0 <= pause <= min(rasher_client.PAUSE_S_MAX, rasher_client.PAUSE_S * 2**attempt)


@pytest.mark.parametrize("status", [400, 401, 403, 409, 413, 415, 422, 500])
def test_what_is_refused_is_never_tried_again(client: Make, status: int) -> None:
    service = Service(httpx.Response(status, json={**INVALID, "status": status}))
    with pytest.raises(Refused, match=r"/lines: none") as raised:
        client(service).submit(ORDER)
    assert (raised.value.status, raised.value.errors) == (status, INVALID["errors"])
    assert (len(service.requests), service.left) == (1, 0)


def test_a_refusal_that_is_no_problem_object_is_told_as_it_is(client: Make) -> None:
    with pytest.raises(Refused, match="413 too large for the proxy"):
        client(Service(httpx.Response(413, text="too large for the proxy"))).submit(ORDER)


def test_quantities_are_written_without_an_exponent(client: Make) -> None:
    service = Service(QUEUED)
    lines = [{"sku": "BELLY", "quantity": Decimal("1E+3")}]
    client(service).submit({"customer": "c", "lines": lines, "order_id": UUID(ID)})
    sent = json.loads(service.requests[0].content)
    assert (sent["lines"][0]["quantity"], sent["order_id"]) == ("1000", ID)
    with pytest.raises(TypeError, match="object"):
        client(Service()).submit({"customer": object()})


def test_an_outcome_is_waited_for_without_asking_too_often(
    client: Make, pauses: list[float]
) -> None:
    view = {"order_id": ID, "status": "queued"}
    service = Service(
        httpx.Response(200, json=view, headers={"etag": '"1"'}),
        httpx.Response(304, headers={"etag": '"1"'}),
        httpx.Response(200, json={**view, "status": "processing"}, headers={"etag": '"2"'}),
        httpx.Response(200, json={**view, "status": "allocated"}),
    )
    assert client(service).wait(ID)["status"] == "allocated"
    tags = [request.headers.get("if-none-match") for request in service.requests]
    assert tags == [None, '"1"', '"1"', '"2"']
    assert {request.url.params["wait"] for request in service.requests} == {"30"}
    assert pauses == sorted(pauses)


def test_a_wait_has_its_time(client: Make) -> None:
    queued = httpx.Response(200, json={"status": "queued"})
    with pytest.raises(TimeoutError, match=r"0\.05 s"):
        client(Service(handler=lambda _: queued)).wait(ID, 0.05)


def test_a_cancel_is_tried_again_and_one_that_is_refused_is_not(client: Make) -> None:
    view = httpx.Response(200, json={"order_id": ID, "status": "cancelled"})
    service = Service(httpx.ReadError(""), view)
    assert client(service).cancel(ID)["status"] == "cancelled"
    assert {(one.method, one.url.path) for one in service.requests} == {("DELETE", f"/orders/{ID}")}
    with pytest.raises(Refused, match="409"):
        client(Service(httpx.Response(409, json={"detail": "dead"}))).cancel(ID)


# ---- bulks --------------------------------------------------------------------------------------


class Bulks:
    """A service that takes lines as rasher does: `fate` says what becomes of an attempt's line."""

    def __init__(self, fate: Callable[[int, dict[str, Any]], str]) -> None:
        self.fate = fate
        self.attempt = 0
        self.taken: dict[str, Any] = {}  # by key and line: an order, once

    def __call__(self, request: httpx.Request) -> Said:
        self.attempt += 1
        items: list[dict[str, Any]] = []
        for number, line in enumerate(request.content.split(b"\n"), 1):
            if not line:
                continue
            order = json.loads(line)
            fate = self.fate(self.attempt, order)
            if fate == "cut":
                return httpx.ReadError("cut")
            if fate == "stop":
                problem = {"status": 503, "detail": "full"}
                items.append({"line": number, "error": problem, "stopped": True, "retry_after": 3})
                break
            if fate == "refuse":
                items.append({"line": number, "error": INVALID})
                continue
            name = f"{request.headers['idempotency-key']}:{number}"
            assert self.taken.setdefault(name, order) == order
            items.append({"line": number, "order_id": name})
        return httpx.Response(200, json={"items": items})


def orders(count: int) -> Iterator[dict[str, Any]]:
    return ({**ORDER, "reference": str(number)} for number in range(count))


def test_orders_of_any_number_go_in_batches_and_each_is_told_once_in_order(
    client: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rasher_client, "BATCH_LINES", 10)
    told: list[Result] = []
    bulks = Bulks(lambda _, order: "refuse" if order["reference"] == "5" else "take")
    service = Service(handler=bulks)
    counts = client(service).submit_many(orders(25), on_result=told.append, progress=True)
    assert counts == Counts(accepted=24, refused=1)
    assert [one.number for one in told] == list(range(25))
    assert told[5] == Result(5, {**ORDER, "reference": "5"}, None, INVALID)
    assert [order["reference"] for order in bulks.taken.values()] == [
        str(number) for number in range(25) if number != 5
    ]
    assert len(set(service.keys)) == len(service.requests) == 3


def test_a_bulk_that_breaks_or_stops_goes_on_and_takes_each_order_once(
    client: Make, pauses: list[float]
) -> None:
    def fate(attempt: int, order: dict[str, Any]) -> str:
        number = int(order["reference"])
        if attempt == 1 and number == 4:
            return "cut"
        if attempt == 2 and number == 6:
            return "stop"
        return "refuse" if number == 2 else "take"

    told: list[Result] = []
    bulks = Bulks(fate)
    counts = client(Service(handler=bulks)).submit_many(orders(10), on_result=told.append)
    assert counts == Counts(accepted=9, refused=1)
    references = [order["reference"] for order in bulks.taken.values()]
    assert sorted(references) == [str(number) for number in range(10) if number != 2]
    assert [one.order["reference"] for one in told] == [str(number) for number in range(10)]
    assert pauses[1] >= 3


def test_a_bulk_that_gets_no_further_ends_and_one_that_does_goes_on(client: Make) -> None:
    last = rasher_client.ATTEMPTS + 5
    slow = Bulks(lambda attempt, order: "take" if int(order["reference"]) < attempt else "stop")
    assert client(Service(handler=slow)).submit_many(orders(last)) == Counts(accepted=last)
    stuck = Bulks(lambda _, order: "take" if int(order["reference"]) < 3 else "stop")
    with pytest.raises(Unavailable, match="503 full"):
        client(Service(handler=stuck)).submit_many(orders(9))
    assert len(stuck.taken) == 3


def test_the_same_key_and_orders_make_the_same_requests(
    client: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rasher_client, "BATCH_BYTES", 300)
    bulks = Bulks(lambda *_: "take")
    service = Service(handler=bulks)
    for _ in range(2):
        client(service).submit_many(orders(10), idempotency_key="import-7")
    assert len(bulks.taken) == 10
    half = len(service.keys) // 2
    assert service.keys[:half] == service.keys[half:]
    assert all(key.startswith("import-7/") for key in service.keys)


def test_no_orders_are_no_request(client: Make) -> None:
    assert client(Service()).submit_many([]) == Counts()


def test_orders_that_come_asynchronously_are_taken_as_they_come() -> None:
    async def run() -> Counts:
        async def coming() -> AsyncIterator[dict[str, Any]]:
            for order in orders(7):
                yield order

        transport = httpx.MockTransport(Service(handler=Bulks(lambda *_: "take")))
        async with AsyncClient("http://rasher", transport=transport) as rasher:
            return await rasher.submit_many(coming())

    assert asyncio.run(run()) == Counts(accepted=7)


def test_what_can_never_work_is_said_at_once() -> None:
    with pytest.raises(ValueError, match="neither http"):
        Client("localhost:8000")
    with Client("http://rasher") as rasher, pytest.raises(ValueError, match="200 characters"):
        rasher.submit(ORDER, idempotency_key="k" * 201)

"""Keys over real sockets, on the lane and through the application."""

from __future__ import annotations

import asyncio
import json
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import dead_letter_verb, load
from ingest.answers import Queued
from ingest.app import make_routes
from ingest.dead_letter_verb import Doing
from ingest.keys import NEEDS, Keyring, is_open
from ingest.origin import make_origin
from processors.keys import change_keys, new_key, read_keys
from processors.schema import format_uuid, load_header
from processors.settings import BARE
from tests.ingest.keyring import bearer, make_keys
from tests.ingest.test_lane import GOOD, LAST, OWN, TYPES, in_a_loop, post, statuses
from tests.ingest.twins import Wire, front

if TYPE_CHECKING:
    import httpx

    from tests.ingest.conftest import Service, Start

pytestmark = pytest.mark.anyio

KEYS = {
    "shop": "submit",
    "other": "submit",
    "office": "read",
    "boss": "admin",
    "clerk": "submit read",
}
ID = "01937a3e-5b1c-7cc0-8000-0123456789ab"
LOT = {"lot_id": "L1", "sku": "BELLY", "quantity": "9", "expires_at": "2126-01-01T00:00:00Z"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def tokens(path: Path) -> dict[str, str]:
    return make_keys(path, **KEYS)


@pytest.fixture
async def service(start: Start, path: Path, tokens: dict[str, str]) -> Service:
    return await start(keys=str(path))


async def call(
    service: Service, token: str | None, method: str, path: str, body: object = None, **more: str
) -> httpx.Response:
    headers = {"content-type": "application/json", **(bearer(token) if token else {}), **more}
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    return await service.client.request(method, path, headers=headers, content=content)


# ---- who it is -----------------------------------------------------------------------------------


async def test_without_a_key_it_is_401_and_says_how_to_show_one(service: Service) -> None:
    for method, path in [("POST", "/orders"), ("GET", f"/orders/{ID}"), ("GET", "/nothing")]:
        answer = await call(service, None, method, path, GOOD)
        assert answer.status_code == 401
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["www-authenticate"] == 'Bearer realm="rasher"'
        assert "Authorization: Bearer" in answer.json()["detail"]
    assert service.ring.depth == 0


def wrong(token: str) -> list[str]:
    swapped = "a" if token[-1] != "a" else "b"
    return [
        f"Bearer {token[:-1]}{swapped}",
        f"Bearer {token}a",
        f"Bearer {token[:-1]}",
        f"Bearer {token}\u00e9",
        f"Bearer {token},",
        f"Bearer rsk_00000000_{token[13:]}",
        f"Basic {token}",
        token,
        "Bearer",
        "Bearer " + "a" * 8000,
        f"Bearer {token.upper()}",
    ]


async def test_a_wrong_key_is_401_on_every_way_and_the_connection_goes_on(
    service: Service, tokens: dict[str, str]
) -> None:
    raw = await service.raw()
    for value in wrong(tokens["shop"]):
        for path in ("/orders", "/lots"):
            head = service.posting(GOOD, path)[: -len(GOOD) - 2]
            shown = b"Authorization: %s\r\n\r\n" % value.encode("latin-1")
            await raw.send(head + shown + GOOD)
            status, headers, _ = await raw.answer()
            assert status == 401, value
            assert 'error="invalid_token"' in headers["www-authenticate"]
    assert service.ring.depth == 0


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER  "])
async def test_the_schemes_name_is_of_either_case(
    service: Service, tokens: dict[str, str], scheme: str
) -> None:
    answer = await call(
        service, None, "POST", "/orders", GOOD, authorization=f"{scheme} {tokens['shop']}"
    )
    assert answer.status_code == 202


async def test_two_keys_in_one_request_are_none(service: Service, tokens: dict[str, str]) -> None:
    raw = await service.raw()
    for first, second in (("shop", "boss"), ("shop", "shop")):
        more = "".join(f"Authorization: Bearer {tokens[one]}\r\n" for one in (first, second))
        await raw.send(service.posting(GOOD, headers=more))
        status, headers, body = await raw.answer()
        assert (status, b"more than once" in body) == (401, True)
        assert 'error="invalid_request"' in headers["www-authenticate"]
    assert service.ring.depth == 0


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 80), st.integers(0, 80))
def test_nothing_but_the_token_itself_is_known(noise: bytes, begin: int, end: int) -> None:
    key, token = new_key("shop", ["submit"])
    keyring = Keyring([key, new_key("other", ["admin"])[0]])
    right = b"Bearer " + token.encode()
    identity = keyring.identify(right)
    assert identity is not None
    assert (identity.name, identity.origin) == ("shop", make_origin("shop"))
    changed = right[:begin] + noise + right[end:]
    # RFC 9110: the scheme in any case, then one or more spaces.
    shown = re.fullmatch(rb"(?i:bearer) +(.*)", changed, re.DOTALL)
    if shown is None or shown[1] != token.encode():
        assert keyring.identify(changed) is None


async def test_probes_and_documents_need_no_key_and_a_wrong_one_does_not_hurt(
    service: Service,
) -> None:
    for path in ("/livez", "/readyz", "/readyz?verbose"):
        assert (await call(service, None, "GET", path)).status_code == 200
        assert (await call(service, "rsk_wrong", "GET", path)).status_code == 200
    for path in ("/openapi.json", "/docs", "/docs/x.css", "/"):
        assert (await call(service, None, "GET", path)).status_code != 401


async def test_what_only_looks_open_is_not(service: Service) -> None:
    raw = await service.raw()
    for path in ("//livez", "/livez/", "/docs/../orders", "/%2e/livez", "/LIVEZ", "/livez%00"):
        await raw.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert (await raw.answer())[0] in (401, 404), path


async def test_a_401_bears_the_requests_name(service: Service) -> None:
    answer = await call(service, None, "GET", "/orders", **{"x-request-id": "web-17"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (401, "web-17")


async def test_refusals_are_counted(service: Service, tokens: dict[str, str]) -> None:
    await call(service, None, "POST", "/orders", GOOD)
    await call(service, tokens["office"], "POST", "/orders", GOOD)
    text = (await call(service, tokens["office"], "GET", "/metrics")).text
    for reason in ("unauthorized", "forbidden"):
        assert f'rasher_orders_refused_total{{reason="{reason}"}} 1.0' in text


async def test_a_bad_idempotency_key_is_400_with_a_key_too(
    service: Service, tokens: dict[str, str]
) -> None:
    answer = await call(
        service, tokens["shop"], "POST", "/orders", GOOD, **{"idempotency-key": "a b"}
    )
    assert answer.status_code == 400


# ---- what it may do ------------------------------------------------------------------------------


def routes(service: Service) -> list[tuple[str, str]]:
    app = make_routes(
        service.settings, service.ring, service.acceptor, service.database, service.outcomes
    )
    return [
        (method, route.path)  # type: ignore[attr-defined]
        for route in app.routes
        for method in sorted(getattr(route, "methods", None) or {"GET"})
        if method != "HEAD"
    ]


async def test_every_route_has_its_rule(service: Service) -> None:
    assert [one for one in routes(service) if one not in NEEDS and not is_open(one[1])] == []


async def test_each_key_does_what_its_scopes_say_and_nothing_else(
    service: Service, tokens: dict[str, str]
) -> None:
    for method, template in routes(service):
        path = template.replace("{order_id}", ID).replace("{lot_id}", "L").replace("{sku}", "S")
        path = path.replace("/events", f"/events?order_id={ID}")  # the counters have no end
        for name, token in tokens.items():
            answer = await call(service, token, method, path, b"{}")
            scopes = {*KEYS[name].split()}
            allowed = is_open(template) or scopes & {*NEEDS.get((method, template), ()), "admin"}
            assert (answer.status_code == 403) == (not allowed), (method, path, name)
            if answer.status_code == 403:
                assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]
                assert f"the key of {name} has: " in answer.json()["detail"]


async def test_a_route_without_a_rule_is_for_admin_alone(
    start: Start, path: Path, tokens: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(NEEDS, ("GET", "/inventory"))
    service = await start(keys=str(path))
    codes = [
        (await call(service, tokens[name], "GET", "/inventory")).status_code
        for name in ("office", "clerk", "boss")
    ]
    assert codes == [403, 403, 200]


# ---- whose orders --------------------------------------------------------------------------------


async def seen(service: Service, tokens: dict[str, str], order_id: str) -> dict[str, int]:
    codes = {}
    for name in ("shop", "other", "office", "boss"):
        answer = await call(service, tokens[name], "GET", f"/orders/{order_id}")
        codes[name] = answer.status_code
    return codes


async def test_a_submit_key_sees_its_own_orders_and_no_others(
    service: Service, tokens: dict[str, str]
) -> None:
    assert (await call(service, tokens["boss"], "POST", "/lots", LOT)).status_code == 201
    posted = await call(service, tokens["shop"], "POST", "/orders", GOOD)
    order_id = posted.json()["order_id"]
    expected = {"shop": 200, "other": 404, "office": 200, "boss": 200}
    assert await seen(service, tokens, order_id) == expected  # in the ring
    foreign = await call(service, tokens["other"], "GET", f"/orders/{order_id}")
    service.work_off()
    assert await seen(service, tokens, order_id) == expected  # in the database
    nowhere = await call(service, tokens["other"], "GET", f"/orders/{ID}")
    assert foreign.content.replace(order_id.encode(), ID.encode()) == nowhere.content


async def test_waits_lists_and_cancels_are_of_own_orders_alone(
    service: Service, tokens: dict[str, str]
) -> None:
    posted = await call(service, tokens["shop"], "POST", "/orders", GOOD)
    where = posted.headers["location"]
    assert (await call(service, tokens["other"], "GET", f"{where}?wait=30")).status_code == 404
    await call(service, tokens["other"], "POST", "/orders", GOOD)

    async def listed(name: str, query: str) -> int:
        return len((await call(service, tokens[name], "GET", f"/orders{query}")).json()["items"])

    expected = {"shop": 1, "other": 1, "office": 2, "clerk": 2, "boss": 2}
    assert {name: await listed(name, "?status=queued") for name in KEYS} == expected
    for name, status in (("other", 404), ("office", 403), ("clerk", 404), ("shop", 200)):
        assert (await call(service, tokens[name], "DELETE", where)).status_code == status, name
    service.work_off()
    assert {name: await listed(name, "") for name in KEYS} == expected
    assert (await call(service, tokens["boss"], "DELETE", where)).status_code == 200


async def test_the_orders_of_a_bulk_have_an_owner(service: Service, tokens: dict[str, str]) -> None:
    more = {"content-type": "application/x-ndjson", **bearer(tokens["shop"])}
    answer = await service.client.post("/orders/bulk", headers=more, content=GOOD + b"\n" + GOOD)
    ids = [item["order_id"] for item in answer.json()["items"]]
    assert [await seen(service, tokens, one) for one in ids] == [
        {"shop": 200, "other": 404, "office": 200, "boss": 200}
    ] * 2
    more = {"content-type": "application/x-ndjson", **bearer(tokens["office"])}
    refused = await service.client.post("/orders/bulk", headers=more, content=GOOD)
    assert (refused.status_code, service.ring.depth) == (403, 2)


async def test_orders_from_before_the_keys_are_nobodys(
    service: Service, tokens: dict[str, str]
) -> None:
    queued = service.acceptor.accept(GOOD)
    assert isinstance(queued, Queued)
    order_id = format_uuid(queued.key)
    expected = {"shop": 404, "other": 404, "office": 200, "boss": 200}
    assert await seen(service, tokens, order_id) == expected
    service.work_off()
    assert await seen(service, tokens, order_id) == expected


async def test_the_same_idempotency_key_of_two_owners_is_two_orders(
    service: Service, tokens: dict[str, str]
) -> None:
    ids = []
    for name in ("shop", "shop", "other"):
        more = {"idempotency-key": "k"}
        answer = await call(service, tokens[name], "POST", "/orders", GOOD, **more)
        ids.append(answer.json()["order_id"])
    assert (ids[0] == ids[1], ids[0] == ids[2]) == (True, False)


async def test_a_second_key_of_a_name_has_the_same_orders(
    start: Start, path: Path, tokens: dict[str, str]
) -> None:
    key, token = new_key("shop", ["submit"])
    change_keys(path, lambda keys: [*keys, key])
    service = await start(keys=str(path))
    more = {"idempotency-key": "k"}
    first = await call(service, tokens["shop"], "POST", "/orders", GOOD, **more)
    second = await call(service, token, "POST", "/orders", GOOD, **more)
    assert second.headers["idempotency-replayed"] == "true"
    assert (await call(service, token, "GET", first.headers["location"])).status_code == 200


# ---- the lane ------------------------------------------------------------------------------------


def owners(twin: Any) -> list[str | None]:
    return [load_header(item.header).owner for item in twin.ring.snapshot().waiting]


def keyed(token: str, body: bytes = GOOD, extra: bytes = b"") -> bytes:
    return post(body, extra=b"Authorization: Bearer %s\r\n%s" % (token.encode(), extra))


@pytest.mark.parametrize("reads", ["one", "two", "same"])
@pytest.mark.parametrize("body", [GOOD, OWN % 1])
def test_lane_and_application_answer_alike_with_keys(
    tmp_path: Path, path: Path, tokens: dict[str, str], reads: str, body: bytes
) -> None:
    keyring = Keyring(read_keys(path))
    forms = [keyed(token, body) for token in tokens.values()]
    forms += [post(body), keyed("rsk_00000000_" + "a" * 43, body), post(body, TYPES[3])]
    forms += [keyed(tokens["shop"], body, b"X-Request-ID: w\r\n")]
    forms += [keyed(tokens["shop"], body, b"Authorization: Bearer x\r\n")]
    for form in forms:
        parts = {"one": [form], "two": [form[:70], form[70:]], "same": [form] * 3}[reads]
        said = []
        for lane in ("on", "off"):

            async def ask(lane: str, parts: list[bytes]) -> Any:
                with front(tmp_path, lane, keyring=keyring) as twin:
                    return await twin.converse([*parts, LAST], 30), twin.accepted(), owners(twin)

            said.append(in_a_loop(partial(ask, lane, parts)))
        assert said[0] == said[1]


def test_a_known_head_costs_no_hashing_and_keeps_its_owner(
    tmp_path: Path, path: Path, tokens: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keyring = Keyring(read_keys(path))

    async def one() -> None:
        with front(tmp_path, "on", keyring=keyring) as twin:
            wires = [twin.connect(), twin.connect()]
            for wire, name in zip(wires, ("shop", "other"), strict=True):
                wire.protocol.data_received(keyed(tokens[name]))
            monkeypatch.setattr(Keyring, "identify", None)
            for wire in wires:
                wire.protocol.parser = None  # type: ignore[assignment]
            for name in ("other", "shop", "other"):
                wires[0].protocol.data_received(keyed(tokens[name]))
            assert statuses(wires[0].written) == [202] * 4
            assert owners(twin) == ["shop", "other", "other", "shop", "other"]
            await ended(twin, *wires)

    in_a_loop(one)


def test_heads_that_are_refused_are_not_remembered(
    tmp_path: Path, path: Path, tokens: dict[str, str]
) -> None:
    async def one() -> None:
        with front(tmp_path, "on", keyring=Keyring(read_keys(path))) as twin:
            wire = twin.connect()
            for request in (post(GOOD), keyed(tokens["office"]), keyed("rsk_x")):
                wire.written.clear()
                wire.protocol.data_received(request)
                await twin.until(partial(bytes.startswith, b"HTTP", b"HTTP"))
                await twin.until(lambda: wire.written)
            assert twin.server._memo.requests == {}
            assert twin.accepted() == []
            await ended(twin, wire)

    in_a_loop(one)


async def ended(twin: Any, *wires: Wire) -> None:
    for wire in wires:
        wire.hang_up()
    await twin.until(lambda: not twin.server.server_state.tasks)


async def test_a_key_that_is_remembered_gets_one_answer_more_of_a_retiring_front(
    service: Service, tokens: dict[str, str]
) -> None:
    raw = await service.raw()
    request = service.posting(GOOD, headers=f"Authorization: Bearer {tokens['shop']}\r\n")
    await raw.send(request)
    assert (await raw.answer())[0] == 202
    service.server.retire()
    await raw.send(request * 2)
    status, headers, _ = await raw.answer()
    assert (status, headers.get("connection")) == (202, None)
    status, headers, _ = await raw.answer()
    assert (status, headers["connection"]) == (202, "close")
    assert await raw.closed()


async def test_a_large_body_without_a_key_is_refused_unread(service: Service) -> None:
    raw = await service.raw()
    head = "POST /orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    await raw.send(f"{head}Content-Length: 1000000\r\n\r\n".encode())
    assert (await asyncio.wait_for(raw.answer(), 5))[0] == 401


# ---- the verbs that call the service -------------------------------------------------------------


async def test_verbs_show_the_key_of_the_environment(
    service: Service, tokens: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ["--url", f"http://127.0.0.1:{service.port}"]
    posting = load._parser(BARE).parse_args([*where, "--rate", "100", "--duration", "0.02"])
    replaying = dead_letter_verb._parser(BARE).parse_args(["replay", "--all", *where])
    assert (await call(service, tokens["boss"], "POST", "/lots", LOT)).status_code == 201

    async def replay() -> int:
        return await Doing(replaying, "POST", "/replay", 202, "replayed").run()

    for name, loaded in (("clerk", 0), ("shop", 1), ("office", 1)):
        monkeypatch.setenv("RASHER_TOKEN", tokens[name])
        assert await load._load(posting) == loaded, name
        with pytest.raises(aiohttp.ClientResponseError, match="403"):
            await replay()
    monkeypatch.setenv("RASHER_TOKEN", tokens["boss"])
    assert (await load._load(posting), await replay()) == (0, 0)
    monkeypatch.delenv("RASHER_TOKEN")
    assert await load._load(posting) == 1
    assert set(owners(service)) == {"clerk", "boss"}

"""Behind a proxy: what its headers say, and the nginx of the documents."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from ingest.answers import json_answer
from ingest.app import behind_proxies
from ingest.exchange import Application, Receive, Scope, Send, deliver
from processors.settings import HttpSettings
from tests.ingest.certificate import make_certificate, trusting
from tests.ingest.conftest import PATIENCE_S
from tests.ingest.keyring import bearer, make_keys
from tests.nginx import nginx

if TYPE_CHECKING:
    from tests.ingest.conftest import Service, Start

pytestmark = pytest.mark.anyio

BODY = b'{"customer":"c","lines":[{"sku":"A","quantity":"1"}]}'
FORWARDED = {"x-forwarded-for": "203.0.113.9", "x-forwarded-proto": "https"}


class Telling:
    """In front of an application: /told says what it is told of a request, /events and /orders/bulk
    stream, the one when it is let go on, the other as it is fed."""

    def __init__(self, app: Application) -> None:
        self._app = app
        self.go_on = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/told":
            names = {name.decode(): value.decode() for name, value in scope["headers"]}
            content = {"client": scope["client"], "scheme": scope["scheme"], "headers": names}
            await deliver(json_answer(200, content), receive, send)
        elif scope["path"] == "/events":
            await begin(send)
            await send({"type": "http.response.body", "body": b"first\n", "more_body": True})
            await self.go_on.wait()
            await send({"type": "http.response.body", "body": b"second\n"})
        elif scope["path"] == "/orders/bulk":
            await begin(send)
            more = True
            while more:
                message = await receive()
                more = message["more_body"]
                await send(
                    {"type": "http.response.body", "body": message["body"], "more_body": more}
                )
        else:
            await self._app(scope, receive, send)


async def begin(send: Send) -> None:
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


def telling(service: Service) -> Telling:
    """From the next connection on."""
    told = Telling(service.server.config.loaded_app)
    wrapped: Any = behind_proxies(told, service.settings.http)
    service.server.config.loaded_app = wrapped
    return told


@pytest.mark.parametrize(
    ("http", "client", "scheme"),
    [
        ({}, "203.0.113.9", "https"),
        ({"forwarded_allow_ips": "*"}, "203.0.113.9", "https"),
        ({"forwarded_allow_ips": "10.0.0.0/8,127.0.0.0/8"}, "203.0.113.9", "https"),
        ({"forwarded_allow_ips": "10.0.0.0/8"}, "127.0.0.1", "http"),
        ({"proxy_headers": "off"}, "127.0.0.1", "http"),
    ],
)
async def test_only_a_trusted_proxy_says_who_the_client_is(
    start: Start, http: dict[str, str], client: str, scheme: str
) -> None:
    service = await start(**http)
    telling(service)
    told = (await service.client.get("/told", headers=FORWARDED)).json()
    assert (told["client"][0], told["scheme"]) == (client, scheme)


async def test_of_several_proxies_the_last_untrusted_address_is_the_client(start: Start) -> None:
    service = await start(forwarded_allow_ips="127.0.0.1,10.0.0.0/8")
    telling(service)
    forged = {"x-forwarded-for": "1.1.1.1, 203.0.113.9, 10.0.0.7", "x-forwarded-proto": "gopher"}
    told = (await service.client.get("/told", headers=forged)).json()
    assert (told["client"][0], told["scheme"]) == ("203.0.113.9", "http")


def test_the_default_is_uvicorns() -> None:
    http = HttpSettings()
    assert (http.proxy_headers, http.forwarded_allow_ips) == ("on", "127.0.0.1")


# ---- the nginx of docs/operating.md --------------------------------------------------------------


async def test_the_documented_nginx_serves_names_limits_and_streams(
    start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "keys.json"
    token = make_keys(path, shop="submit")["shop"]
    certificate, key = make_certificate(tmp_path)
    service = await start(keys=str(path))
    told = telling(service)
    changes = {
        "server 127.0.0.1:8000": f"server 127.0.0.1:{service.port}",
        "/etc/ssl/orders.pem": str(certificate),
        "/etc/ssl/orders.key": str(key),
        "rate=100r/s": "rate=1r/m",
        "burst=200": "burst=19",
    }
    with nginx(tmp_path / "nginx", changes) as port:
        async with httpx.AsyncClient(
            base_url=f"https://localhost:{port}",
            headers={**bearer(token), "content-type": "application/json"},
            verify=trusting(certificate),
            trust_env=False,
            timeout=PATIENCE_S,
        ) as client:
            await orders_are_taken(client, service)
            await names_are_passed_on(client)
            await events_come_at_once(client, told)
            await bulk_is_passed_on_as_it_comes(port, trusting(certificate), token)
            await too_many_are_429(client)


async def orders_are_taken(client: httpx.AsyncClient, service: Service) -> None:
    for _ in range(3):
        answer = await client.post("/orders", content=BODY)
        assert answer.status_code == 202
    assert len(service.server._memo.requests) <= 3
    assert len(service.server.server_state.connections) == 1  # nginx keeps it
    assert (await client.get(answer.headers["location"])).status_code == 200
    assert (await client.get("/livez", headers={"authorization": ""})).status_code == 200
    refused = await client.post("/orders", content=BODY, headers=bearer("rsk_wrong"))
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Bearer")
    assert (await client.post("/orders", content=b" " * 70_000)).status_code == 413


async def names_are_passed_on(client: httpx.AsyncClient) -> None:
    forged = {**FORWARDED, "x-forwarded-proto": "http", "x-request-id": "web-17"}
    told = (await client.get("/told", headers=forged)).json()
    assert (told["client"][0], told["scheme"]) == ("127.0.0.1", "https")
    assert told["headers"]["x-request-id"] == "web-17"
    assert told["headers"]["host"] == "localhost"
    unnamed = (await client.get("/told")).json()
    assert len(unnamed["headers"]["x-request-id"]) == 32


async def events_come_at_once(client: httpx.AsyncClient, told: Telling) -> None:
    async with client.stream("GET", "/events") as answer:
        events = answer.aiter_lines()
        assert await anext(events) == "first"
        told.go_on.set()
        assert await anext(events) == "second"


async def bulk_is_passed_on_as_it_comes(port: int, context: ssl.SSLContext, token: str) -> None:
    """Each line is answered before the next is sent, and together they are more than an order may
    have. By hand, for httpx reads no answer before its request is sent."""
    reader, writer = await asyncio.open_connection("localhost", port, ssl=context)
    shown = f"Authorization: Bearer {token}\r\nTransfer-Encoding: chunked\r\n"
    writer.write(f"POST /orders/bulk HTTP/1.1\r\nHost: localhost\r\n{shown}\r\n".encode())
    async with asyncio.timeout(PATIENCE_S):
        for number in range(10):
            line = b"%06d" % number + b"x" * 9_994
            writer.write(b"%x\r\n%s\r\n" % (len(line), line))
            if number == 0:
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
            echo = b""
            while len(echo) < len(line):
                size = int(await reader.readline(), 16)
                echo += (await reader.readexactly(size + 2))[:-2]
            assert echo == line
        writer.write(b"0\r\n\r\n")
        assert await reader.readline() == b"0\r\n"
    writer.close()
    await writer.wait_closed()


async def too_many_are_429(client: httpx.AsyncClient) -> None:
    answers = [await client.get("/livez") for _ in range(20)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert refused[0].headers["content-type"] == "application/problem+json"
    assert refused[0].headers["retry-after"] == "1"
    assert json.loads(refused[0].content)["status"] == 429

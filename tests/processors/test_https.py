"""Endpoints behind TLS: whom the relay believes, and what it says of others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from processors.names import Loop
from tests.ingest.certificate import Authority
from tests.partners import partner, until
from tests.processors.kit import House, on_sqlite
from tests.processors.test_relay import (
    _quick,  # noqa: F401 - a fixture
    endpoint,
    reject,
    relaying,
    told,
)

pytestmark = [pytest.mark.anyio, on_sqlite]


@pytest.fixture(params=[asyncio.new_event_loop, Loop], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": request.param}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "ours")


@pytest.fixture
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The partner's loop tells of each handshake that the relay breaks off."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("asyncio").setLevel(logging.NOTSET)


def trust(monkeypatch: pytest.MonkeyPatch, certificate: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))


async def errors_until_tried_again(house: House) -> set[str]:
    """What an endpoint that can't be told is tried again after."""
    await until(lambda: any(row[3] > 1 for row in told(house)))
    return {row[0] for row in house.rows("SELECT error FROM deliveries")}


async def test_an_endpoint_of_an_authority_of_ones_own_is_told(
    house: House, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust(monkeypatch, authority.certificate)
    async with partner(tls=authority.server("localhost")) as shop:
        async with relaying(house, endpoint(shop)):
            reject(house, 20)
            await until(lambda: {row[2:] for row in told(house)} == {("delivered", 1)})
    assert len(set(shop.ids)) == len(shop.ids) == 20
    assert 1 <= shop.connections <= 8


@pytest.mark.usefixtures("_quiet")
async def test_an_authority_that_is_not_known_is_named_and_believed_from_the_next_start_on(
    house: House, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    async with partner(tls=authority.server("localhost")) as shop:
        async with relaying(house, endpoint(shop)):
            reject(house)
            (error,) = await errors_until_tried_again(house)
        assert error == (
            "its certificate is refused: unable to get local issuer certificate"
            " (SSL_CERT_FILE names the authorities that are trusted)"
        )
        assert shop.heard == []
        trust(monkeypatch, authority.certificate)
        async with relaying(house, endpoint(shop)):
            await until(lambda: [row[2] for row in told(house)] == ["delivered"])
    assert len(shop.heard) == 1


@pytest.mark.usefixtures("_quiet")
async def test_a_certificate_of_another_host_is_refused_and_tried_again(
    house: House, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust(monkeypatch, authority.certificate)
    async with partner(tls=authority.server("shop.example")) as shop:
        async with relaying(house, endpoint(shop)):
            reject(house)
            (error,) = await errors_until_tried_again(house)
    assert error == (
        "its certificate is refused: Hostname mismatch, certificate is not valid for 'localhost'."
    )
    assert shop.heard == []


async def test_one_that_speaks_no_tls_is_told_so(house: House) -> None:
    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, partner() as shop:
        async with relaying(house, endpoint(shop, url=f"https://127.0.0.1:{port}/")):
            reject(house)
            (error,) = await errors_until_tried_again(house)
    assert error.startswith("no connection: [SSL: ")

"""TLS: the same service behind it, and what a handshake may cost."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ingest import front, protocol
from ingest.lane import LaneProtocol
from processors.settings import HttpSettings, SettingsError
from processors.tls import server_context
from tests.ingest.certificate import make_certificate, trusting
from tests.ingest.conftest import Raw
from tests.ingest.keyring import make_keys

if TYPE_CHECKING:
    from tests.ingest.conftest import Service, Start

pytestmark = pytest.mark.anyio

BODY = b'{"customer":"c","lines":[{"sku":"A","quantity":"1"}]}'
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def files(pair: tuple[Path, Path]) -> dict[str, str]:
    return {"ssl_certfile": str(pair[0]), "ssl_keyfile": str(pair[1])}


@pytest.fixture
async def service(start: Start, files: dict[str, str]) -> Service:
    return await start(**files)


async def connect(service: Service) -> Raw:
    """A connection with its handshake done."""
    raw = Raw(
        *await asyncio.open_connection(
            "localhost",
            service.port,
            family=socket.AF_INET,
            ssl=trusting(Path(service.settings.http.ssl_certfile)),
        )
    )
    service.raws.append(raw)
    return raw


def connections(service: Service) -> int:
    return len(service.server.server_state.connections)


# ---- the service behind it -----------------------------------------------------------------------


async def test_orders_take_the_lane_over_tls_and_known_heads_are_known(service: Service) -> None:
    raw = await connect(service)
    for _ in range(3):
        await raw.send(service.posting(BODY))
        assert (await raw.answer())[0] == 202
    (connection,) = service.server.server_state.connections
    assert isinstance(connection, LaneProtocol)
    assert connection.scheme == "https"
    assert len(service.server._memo.requests) == 1
    await raw.send(LIVEZ + service.posting(BODY, "/nothing") + service.posting(BODY))
    assert [(await raw.answer())[0] for _ in range(3)] == [200, 404, 202]
    assert service.ring.depth == 4


async def test_a_key_is_shown_over_tls(start: Start, files: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    token = make_keys(path, shop="submit")["shop"]
    service = await start(keys=str(path), **files)
    raw = await connect(service)
    for shown, status in ((token, 202), (token, 202), (token[:-1], 401)):
        await raw.send(service.posting(BODY, headers=f"Authorization: Bearer {shown}\r\n"))
        assert (await raw.answer())[0] == status


async def test_nothing_older_than_tls_1_2_is_spoken(service: Service) -> None:
    context = trusting(Path(service.settings.http.ssl_certfile))
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("localhost", service.port, ssl=context)
    assert await answers(service)


async def answers(service: Service) -> bool:
    raw = await connect(service)
    await raw.send(LIVEZ)
    return (await raw.answer())[0] == 200


@pytest.mark.parametrize(
    ("request_", "status"),
    [(b"nonsense\r\n\r\n", 400), (LIVEZ[:-2] + b"X: " + b"x" * 33_000 + b"\r\n\r\n", 431)],
)
async def test_what_is_refused_for_its_form_is_answered_and_then_closed(
    service: Service, request_: bytes, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS can't end one direction; the answer announces the close, which comes after a while."""
    monkeypatch.setattr("ingest.exchange.DROPPING_S_MAX", 0.05)
    raw = await connect(service)
    await raw.send(request_)
    code, headers, _ = await raw.answer()
    assert (code, headers["connection"]) == (status, "close")
    assert await raw.closed()


async def test_a_retiring_front_announces_the_close_over_tls(service: Service) -> None:
    raw = await connect(service)
    await raw.send(LIVEZ)
    assert "connection" not in (await raw.answer())[1]
    service.server.retire()
    await raw.send(service.posting(BODY))
    status, headers, _ = await raw.answer()
    assert (status, headers["connection"]) == (202, "close")
    assert await raw.closed()


async def test_a_client_that_hangs_up_takes_its_waiting_order_along(
    start: Start, files: dict[str, str]
) -> None:
    service = await start(capacity=1, **files)
    raw = await connect(service)
    await raw.send(service.posting(BODY) * 2)
    await service.parked(1)
    await raw.hang_up()
    await service.parked(0)
    assert service.ring.depth == 1


async def test_an_idle_connection_ends_and_one_whose_request_has_come_does_not(
    service: Service,
) -> None:
    raw = await connect(service)
    await service.until(lambda: connections(service))
    (connection,) = service.server.server_state.connections
    assert isinstance(connection, protocol.FrontProtocol)
    await raw.send(LIVEZ)  # on loopback it has come, and nobody read it yet
    connection.timeout_keep_alive_handler()
    assert (await raw.answer())[0] == 200
    connection.timeout_keep_alive_handler()
    assert await raw.closed()
    await service.until(lambda: not connections(service))


# ---- handshakes ----------------------------------------------------------------------------------


async def test_a_handshake_has_its_time_and_others_are_served_meanwhile(
    start: Start, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "HANDSHAKE_S_MAX", 0.3)
    service = await start(**files)
    silent = [await service.raw() for _ in range(3)]
    await service.until(lambda: len(service.server._connecting) == 3)
    await silent[1].send(b"\x16\x03")
    assert await answers(service)
    for raw in silent:
        assert await raw.closed()
    await service.until(lambda: not service.server._connecting)
    assert await answers(service)


async def test_what_is_no_tls_ends_at_once_and_is_no_event_of_the_log(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        for noise in (LIVEZ, bytes(100), b"\x16\x03\x01\x00\x05hello" * 20):
            raw = await service.raw()
            await raw.send(noise)
            await raw.rest()  # an alert of TLS may come
        hung_up = await service.raw()
        await hung_up.hang_up()
        await service.until(lambda: not service.server._connecting)
        assert await answers(service)
    assert caplog.text == ""


async def test_handshakes_count_as_connections(start: Start, files: dict[str, str]) -> None:
    service = await start(max_connections=2, **files)
    silent = [await service.raw() for _ in range(2)]
    await service.until(lambda: len(service.server._connecting) == 2)
    waits = asyncio.create_task(connect(service))
    await asyncio.sleep(0)
    assert len(service.server._connecting) == 2
    await silent[0].hang_up()
    raw = await waits
    await raw.send(LIVEZ)
    assert (await raw.answer())[0] == 200


async def test_a_drain_does_not_wait_for_handshakes(service: Service) -> None:
    silent = await service.raw()
    await service.until(lambda: service.server._connecting)
    service.server.drain()
    assert await silent.closed()
    await service.until(lambda: not service.server._connecting)


async def test_a_handshake_that_a_retiring_front_began_is_finished_and_answered(
    service: Service,
) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = trusting(Path(service.settings.http.ssl_certfile))
    shaking = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        shaking.do_handshake()
    raw = await service.raw()
    await raw.send(outgoing.read())
    await service.until(lambda: service.server._connecting)
    service.server.retire()
    while True:
        try:
            shaking.do_handshake()
            break
        except ssl.SSLWantReadError:
            incoming.write(await raw.reader.read(65536))
    shaking.write(service.posting(BODY))
    await raw.send(outgoing.read())
    answer = b""
    while b"\r\n\r\n" not in answer:
        try:
            answer += shaking.read(65536)
        except ssl.SSLWantReadError:
            incoming.write(await raw.reader.read(65536))
    assert answer.startswith(b"HTTP/1.1 202 ")
    assert b"connection: close" in answer


# ---- certificates --------------------------------------------------------------------------------


def refusal(certificate: Path | str, key: Path | str = "") -> str:
    with pytest.raises(SettingsError) as refused:
        server_context(HttpSettings(ssl_certfile=str(certificate), ssl_keyfile=str(key)))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_certificate_that_cannot_be_used_is_told_with_flag_and_file(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    certificate, key = pair
    _, other_key = make_certificate(tmp_path)
    (tmp_path / "empty").touch()
    assert refusal("/none") == "--ssl-certfile /none: No such file or directory"
    assert refusal(tmp_path).startswith(f"--ssl-certfile {tmp_path}: ")
    assert "no certificate with its key" in refusal(tmp_path / "empty")
    assert f"--ssl-keyfile {other_key}: KEY_VALUES_MISMATCH" in refusal(certificate, other_key)
    assert refusal(certificate).startswith(f"--ssl-certfile {certificate}: ")
    assert refusal(certificate, "/none").endswith("--ssl-keyfile /none: No such file or directory")
    assert server_context(HttpSettings()) is None
    both = tmp_path / "both.pem"
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    assert server_context(HttpSettings(ssl_certfile=str(both))) is not None


def test_an_encrypted_private_key_is_refused_and_nobody_is_asked(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    certificate, key = pair
    locked = tmp_path / "locked.key"
    lock = ["openssl", "pkey", "-in", str(key), "-aes256", "-passout", "pass:x"]
    subprocess.run([*lock, "-out", str(locked)], check=True, capture_output=True)
    assert "the key is encrypted" in refusal(certificate, locked)

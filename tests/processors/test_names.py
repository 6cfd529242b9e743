"""Host names that nobody answers for."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from processors import attempts
from processors.names import Loop, Names
from processors.webhooks import make_endpoint
from tests.partners import SECRET, partner, until
from tests.processors.kit import House, on_sqlite
from tests.processors.test_relay import (
    _quick,  # noqa: F401 - a fixture
    reject,
    relaying,
    told,
)

pytestmark = pytest.mark.anyio
HANGS, NONE = "hangs.example", "none.example"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": Loop}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names that were looked up; one hangs until the test is over."""
    names: list[str] = []
    over = threading.Event()
    real = socket.getaddrinfo

    def look(host: Any, *words: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        names.append(name)
        if name == HANGS:
            over.wait(60)
        if name in (HANGS, NONE):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *words)

    monkeypatch.setattr(socket, "getaddrinfo", look)
    yield names
    over.set()
    for thread in threading.enumerate():
        if thread.name == "names":
            thread.join()


async def test_all_who_ask_for_a_name_wait_for_one_look_up_and_others_for_none_of_it(
    asked: list[str],
) -> None:
    names = Names()
    hanging = [asyncio.create_task(names.find(HANGS, 1)) for _ in range(20)]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await names.find(HANGS, 1)
    found = await names.find("localhost", 80, 0, socket.SOCK_STREAM)
    assert {where[4][1] for where in found} == {80}
    assert asked == [HANGS, "localhost"]
    for task in hanging:
        task.cancel()


async def test_a_name_that_is_not_found_is_an_error_each_time_it_is_asked_for(
    asked: list[str],
) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(2):
        with pytest.raises(socket.gaierror, match="not known"):
            await loop.getaddrinfo(NONE, 80)
    with pytest.raises(UnicodeError):
        await loop.getaddrinfo("x" * 64 + ".example", 80)
    assert asked.count(NONE) == 2


@on_sqlite
async def test_a_name_that_hangs_keeps_no_other_endpoint_waiting(
    house: House, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "CONNECT_S", 0.2)
    async with partner() as good:
        wanted = [
            make_endpoint("hangs", f"http://{HANGS}/", [SECRET], "test"),
            make_endpoint("none", f"http://{NONE}/", [SECRET], "test"),
            make_endpoint("good", f"http://localhost:{good.port}/", [SECRET], "test"),
        ]
        async with relaying(house, *wanted):
            reject(house, 30)
            await until(lambda: len(good.heard) == 30)
            await until(lambda: {row[0] for row in told(house) if row[3]} >= {"hangs", "none"})
    assert asked.count(HANGS) == 1
    errors = dict(house.rows("SELECT endpoint, min(error) FROM deliveries GROUP BY endpoint"))
    assert errors["hangs"].startswith("no connection within 0.2 s")
    assert errors["none"] == "no connection: [Errno -2] Name or service not known"

"""`rasher load` against a front in this process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from ingest import load
from ingest.load import Plan, Sender, Tally, find_skus, main
from processors.schema import load_order, parse_uuid
from processors.settings import BARE

if TYPE_CHECKING:
    from tests.ingest.conftest import Service, Start

pytestmark = pytest.mark.anyio

SCRIPT = """
import sys
from ingest.load import main
from processors.settings import BARE
sys.exit(main(BARE, sys.argv[1:]))
"""


def plan(service: Service, **changes: Any) -> Plan:
    values: dict[str, Any] = {
        "url": f"http://127.0.0.1:{service.port}",
        "rate": 1000.0,
        "duration_s": 0.05,
        "connections": 4,
        "skus": ["A", "B"],
        "quantity": "1.5",
        "seed": 7,
    }
    return Plan(**{**values, **changes})


def read_ledger(path: Path) -> dict[str, int]:
    pairs = [line.split() for line in path.read_text().splitlines()]
    assert len({order_id for order_id, _ in pairs}) == len(pairs)
    return {order_id: int(status) for order_id, status in pairs}


async def send(one: Plan, ledger: Path) -> Tally:
    with ledger.open("w") as file:
        tally = Tally(file)
        async with aiohttp.ClientSession() as session:
            await Sender(one, session, tally).run()
    return tally


async def start_verb(service: Service, *args: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", SCRIPT, "--url", f"http://127.0.0.1:{service.port}", *args,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(load.__file__).parent.parent)},
    )  # fmt: skip


async def test_every_order_is_sent_once_and_stands_in_the_ledger(
    service: Service, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    tally = await send(plan(service), ledger)
    items = service.ring.snapshot().waiting
    assert {parse_uuid(order_id) for order_id in read_ledger(ledger)} == {i.key for i in items}
    assert tally.statuses == {202: 50}
    assert tally.latencies.count == 50
    orders = [load_order(item.payload) for item in items]
    assert {line.thousandths for order in orders for line in order.lines} == {1500}
    assert {line.sku for order in orders for line in order.lines} == {"A", "B"}


@pytest.mark.alone
async def test_latency_counts_from_the_intended_time(start: Start, tmp_path: Path) -> None:
    service = await start(capacity=1, full_timeout_s=0.2)
    # One connection, held 0.2 s by each order but the first: the last one leaves 0.6 s late.
    tally = await send(plan(service, duration_s=0.005, connections=1), tmp_path / "ledger")
    assert tally.statuses == {202: 1, 503: 4}
    assert tally.latencies.max_s > 0.7


async def test_orders_without_an_answer_stand_in_the_ledger_with_0(
    service: Service, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    service.server.drain()
    await service.until(lambda: service.server._listener.fileno() == -1)
    tally = await send(plan(service), ledger)
    assert Counter(read_ledger(ledger).values()) == {0: 50}
    assert (tally.errors, tally.accepted, tally.latencies.count) == (50, 0, 0)


async def test_the_skus_come_from_the_inventory(service: Service) -> None:
    for sku in "AB":
        body = f'{{"sku":"{sku}","quantity":"1","expires_at":"2099-01-01T00:00:00Z"}}'
        await service.post(body.encode(), "/lots")
    async with aiohttp.ClientSession() as session:
        assert await find_skus(session, f"http://127.0.0.1:{service.port}") == ["A", "B"]


async def test_ctrl_c_ends_it_with_every_sent_id_in_the_ledger(
    start: Start, tmp_path: Path
) -> None:
    service = await start(capacity=10)
    ledger = tmp_path / "ledger"
    process = await start_verb(
        service, "--skus", "A", "--rate", "1000", "--connections", "5", "--json",
        "--ledger", str(ledger),
    )  # fmt: skip
    # Ten are in, and each of the five connections waits with one more.
    await service.parked(5)
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert (process.returncode, err) == (load.INTERRUPTED, b"")
    assert Counter(read_ledger(ledger).values()) == {202: 10, 0: 5}
    report = json.loads(out)
    assert (report["sent"], report["accepted"], report["no_answer"]) == (15, 10, 5)
    await service.parked(0)


async def test_the_summary_is_text_unless_json_is_asked_for(service: Service) -> None:
    process = await start_verb(service, "--skus", "A", "--rate", "100", "--duration", "0.1")
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert b"accepted  10 " in out
    assert b"p99 " in out


async def test_a_server_without_lots_is_said(service: Service) -> None:
    process = await start_verb(service)
    out, err = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert b"--skus" in err


@pytest.mark.parametrize(
    "args",
    [
        ["--rate", "0"],
        ["--rate", "nan"],
        ["--connections", "0"],
        ["--quantity", "0"],
        ["--quantity", "1.2345"],
        ["--nonsense"],
    ],
)
def test_wrong_usage_is_2_and_names_the_flag(
    args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(BARE, args)
    assert ended.value.code == 2
    assert args[0] in capsys.readouterr().err

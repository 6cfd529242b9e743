"""`rasher load`: an open-loop sender of orders.

Each order has an intended time, one every 1/rate seconds, whatever the server does; its latency
counts from there, also when every connection was busy and it left late. So a stall of the server
shows in every order that it delayed, not only in those that were under way.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import IO, Any

import aiohttp
import msgspec
import uvloop
from msgspec import Struct
from rich.console import Console
from rich.live import Live

from ingest.caller import key_headers, service_url
from ingest.ids import OrderIds
from ingest.latency import Latencies
from processors.quantity import QuantityError, above_zero, thousandths_of_text
from processors.schema import format_uuid
from processors.settings import Settings

# Longer than a full ring keeps a client waiting; past it an order counts as not answered.
ANSWER_S_MAX = 60.0
# Shorter than the server keeps an idle connection, so that none is used as it closes.
IDLE_S_MAX = 3.0
SKUS_MAX = 1000
PROGRESS_S = 0.25
NO_ANSWER = 0
INTERRUPTED = 130


class Plan(Struct, frozen=True):
    """What to send. rate: orders a second."""

    url: str
    rate: float
    duration_s: float
    connections: int
    skus: list[str]
    quantity: str
    seed: int | None

    @property
    def orders(self) -> int:
        """How many orders in all."""
        return max(1, round(self.rate * self.duration_s))


class Tally:
    """What came of it so far. Every id sent goes to the ledger with its status, 0 = no answer."""

    def __init__(self, ledger: IO[str] | None) -> None:
        self._ledger = ledger
        self.started_s = time.monotonic()
        self.latencies = Latencies()
        self.statuses: Counter[int] = Counter()

    def note(self, order_id: str, status: int, latency_s: float | None) -> None:
        """One order is through."""
        self.statuses[status] += 1
        if latency_s is not None:
            self.latencies.add(latency_s)
        if self._ledger is not None:
            self._ledger.write(f"{order_id} {status}\n")

    @property
    def elapsed_s(self) -> float:
        """Since the first intended time."""
        return time.monotonic() - self.started_s

    @property
    def accepted(self) -> int:
        """Orders answered 2xx."""
        return sum(count for status, count in self.statuses.items() if 200 <= status < 300)

    @property
    def errors(self) -> int:
        """Orders refused or not answered."""
        return self.statuses.total() - self.accepted


class Sender:
    """Sends a plan's orders over `connections` connections, one order at a time on each."""

    def __init__(self, plan: Plan, session: aiohttp.ClientSession, tally: Tally) -> None:
        self._plan = plan
        self._session = session
        self._tally = tally
        self._order_ids = OrderIds()
        self._random = random.Random(plan.seed)
        self._numbers = iter(range(plan.orders))

    async def run(self) -> None:
        """Send them all; cancelled, what is under way is noted as not answered."""
        self._tally.started_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._plan.connections, self._plan.orders)):
                group.create_task(self._connection())

    async def _connection(self) -> None:
        # One shared iterator: whoever is free takes the next order, late or not.
        for number in self._numbers:
            intended_s = self._tally.started_s + number / self._plan.rate
            await sleep_until(intended_s)
            await self._send(intended_s)

    async def _send(self, intended_s: float) -> None:
        order_id = format_uuid(self._order_ids())
        status, latency_s = NO_ANSWER, None
        try:
            status = await self._post(order_id)
            latency_s = time.monotonic() - intended_s
        except (aiohttp.ClientError, TimeoutError, OSError):
            pass
        finally:
            self._tally.note(order_id, status, latency_s)

    async def _post(self, order_id: str) -> int:
        order = {
            "order_id": order_id,
            "customer": "rasher load",
            "lines": [
                {"sku": self._random.choice(self._plan.skus), "quantity": self._plan.quantity}
            ],
        }
        async with self._session.post(
            f"{self._plan.url}/orders",
            data=msgspec.json.encode(order),
            headers={"content-type": "application/json"},
        ) as answer:
            # What the status says holds, whether or not the rest of the answer arrives.
            return answer.status


async def sleep_until(moment_s: float) -> None:
    """Until that time of the monotonic clock; never early, as uvloop's timers may be."""
    while (wait_s := moment_s - time.monotonic()) > 0:  # noqa: ASYNC110 - it is a time
        await asyncio.sleep(wait_s)


def main(settings: Settings, args: list[str]) -> int:
    """The verb: 0, 1 when no order was accepted, 2 for wrong usage, 130 after Ctrl-C."""
    options = _parser(settings).parse_args(args)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_load(options))


async def _load(options: argparse.Namespace) -> int:
    url: str = options.url.rstrip("/")
    connector = aiohttp.TCPConnector(limit=options.connections, keepalive_timeout=IDLE_S_MAX)
    timeout = aiohttp.ClientTimeout(total=ANSWER_S_MAX)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=key_headers()
    ) as session:
        try:
            skus = options.skus.split(",") if options.skus else await find_skus(session, url)
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.MsgspecError) as error:
            return _fail(f"{url}/inventory can't be read: {error} (--url, RASHER_TOKEN)")
        if not skus:
            return _fail(f"{url} has no lots: enter some, or name skus (--skus)")
        plan = Plan(
            url, options.rate, options.duration, options.connections,
            skus, options.quantity, options.seed,
        )  # fmt: skip
        with _open_ledger(options.ledger) as ledger:
            tally = Tally(ledger)
            finished = await _run(Sender(plan, session, tally), tally, plan)
    report = summarize(plan, tally)
    sys.stdout.write(_as_json(report) if options.json else _as_text(report))
    if not finished:
        return INTERRUPTED
    return 0 if tally.accepted else 1


async def _run(sender: Sender, tally: Tally, plan: Plan) -> bool:
    """Whether it came to its end, and not to a Ctrl-C."""
    sending = asyncio.create_task(sender.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, sending.cancel)
    showing = asyncio.create_task(_show(tally, plan)) if sys.stderr.isatty() else None
    try:
        await asyncio.wait({sending})
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        if showing is not None:
            showing.cancel()
            await asyncio.wait({showing})
    if sending.cancelled():
        return False
    sending.result()
    return True


async def find_skus(session: aiohttp.ClientSession, url: str) -> list[str]:
    """The first SKUS_MAX skus that the server has lots of."""
    async with session.get(f"{url}/inventory?limit={SKUS_MAX}") as answer:
        answer.raise_for_status()
        content: Any = msgspec.json.decode(await answer.read())
    return [item["sku"] for item in content["items"]]


def summarize(plan: Plan, tally: Tally) -> dict[str, Any]:
    """The final figures; latencies in milliseconds."""
    elapsed_s = tally.elapsed_s
    percentiles = {
        f"p{percent:g}_ms": round(tally.latencies.percentile_s(percent) * 1000, 3)
        for percent in (50, 90, 99, 99.9)
    }
    return {
        "sent": tally.statuses.total(),
        "accepted": tally.accepted,
        "no_answer": tally.statuses[NO_ANSWER],
        "statuses": {str(k): v for k, v in sorted(tally.statuses.items()) if k != NO_ANSWER},
        "seconds": round(elapsed_s, 3),
        "rate_asked": plan.rate,
        "rate_accepted": round(tally.accepted / elapsed_s, 1),
        "latency": {**percentiles, "max_ms": round(tally.latencies.max_s * 1000, 3)},
    }


async def _show(tally: Tally, plan: Plan) -> None:
    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        while True:
            live.update(_progress(tally, plan), refresh=True)
            await asyncio.sleep(PROGRESS_S)


def _progress(tally: Tally, plan: Plan) -> str:
    sent = tally.statuses.total()
    p50, p99 = (tally.latencies.percentile_s(percent) * 1000 for percent in (50, 99))
    return (
        f"{sent:,} of {plan.orders:,} orders, {sent / max(tally.elapsed_s, 1e-3):,.0f}/s of"
        f" {plan.rate:,g}/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms, errors {tally.errors:,}"
    )


def _as_text(report: dict[str, Any]) -> str:
    statuses = "".join(f", {count:,} x {status}" for status, count in report["statuses"].items())
    latency = ", ".join(
        f"{name.removesuffix('_ms')} {value:g}" for name, value in report["latency"].items()
    )
    return (
        f"sent      {report['sent']:,} orders in {report['seconds']:g} s"
        f" ({report['rate_asked']:g}/s asked)\n"
        f"accepted  {report['accepted']:,} ({report['rate_accepted']:,}/s)\n"
        f"answers   {report['no_answer']:,} without{statuses}\n"
        f"latency   from the intended time, in ms: {latency}\n"
    )


def _as_json(report: dict[str, Any]) -> str:
    return msgspec.json.encode(report).decode() + "\n"


def _open_ledger(path: str | None) -> contextlib.AbstractContextManager[IO[str] | None]:
    if path is None:
        return contextlib.nullcontext()
    return Path(path).open("w", encoding="ascii")


def _fail(message: str) -> int:
    sys.stderr.write(f"rasher load: {message}\n")
    return 1


def _parser(settings: Settings) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("rasher load", description="Send orders at a steady rate.")
    add = parser.add_argument
    add("--url", default=service_url(settings), help="the server (default %(default)s)")
    add("--rate", type=_number(0.01, 1e6), default=100.0, help="orders a second (default 100)")
    add("--duration", type=_number(0.01, 1e6), default=10.0, help="seconds (default 10)")
    add("--connections", type=_whole(1, 10_000), default=64, help="most at once (default 64)")
    add("--ledger", metavar="FILE", help="write each order id and its status, 0 = no answer")
    add("--skus", help="comma-separated (default: those that GET /inventory shows)")
    add("--quantity", type=_quantity, default="1", help="of each order (default 1)")
    add("--seed", type=int, help="makes the choice of skus repeatable")
    add("--json", action="store_true", help="the summary as JSON")
    return parser


def _number(low: float, high: float) -> Any:
    def read(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text}: must be from {low:g} to {high:g}")
        return value

    return read


def _whole(low: int, high: int) -> Any:
    def read(text: str) -> int:
        if not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text}: must be from {low} to {high}")
        return int(text)

    return read


def _quantity(text: str) -> str:
    try:
        above_zero(thousandths_of_text(text))
    except QuantityError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.detail}") from None
    return text

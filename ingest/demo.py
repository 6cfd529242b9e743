"""`rasher demo`: a flash sale to watch, on a service of its own that is gone afterwards.

    lots entered, partners listening, the service started
    a quiet shop            a few customers
    doors open              all of them at once: the ring fills, clients wait, stock runs out
    a worker is killed      in the middle of it
    a quiet shop again      what waited is worked off, partners are told
    stopped, and audited    the exit code is the audit's

Every part of it ends by itself: the sale after `--seconds`, what waits for partners and processes
after the limits below.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import io
import os
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import IO, Any

import aiohttp
import msgspec
import sqlalchemy as sa
import uvloop
from msgspec import Struct

from ingest.counters import figures
from ingest.demo_partners import Partner, all_listening, partners
from ingest.demo_shop import ANSWER_S_MAX, Customers, Shop, ShopClosed, open_shop
from ingest.demo_view import Sample, View, draw, view
from ingest.load import IDLE_S_MAX
from processors import audit
from processors.datadir import attach_rings, read_link
from processors.lots import enter_file
from processors.premises import MEMORY, file_system
from processors.settings import Settings
from processors.store import Store, StoreUnavailable
from processors.tables import lots
from ringbuf import Ring

EVERY_S = 1.0
LOOK_S = 0.1
SKUS = 20
KILOGRAMS_PER_LOT = 3
QUIET_CUSTOMERS = 20
# Of the sale's time.
DOORS_OPEN, KILL, DOORS_CLOSE = 0.15, 0.5, 0.75
DRAIN_S_MAX = 15.0
DELIVER_S_MAX = 20.0
CUSTOMERS_MAX = 2000
PROCESSOR = "processors.thoughtful:processor"
# Survives a reboot, so it is not in memory, where a journal would make no sense.
PLACE = "/var/tmp"  # noqa: S108
EXIT_USAGE = 2
EXIT_CANNOT_START = 3
INTERRUPTED = 130


class Options(Struct, frozen=True):
    """`plot`: where the PNG goes, if anywhere."""

    seconds: float
    customers: int
    lots: int
    plot: Path | None


class Sale:
    """The sale as it goes."""

    def __init__(
        self, options: Options, *, shop: Shop, ring: Ring, store: Store, customers: Customers,
        invited: Sequence[Partner], stage: View,
    ) -> None:  # fmt: skip
        self.options = options
        self.shop = shop
        self.ring = ring
        self.store = store
        self.customers = customers
        self.invited = invited
        self.stage = stage
        self.samples: list[Sample] = []
        self.marks: list[tuple[float, str]] = []
        self._begun = time.monotonic()
        self._counts = self._look()
        self._looked = self._begun
        self._crowd = min(QUIET_CUSTOMERS, options.customers)

    @property
    def at_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._begun

    async def run(self) -> None:
        """From the first customer until every partner that is well was told. Raises ShopClosed."""
        async with asyncio.TaskGroup() as group:
            showing = group.create_task(self._show())
            group.create_task(self._direct())
            for number in range(self.options.customers):
                group.create_task(
                    self.customers.come(number, lambda: self._crowd, lambda: self._over)
                )
            await self._until_told()
            showing.cancel()
        await self._show_once()

    @property
    def _over(self) -> bool:
        return self.at_s >= self.options.seconds

    async def _direct(self) -> None:
        """Who comes when."""
        seconds = self.options.seconds
        await asyncio.sleep(seconds * DOORS_OPEN)
        self._mark("doors open", f"doors open, {self.options.customers:,} customers want in")
        self._crowd = self.options.customers
        await asyncio.sleep(seconds * (KILL - DOORS_OPEN))
        self._kill_worker()
        await asyncio.sleep(seconds * (DOORS_CLOSE - KILL))
        self._mark("quiet again", "the rush is over")
        self._crowd = min(QUIET_CUSTOMERS, self.options.customers)

    def _kill_worker(self) -> None:
        for one in self.ring.participants():
            if one.role == "reader" and one.alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one.pid, signal.SIGKILL)
                self._mark("a worker killed", f"worker {one.index}, pid {one.pid}, is killed")
                return

    def _mark(self, label: str, text: str) -> None:
        self.marks.append((self.at_s, label))
        self.stage.say(text)

    async def _until_told(self) -> None:
        """First the sale's time, then what is left of it."""
        await asyncio.sleep(self.options.seconds)
        await _until(self._drained, DRAIN_S_MAX)
        await _until(self._told, DELIVER_S_MAX)

    async def _drained(self) -> bool:
        held = any(self.ring.held_count(index) for index in range(self.ring.readers))
        return not (held or self.ring.depth or self._look()["parked"])

    async def _told(self) -> bool:
        """The one that is well; the others may take their time, or for ever."""
        return not self.invited or self.invited[0].delivered >= await self._events()

    async def _events(self) -> int:
        return await asyncio.to_thread(count_events, self.store)

    def _look(self) -> dict[str, Any]:
        return figures(self.ring)

    async def _show(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            if self.shop.ended:
                raise ShopClosed(self.shop.why("it ended by itself"))
            await self._show_once()

    async def _show_once(self) -> None:
        with contextlib.suppress(StoreUnavailable):
            self.samples.append(await self._sample())
            self.stage.show(self.samples[-1])

    async def _sample(self) -> Sample:
        left = await asyncio.to_thread(stock_left, self.store)
        wanted = await self._events() if self.invited else 0
        now, counts, before = time.monotonic(), self._look(), self._counts
        elapsed_s, self._looked, self._counts = now - self._looked, now, counts
        latencies, self.customers.latencies_s = sorted(self.customers.latencies_s), []
        done, done_before = (sum(one["completed"].values()) for one in (counts, before))
        return Sample(
            at_s=self.at_s,
            accepted_per_s=(counts["accepted"] - before["accepted"]) / elapsed_s,
            done_per_s=(done - done_before) / elapsed_s,
            depth=counts["depth"], capacity=counts["capacity"], waiting=counts["parked"],
            p50_ms=_percentile_ms(latencies, 0.5), p99_ms=_percentile_ms(latencies, 0.99),
            stock=sum(left), stock_of=self.options.lots * KILOGRAMS_PER_LOT,
            sold_out=left.count(0), skus=len(left), wanted=wanted,
            delivered={one.name: one.delivered for one in self.invited},
        )  # fmt: skip


def main(settings: Settings, args: Sequence[str]) -> int:
    """The verb: the audit's exit code, or 2 for wrong usage, 3 when the service does not start or
    ends by itself, 130 when it was interrupted."""
    options = _read(args)
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        return _fail("--plot needs matplotlib: pip install matplotlib", EXIT_USAGE)
    with tempfile.TemporaryDirectory(prefix="rasher-demo-", dir=_place()) as folder:
        own = _own(settings, Path(folder))
        ledger = Path(folder) / "ledger"
        try:
            with ledger.open("w", encoding="ascii") as file:
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    sale = runner.run(_interruptible(options, own, file))
        except asyncio.CancelledError:
            return _fail("interrupted", INTERRUPTED)
        except ShopClosed as error:
            return _fail(str(error), EXIT_CANNOT_START)
        if options.plot:
            draw(sale.samples, sale.marks, options.plot)
        return audit.main(own, ["--ledger", str(ledger)])


async def _interruptible(options: Options, settings: Settings, ledger: IO[str]) -> Sale:
    """As a task that Ctrl-C and TERM cancel, so that the service is stopped in any case."""
    task = asyncio.create_task(_hold_sale(options, settings, ledger))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except BaseExceptionGroup as group:
        closed = group.subgroup(ShopClosed)
        raise (closed or group).exceptions[0] from None
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def _hold_sale(options: Options, settings: Settings, ledger: IO[str]) -> Sale:
    enter_lots(settings, options.lots)
    invited = partners()
    config = Path(settings.data_dir).parent / "rasher.toml"
    timeout = aiohttp.ClientTimeout(total=ANSWER_S_MAX)
    connector = aiohttp.TCPConnector(limit=options.customers, keepalive_timeout=IDLE_S_MAX)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(all_listening(invited))
        config.write_text("".join(one.as_toml() for one in invited), encoding="utf-8")
        stack.callback(remove_rings, settings)
        shop = await stack.enter_async_context(open_shop(settings, str(config), PROCESSOR))
        (ring,) = attach_rings(settings)
        stack.enter_context(ring)
        store = Store.open(settings.database, connections_max=2)
        stack.callback(store.close)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=timeout, connector=connector)
        )
        stage = stack.enter_context(view([one.name for one in invited]))
        stage.say(
            f"{options.lots:,} lots of {SKUS} skus, {KILOGRAMS_PER_LOT} kg each; ring of "
            f"{settings.ring.capacity}, workers {settings.work.workers}, an order takes 2 ms"
        )
        customers = Customers(shop, session, sku_names(), ledger)
        sale = Sale(
            options, shop=shop, ring=ring, store=store, customers=customers, invited=invited,
            stage=stage,
        )  # fmt: skip
        await sale.run()
        for line in summary(sale):
            stage.say(line)
    return sale


def summary(sale: Sale) -> list[str]:
    """What customers and partners had of it."""
    statuses, last = sale.customers.statuses, sale.samples[-1]
    refused = "".join(
        f", {n:,} x {one or 'no answer'}" for one, n in statuses.items() if one != 202
    )
    lines = [
        f"{statuses.get(202, 0):,} orders answered 202{refused}",
        f"the longest wait for an answer {sale.customers.longest_s:.1f} s",
        f"{last.stock_of - last.stock:,} of {last.stock_of:,} kg sold, "
        f"{last.sold_out} of {last.skus} skus sold out",
    ]
    lines += [
        f"{one.name} partner: {one.delivered:,} of {last.wanted:,} events delivered"
        + (f", {one.forged:,} with a wrong signature" if one.forged else "")
        for one in sale.invited
    ]
    return lines


def sku_names() -> list[str]:
    return [f"CUT-{number:02}" for number in range(1, SKUS + 1)]


def enter_lots(settings: Settings, count: int) -> None:
    """Evenly over the skus, each with another expiry."""
    names, now = sku_names(), time.time()
    lines = [
        msgspec.json.encode({
            "lot_id": f"LOT-{number:06}",
            "sku": names[number % SKUS],
            "quantity": str(KILOGRAMS_PER_LOT),
            "expires_at": time.strftime(
                "%Y-%m-%dT%H:%M:%SZ", time.gmtime(now + 86_400 + 60 * (number * 7919 % count))
            ),
        })
        for number in range(count)
    ]  # fmt: skip
    text = b"\n".join(lines)
    enter_file(settings.database, io.BytesIO(text), len(text))


def remove_rings(settings: Settings) -> None:
    """What a service leaves that could not drain in time: nobody will come for it."""
    for path in read_link(settings):
        path.unlink(missing_ok=True)


def stock_left(store: Store) -> list[int]:
    """Whole kilograms, sku by sku. Raises StoreUnavailable."""
    query = sa.select(sa.func.sum(lots.c.available)).group_by(lots.c.sku_id)
    with store.reading() as connection:
        return [int(left) // 1000 for (left,) in connection.execute(query)]


def count_events(store: Store) -> int:
    """Outcomes that partners are to be told of. Raises StoreUnavailable."""
    with store.reading() as connection:
        return connection.scalar(sa.text("SELECT count(*) FROM outbox")) or 0


async def _until(true: Callable[[], Awaitable[bool]], seconds: float) -> None:
    """Waits for that, and after so long goes on without."""
    deadline = time.monotonic() + seconds
    with contextlib.suppress(StoreUnavailable):
        while not await true() and time.monotonic() < deadline:  # noqa: ASYNC110 - of other processes
            await asyncio.sleep(LOOK_S)


def _percentile_ms(ordered_s: Sequence[float], share: float) -> float:
    return ordered_s[int(share * (len(ordered_s) - 1))] * 1000 if ordered_s else 0.0


def _own(settings: Settings, folder: Path) -> Settings:
    """Of the settings given only what is of interest here; all else as it comes."""
    plain = Settings(data_dir=str(folder / "var"), database=f"sqlite:///{folder}/var/rasher.db")
    change: Any = msgspec.structs.replace
    return Settings(
        data_dir=plain.data_dir,
        database=plain.database,
        durability="memory" if file_system(folder) in MEMORY else settings.durability,
        ring=change(plain.ring, ring_dir=settings.ring.ring_dir, capacity=settings.ring.capacity),
        http=change(plain.http, fronts=settings.http.fronts),
        work=change(plain.work, workers=settings.work.workers),
    )


def _place() -> str | None:
    """$TMPDIR, else a directory on a disk, else what there is."""
    if "TMPDIR" not in os.environ and os.access(PLACE, os.W_OK):
        return PLACE
    return None


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"rasher demo: {message}\n")
    return code


def _read(args: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser("rasher demo", description="A flash sale to watch.")
    add = parser.add_argument
    add("--seconds", type=_within(1, 120), default=24.0, help="of the sale, 1 to 120 (default 24)")
    add("--customers", type=_within(1, CUSTOMERS_MAX), default=600.0,
        help=f"at the rush, 1 to {CUSTOMERS_MAX:,} (default 600)")  # fmt: skip
    add("--lots", type=_within(SKUS, 100_000), default=2000.0,
        help=f"{SKUS} to 100,000 (default 2,000)")  # fmt: skip
    add("--plot", type=Path, metavar="FILE", help="a PNG of it (needs matplotlib)")
    found = parser.parse_args(args)
    return Options(found.seconds, int(found.customers), int(found.lots), found.plot)


def _within(low: float, high: float) -> Any:
    def read(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text}: must be from {low:,g} to {high:,g}")
        return value

    return read

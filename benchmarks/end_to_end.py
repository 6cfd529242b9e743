"""How many orders a second are committed, posted over HTTP on this machine alone?

Rasher against the two ways that it was built instead of: a service that commits before it answers,
and one that hands orders to RabbitMQ (durable queue, persistent messages, publisher confirms) for a
consumer to commit in batches. All have the same tables, schema, allocation and SQLite with
synchronous=FULL, and one wrk that posts one-line orders as fast as it is answered, on the same
cores. Counted are the rows committed, from the first request to the last commit, so what lies in a
queue when the posting ends is waited for, and must be there.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import msgspec
from msgspec import Struct

from benchmarks import stock
from benchmarks.broker import Broker, broker_version, missing_broker
from benchmarks.measure import (
    Figures,
    Options,
    Side,
    cpu_s,
    find_program,
    machine,
    missing_package,
    missing_program,
    parse_options,
)
from benchmarks.report import Bench
from benchmarks.servers import Server, free_port, listens, python

POSTING_S, QUICK_POSTING_S = 10, 1
WARM_UP_S = 1
CONNECTIONS, MANY_CONNECTIONS = 64, 1024
PREFETCHES = (128, 1024)
DRAIN_S_MAX = 300.0
QUIET_S = 0.3
SCRIPT = Path(__file__).with_name("wrk.lua")
MAIN, MANY = f"{CONNECTIONS} connections", f"{MANY_CONNECTIONS} connections"
RATE = "committed_per_s"


class Posted(Struct, frozen=True):
    """What wrk says. refused: answered with something else than 2xx or 3xx."""

    requests: int
    seconds: float
    refused: int
    broken: int
    p50_ms: float
    p99_ms: float


class Service(Struct, frozen=True):
    """`pids`: the roots of its processes."""

    port: int
    pids: list[int]


Start = Callable[[Path], AbstractContextManager[Service]]


@contextmanager
def rasher(folder: Path) -> Iterator[Service]:
    """As it comes: one front, one worker, capacity 100."""
    ring_dir = Path(tempfile.mkdtemp(prefix="rasher-bench-", dir="/dev/shm"))
    port = free_port()
    words = ["--data-dir", str(folder), "--ring-dir", str(ring_dir), "--port", str(port)]
    server = Server([*python("supervisor"), *words, "--workers", "1"], folder / "rasher.log")
    try:
        server.wait_for(lambda: server.says("ready on "))
        yield Service(port, [server.pid])
    finally:
        server.end()
        shutil.rmtree(ring_dir)


@contextmanager
def synchronous(folder: Path) -> Iterator[Service]:
    """One process; the database has one writer, and a second one would only wait for it."""
    port = free_port()
    words = ["synchronous", str(folder / "rasher.db"), str(port)]
    server = Server(python("benchmarks.services", *words), folder / "synchronous.log")
    try:
        server.wait_for(lambda: listens(port))
        yield Service(port, [server.pid])
    finally:
        server.end()


@contextmanager
def rabbitmq(folder: Path, unconfirmed: int, prefetch: int) -> Iterator[Service]:
    """A private node, one publisher, one consumer."""
    port = free_port()
    with ExitStack() as stack:
        broker = Broker(folder)
        stack.callback(broker.end)
        amqp = str(broker.port)
        words = ["publisher", amqp, str(unconfirmed), str(port)]
        publisher = Server(python("benchmarks.services", *words), folder / "publisher.log")
        stack.callback(publisher.end)
        words = ["consumer", amqp, str(prefetch), str(folder / "rasher.db")]
        consumer = Server(python("benchmarks.services", *words), folder / "consumer.log")
        stack.callback(consumer.end)
        publisher.wait_for(lambda: listens(port))
        yield Service(port, [*broker.pids, publisher.pid, consumer.pid])


def run_side(options: Options, start: Start, connections: int) -> Figures:
    """One round: a new database, a new service, a warm-up, then what counts."""
    posting_s = QUICK_POSTING_S if options.quick else POSTING_S
    folder = Path(tempfile.mkdtemp(prefix="end-to-end-", dir=options.folder))
    try:
        file = stock.make_database(folder)
        with start(folder) as service:
            post(service, WARM_UP_S, connections)
            wait_quiet(file, 0)
            began_s, began_cpu_s, earlier = time.time(), cpu_s(*service.pids), count(file)
            posted = post(service, posting_s, connections)
            committed = wait_quiet(file, earlier + posted.requests - posted.refused) - earlier
            used_s = cpu_s(*service.pids) - began_cpu_s
            ended_s = last_commit_s(file)
        stock.check_settled(file, earlier + committed)
    finally:
        shutil.rmtree(folder)
    if posted.refused or posted.broken:
        raise stock.NotDone(f"{posted.refused} requests refused, {posted.broken} without an answer")
    return {
        RATE: committed / (ended_s - began_s),
        "cpu_per_order_us": used_s / committed * 1e6,
        "answer_p50_ms": posted.p50_ms,
        "answer_p99_ms": posted.p99_ms,
    }


def post(service: Service, seconds: int, connections: int) -> Posted:
    """wrk, one thread, each connection as fast as it is answered."""
    url = f"http://127.0.0.1:{service.port}"
    command = [str(find_program("wrk")), "-t1", f"-c{connections}", f"-d{seconds}s"]
    done = subprocess.run(
        [*command, "--timeout", "30s", "-s", str(SCRIPT), url],
        capture_output=True, text=True, check=True, timeout=seconds + 60,
    )  # fmt: skip
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Posted)


def wait_quiet(file: Path, wanted: int) -> int:
    """Until so many orders are committed and no more come; how many. Raises NotDone.

    wrk hangs up on what is under way when its time is over; such orders are committed, too.
    """
    deadline = time.monotonic() + DRAIN_S_MAX
    seen, before = count(file), -1
    while seen < wanted or seen != before:
        if time.monotonic() > deadline:
            raise stock.NotDone(f"{seen} of {wanted} answered orders committed in {DRAIN_S_MAX} s")
        time.sleep(QUIET_S)
        seen, before = count(file), seen
    return seen


def count(file: Path) -> int:
    """Orders committed."""
    return int(ask(file, "SELECT count(*) FROM orders"))


def last_commit_s(file: Path) -> float:
    """When the last order was committed, in seconds since 1970."""
    return ask(file, "SELECT max(committed_us) FROM orders") / 1e6


def ask(file: Path, query: str) -> float:
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10)) as database:
        return float(database.execute(query).fetchone()[0])


def sides(options: Options, connections: int, windows: tuple[int, ...]) -> list[Side]:
    """Rasher, synchronous, and RabbitMQ with each window and prefetch."""
    wrk = missing_program("wrk", "wrk")
    broker = wrk or missing_broker() or missing_package("aio_pika", "aio-pika")
    found = [
        Side("Rasher", partial(run_side, options, rasher, connections), wrk),
        Side("synchronous", partial(run_side, options, synchronous, connections), wrk),
    ]
    for window in windows:
        for prefetch in PREFETCHES[-1:] if options.quick else PREFETCHES:
            start = partial(rabbitmq, unconfirmed=window, prefetch=prefetch)
            name = f"RabbitMQ, {window:,} unconfirmed, prefetch {prefetch:,}"
            found.append(Side(name, partial(run_side, options, start, connections), broker))
    return found


def best_of(bench: Bench, table: str, found: list[Side]) -> str:
    """The RabbitMQ that did best."""
    rates = {
        side.name: spread.median
        for side in found
        if side.name.startswith("RabbitMQ") and (spread := bench.spread(table, RATE, side.name))
    }
    return max(rates, key=lambda name: rates[name], default="RabbitMQ")


def run_table(bench: Bench, table: str, connections: int, windows: tuple[int, ...]) -> None:
    """One load on all sides."""
    if not bench.wants(table):
        return
    found = sides(bench.options, connections, windows)
    bench.run(table, found)
    bench.compare(table, RATE, "Rasher", "synchronous", at_least=5)
    bench.compare(table, RATE, "Rasher", best_of(bench, table, found), at_least=3)
    bench.bars(table, RATE)


def run(options: Options) -> int:
    """All of it; the exit code of the benchmark."""
    options.folder.mkdir(parents=True, exist_ok=True)
    host = machine(
        ["uvicorn", "starlette", "aio-pika", "sqlalchemy"],
        [["wrk", "-v"]],
    )
    host.versions["rabbitmq-server"] = broker_version()
    bench = Bench("end_to_end", __doc__, options, host)
    run_table(bench, MAIN, CONNECTIONS, (64,) if options.quick else (1, 64))
    run_table(bench, MANY, MANY_CONNECTIONS, (1000,) if options.quick else (64, 1000))
    return bench.finish()


if __name__ == "__main__":
    sys.exit(run(parse_options(__doc__)))

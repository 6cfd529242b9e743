"""How long does a client wait for the outcome itself, when nothing else is going on?

One client on one connection, one order after the other. Rasher is asked with `Prefer: wait`, so the
order goes through ring, journal (its sync), worker and database (its sync), and the outcome comes
back by the same request. The other side is the service that commits before it answers: the same
tables, schema, allocation and SQLite with synchronous=FULL, one sync. An answer without the outcome
fails the round.
"""

from __future__ import annotations

import http.client
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path

from benchmarks import stock
from benchmarks.end_to_end import Service, rasher, synchronous
from benchmarks.measure import Figures, Options, Side, SideFailed, machine, parse_options
from benchmarks.report import Bench

QUIET = "one client"
ORDERS, QUICK_ORDERS, WARM_UP = 1000, 50, 50
TIMEOUT_S = 30
HEADERS = {"Content-Type": "application/json", "Prefer": "wait=10"}
RASHER, SYNCHRONOUS = "Rasher", "synchronous"


def run_side(
    options: Options, start: Callable[[Path], AbstractContextManager[Service]], status: int
) -> Figures:
    """One round: a new database, a new service, a warm-up, then what counts."""
    folder = Path(tempfile.mkdtemp(prefix="waiting-", dir=options.folder))
    try:
        stock.make_database(folder)
        with start(folder) as service:
            order(service, WARM_UP, status)
            took_s = order(service, QUICK_ORDERS if options.quick else ORDERS, status)
    finally:
        shutil.rmtree(folder)
    cuts = statistics.quantiles(took_s, n=100)
    return {"p50_ms": cuts[49] * 1e3, "p99_ms": cuts[98] * 1e3}


def order(service: Service, count: int, status: int) -> list[float]:
    """Posts one after the other -> seconds from the request to the outcome, of each."""
    body = json.dumps({"customer": "waiting", "lines": [{"sku": stock.SKUS[0], "quantity": "1"}]})
    took_s = []
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=TIMEOUT_S)
    with closing(connection):
        for _ in range(count):
            begun_s = time.perf_counter()
            connection.request("POST", "/orders", body, HEADERS)
            answer = connection.getresponse()
            said = answer.read()
            took_s.append(time.perf_counter() - begun_s)
            if answer.status != status:
                raise SideFailed(f"{answer.status} {said[:200]!r}")
    return took_s


def run(options: Options) -> int:
    """All of it; the exit code of the benchmark."""
    options.folder.mkdir(parents=True, exist_ok=True)
    bench = Bench("waiting", __doc__, options, machine(["uvicorn", "starlette", "sqlalchemy"], []))
    if bench.wants(QUIET):
        sides = [
            Side(RASHER, partial(run_side, options, rasher, 200)),
            Side(SYNCHRONOUS, partial(run_side, options, synchronous, 201)),
        ]
        bench.run(QUIET, sides)
        bench.compare(QUIET, "p50_ms", RASHER, SYNCHRONOUS, at_most=3)
        bench.compare(QUIET, "p99_ms", RASHER, SYNCHRONOUS)
        bench.bars(QUIET, "p50_ms")
    return bench.finish()


if __name__ == "__main__":
    sys.exit(run(parse_options(__doc__)))

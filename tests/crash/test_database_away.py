"""PostgreSQL goes away under load, in each way it can: what was answered is there, exactly once,
and work goes on by itself."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.test_real_run import begin_load, write_lots
from tests.postgres import Postgres
from tests.program import PATIENCE_S, Rasher, Start, call, verb
from tests.proxy import Proxy

RATE = 200
RESUMED_S_MAX = 5.0
# How long a worker waits for an answer that never comes; what it is at when the answers are back.
SILENT_S_MAX = 10.0

Fault = Callable[[Postgres, Proxy, float], None]


def stopped(server: Postgres, proxy: Proxy, away_s: float) -> None:
    server.stop()
    time.sleep(away_s)
    server.start()


def killed(server: Postgres, proxy: Proxy, away_s: float) -> None:
    server.kill()
    time.sleep(away_s)
    server.start()


def cut(server: Postgres, proxy: Proxy, away_s: float) -> None:
    swallow(proxy, "cut", away_s)


def silent(server: Postgres, proxy: Proxy, away_s: float) -> None:
    swallow(proxy, "silent", away_s)


def swallow(proxy: Proxy, how: str, away_s: float) -> None:
    proxy.fault = "cut" if how == "cut" else "silent"
    time.sleep(away_s)
    proxy.fault = None
    assert proxy.swallowed, "no COMMIT came by"


def away(
    rasher: Start, server: Postgres, folder: Path, fault: Fault, away_s: float
) -> tuple[float, str]:
    """-> seconds until work went on, and what the audit said."""
    proxy = Proxy(server.port)
    try:
        flags = ("--database", server.url(server.database(), port=proxy.port))
        orders = int(RATE * (away_s + 3))
        run = rasher("--workers", "2", "--capacity", str(2 * orders), *flags).ready()
        lots, ledger = folder / "lots.ndjson", folder / "ledger.txt"
        write_lots(lots, orders)
        entered = verb(run, "lots", "add", "--file", str(lots), *flags)
        assert entered.returncode == 0, entered
        load = begin_load(run, ledger, orders, RATE)
        resumed_s = goes_on_after(run, lambda: fault(server, proxy, away_s))
        said = load.communicate(timeout=PATIENCE_S + 2 * orders / RATE)[0]
        assert load.returncode == 0, said
        assert run.end(signal.SIGTERM) == 0
        audit = verb(run, "audit", "--ledger", str(ledger), *flags)
    finally:
        proxy.close()
    assert audit.returncode == 0, audit.stdout
    assert audit.stdout.startswith("audit: ok"), audit.stdout
    # Every order has its own id, so it is refused while it can't be compared.
    told = re.findall(r"([\d,]+) ledger: (?:answered|refused with 503)", audit.stdout)
    assert sum(int(number.replace(",", "")) for number in told) == orders, audit.stdout
    return resumed_s, audit.stdout


def goes_on_after(run: Rasher, fault: Callable[[], None]) -> float:
    """-> seconds from its end to the next commit."""
    with run.ring() as ring:
        run.until(lambda: ring.commits > 5, "some batches committed")
        fault()
        back, seen = time.monotonic(), ring.commits
        run.until(lambda: ring.commits > seen, "work going on")
        return time.monotonic() - back


def test_a_server_that_is_killed_loses_nothing_and_doubles_nothing(
    rasher: Start, own_postgres: Postgres, tmp_path: Path
) -> None:
    resumed_s, _ = away(rasher, own_postgres, tmp_path, killed, 0.3)
    assert resumed_s < RESUMED_S_MAX


@pytest.mark.prove
@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", [stopped, killed, cut, silent])
def test_half_a_minute_of_it_loses_nothing_and_doubles_nothing(
    rasher: Start, own_postgres: Postgres, tmp_path: Path, fault: Fault
) -> None:
    resumed_s, audit = away(rasher, own_postgres, tmp_path, fault, 30.0)
    print(f"\n{fault.__name__} for 30 s: resumed after {resumed_s:.2f} s; {audit}")
    assert resumed_s < RESUMED_S_MAX + (SILENT_S_MAX if fault is silent else 0)


def test_readyz_says_that_the_database_is_away_and_orders_are_taken(
    rasher: Start, own_postgres: Postgres
) -> None:
    run = rasher("--database", own_postgres.url(own_postgres.database())).ready()
    assert call(run, "GET", "/readyz") == (200, {"status": "ready", "degraded": []})
    own_postgres.stop()
    run.until(lambda: degraded(run) == ["database"], "the database named as degraded")
    order = {"customer": "Funky Foods", "lines": [{"sku": "BELLY", "quantity": "1.5"}]}
    status, answer = call(run, "POST", "/orders", order)
    assert status == 202
    own_postgres.start()
    run.until(lambda: status_of(run, answer["order_id"]) == "rejected", "the order settled")
    run.until(lambda: degraded(run) == [], "nothing degraded")
    assert run.end(signal.SIGTERM) == 0


def degraded(run: Rasher) -> object:
    status, answer = call(run, "GET", "/readyz?verbose")
    assert status == 200
    return answer["degraded"]


def status_of(run: Rasher, order_id: str) -> object:
    status, answer = call(run, "GET", f"/orders/{order_id}")
    return answer["status"] if status == 200 else None


def test_a_server_that_is_away_at_the_start_is_waited_for_and_wrong_credentials_are_not(
    rasher: Start, own_postgres: Postgres
) -> None:
    database = own_postgres.url(own_postgres.database())
    own_postgres.stop()
    run = rasher("--database", database)
    run.log.match("Connection refused.*tried again every")
    own_postgres.start()
    run.ready()
    assert run.end(signal.SIGTERM) == 0
    refused = rasher("--database", own_postgres.url("postgres", "nobody:no-secret"))
    assert refused.end() == 3
    assert refused.log.said[-1].startswith("rasher: --database: ")
    assert 'role "nobody" does not exist' in refused.log.said[-1]
    assert "no-secret" not in "\n".join(refused.log.said)

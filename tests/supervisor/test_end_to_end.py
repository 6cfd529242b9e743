"""The whole program by its public face: flags, HTTP, signals, exit codes, verbs."""

from __future__ import annotations

import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.program import Client, Rasher, Start, verb


def metric(run: Rasher, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{run.port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


@pytest.fixture
def stopped(rasher: Start) -> Iterator[tuple[Rasher, list[str]]]:
    """A Rasher whose only worker is stopped, and 20 orders that it has answered with 202."""
    run = rasher("--workers", "1", "--graceful-timeout", "20").ready()
    with closing(Client(run).connection) as connection:
        client = Client(run)
        client.connection = connection
        client.stock("100")
        run.child("worker").send_signal(signal.SIGSTOP)
        yield run, [client.order() for _ in range(20)]


def test_an_order_is_allocated_from_the_lot_that_was_entered(rasher: Start) -> None:
    run = rasher().ready()
    client = Client(run)
    with closing(client.connection):
        assert client.call("GET", "/readyz")[0] == 200
        client.stock("100")
        view = client.final(client.order())
        assert view["status"] == "allocated"
        assert [(a["lot_id"], a["quantity"]) for a in view["allocations"]] == [("L1", "1.5")]
    assert sorted(run.children())[:2] == ["rasher front 0", "rasher worker 0"]
    assert run.end(signal.SIGTERM) == 0


def test_killed_fronts_and_workers_refuse_nothing_and_lose_nothing(rasher: Start) -> None:
    run = rasher("--fronts", "1", "--workers", "2", "--capacity", "20").ready()
    client = Client(run)
    with closing(client.connection):
        client.stock("1000")
        ids: list[str] = []
        for role, index in (("worker", 0), ("front", 0), ("worker", 1), ("front", 0)):
            ids += [client.order() for _ in range(15)]
            victim = run.child(role, index)
            victim.kill()
            ids += [client.order() for _ in range(15)]
            run.replaced(victim, role, index)
        assert client.all_allocated(ids)
        # Counted by those who came after them, in the pages of those who died.
        assert metric(run, "rasher_orders_accepted_total") == len(ids)
        assert (
            metric(run, 'rasher_orders_completed_total{outcome="allocated"}') >= len(ids) - 2 * 64
        )
        for role in ("front", "worker"):
            restarts = f'rasher_process_restarts_total{{cause="signal",role="{role}"}}'
            assert metric(run, restarts) == 2
            assert metric(run, f'rasher_process_up{{index="0",role="{role}"}}') == 1
    assert run.end(signal.SIGTERM) == 0
    audit = verb(run, "audit")
    assert (audit.returncode, audit.stdout.startswith("audit: ok")) == (0, True), audit


def test_term_drains_what_was_accepted(stopped: tuple[Rasher, list[str]]) -> None:
    run, ids = stopped
    worker = run.child("worker")
    run.signal(signal.SIGTERM)
    run.log.match("front 0: pid .* exit code 0")
    worker.send_signal(signal.SIGCONT)
    assert run.end() == 0
    assert run.log.match("no order is left")
    audit = verb(run, "audit")
    assert audit.returncode == 0, audit
    assert str(len(ids)) in audit.stdout


def test_interrupt_keeps_accepted_orders_for_the_next_start(
    stopped: tuple[Rasher, list[str]], rasher: Start
) -> None:
    run, ids = stopped
    assert run.end(signal.SIGINT) == 0
    assert run.log.match("killing .*worker 0")
    assert run.log.match("stopped; 20 orders remain")
    # Nobody closed the database, and yet a copy of its one file has all that was committed.
    assert not list(run.data_dir.glob("rasher.db-*"))
    client = Client(rasher("--workers", "1").ready())
    with closing(client.connection):
        assert client.all_allocated(ids)


def test_killing_everything_loses_nothing(stopped: tuple[Rasher, list[str]], rasher: Start) -> None:
    run, ids = stopped
    for process in (run.process, *run.children().values()):
        process.kill()
    run.end()
    again = rasher("--workers", "2").ready()
    assert again.log.match("going on with the ring .*, orders in it: 20")
    client = Client(again)
    with closing(client.connection):
        assert client.all_allocated(ids)
    assert again.end(signal.SIGTERM) == 0
    audit = verb(again, "audit")
    assert audit.returncode == 0, audit


def cpu_seconds(run: Rasher) -> float:
    times = [process.cpu_times() for process in (run.process, *run.children().values())]
    return sum(float(one.user + one.system) for one in times)


@pytest.mark.alone
def test_a_quiet_system_uses_under_one_percent_of_a_core(rasher: Start) -> None:
    run = rasher("--workers", "1").ready()
    wakes, used, since = (
        run.process.num_ctx_switches().voluntary,
        cpu_seconds(run),
        time.monotonic(),
    )
    threading.Event().wait(3.0)
    seconds = time.monotonic() - since
    assert run.process.num_ctx_switches().voluntary - wakes <= 2 * seconds
    # The kernel counts in hundredths of a second, for each process by itself.
    assert cpu_seconds(run) - used <= 0.01 * seconds + 0.02

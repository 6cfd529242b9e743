"""Several at once on one database: threads with stores of their own, and real processes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from processors.child import LAUNCH_FLAG, READY, Launch, write_launch
from processors.inventory import adjust_lot
from processors.pipeline import fefo
from processors.schema import Adjustment, format_uuid
from processors.settings import load_settings
from processors.stop import Stop
from processors.store import Store
from processors.worker import BaconWorker, Rules
from tests.processors.kit import PATIENCE_S, House, on_sqlite, until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def large(url: str, tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path, capacity=1000, url=url)
    yield house
    house.close()


@contextmanager
def workers(house: House, count: int, batch: int) -> Iterator[list[threading.Thread]]:
    """Threads that work off a closed ring, each with a store of its own."""
    with ExitStack() as stack:
        stop = stack.enter_context(Stop())
        threads = []
        for index in range(count):
            store = Store.open(house.url, busy_timeout_s=PATIENCE_S)
            stack.callback(store.close)
            reader = stack.enter_context(house.ring.reader(index))
            worker = BaconWorker(house.ring, store, fefo(), Rules(batch=batch), stop)
            threads.append(threading.Thread(target=worker.run, args=(reader,)))
        house.ring.close()
        for thread in threads:
            thread.start()
        yield threads
        for thread in threads:
            thread.join()


def statuses(house: House) -> dict[str, int]:
    return dict(house.rows("SELECT status, count(*) FROM orders GROUP BY status"))


def test_two_workers_on_a_hot_sku_sell_exactly_what_there_is(large: House) -> None:
    large.stock(*(large.lot(f"L{i}", "HAM", 7000, hours=1 + i) for i in range(50)))
    for _ in range(500):
        large.put(("HAM", 1000))
    with workers(large, 2, batch=8):
        pass
    assert statuses(large) == {"allocated": 350, "rejected": 150}
    assert large.rows("SELECT sum(available) FROM lots") == [(0,)]
    assert large.rows("SELECT seq FROM skus") == [(50 + 350,)]
    assert large.audit().ok


def test_workers_with_orders_over_the_same_skus_in_any_order_do_not_block(large: House) -> None:
    large.stock(*(large.lot(f"L{i}", f"SKU{i}", 100_000) for i in range(3)))
    for i in range(300):
        skus = [f"SKU{(i + k) % 3}" for k in range(3)]
        large.put(*((sku, 1000) for sku in (skus if i % 2 else reversed(skus))))
    with workers(large, 3, batch=4):
        pass
    assert statuses(large) == {"allocated": 100, "rejected": 200}
    assert large.rows("SELECT available FROM lots") == [(0,)] * 3
    assert large.audit().ok


@on_sqlite  # entering that many lots takes PostgreSQL too long for a test
def test_shop_floor(large: House) -> None:
    """2,000 lots of 1,000 lb, 300 orders of 1,500 lb at once, random lots adjusted by up to 30 lb
    every 10 ms: exact to the thousandth, and FEFO by the movements."""
    rnd = random.Random(7)
    large.stock(
        *(large.lot(f"L{i:04}", "PORK", 1_000_000, hours=rnd.uniform(1, 90)) for i in range(2000))
    )
    adjusted = 0
    made = 0
    keys = [large.put(("PORK", 1_500_000)) for _ in range(300)]
    done = threading.Event()

    def adjust() -> None:
        nonlocal adjusted, made
        while not done.wait(0.01):
            delta = rnd.choice([-1, 1]) * rnd.randint(1, 30_000)
            lot_id = f"L{rnd.randrange(2000):04}"
            if adjust_lot(large.store, lot_id, Adjustment(delta, "scale")).outcome == "adjusted":
                adjusted += delta
                made += 1

    adjuster = threading.Thread(target=adjust)
    adjuster.start()
    with workers(large, 2, batch=4):
        pass
    until(lambda: made >= 20, "20 adjustments")
    done.set()
    adjuster.join()
    assert statuses(large) == {"allocated": 300}
    assert all(sum(float(part) for _, _, part in large.given(key)) == 1500 for key in keys[::30])
    assert large.rows("SELECT sum(available) FROM lots") == [
        (2000 * 1_000_000 + adjusted - 300 * 1_500_000,)
    ]
    report = large.audit()
    assert report.ok, list(report.lines())
    assert report.counts["movements"] == report.counts["allocations"] + 2000 + made


# ---- processes ------------------------------------------------------------------------------


class Process:
    """`python -m processors.worker`, as the supervisor starts it."""

    def __init__(
        self, house: House, index: int, adopt: list[int] | None = None, *flags: str
    ) -> None:
        settings, _ = load_settings(
            ["--data-dir", str(house.folder), "--database", house.url, "--batch", "8", *flags], {}
        )
        alive, self._alive = os.pipe()
        self._status, status = os.pipe()
        launch = Launch(
            role="worker",
            index=index,
            settings=settings,
            ring_fd=house.ring.fd,
            listen_fd=None,
            alive_fd=alive,
            status_fd=status,
            parent_pid=os.getpid(),
            adopt=adopt or [],
        )
        fd = write_launch(launch)
        self.child = subprocess.Popen(
            [sys.executable, "-m", "processors.worker", LAUNCH_FLAG, str(fd)],
            pass_fds=[fd, house.ring.fd, alive, status],
            cwd=ROOT,
            stderr=subprocess.PIPE,
        )
        for inherited in (fd, alive, status):
            os.close(inherited)

    def ready(self) -> bool:
        return os.read(self._status, 100) == READY

    def end(self, number: int = 0) -> tuple[int, str]:
        """Its exit code and what it wrote."""
        if number:
            self.child.send_signal(number)
        errors = self.child.communicate(timeout=PATIENCE_S)[1].decode()
        os.close(self._alive)
        os.close(self._status)
        return self.child.returncode, errors


def test_workers_killed_at_random_lose_nothing_and_do_nothing_twice(large: House) -> None:
    rnd = random.Random()
    large.stock(*(large.lot(f"L{i}", "HAM", 70_000, hours=1 + i) for i in range(10)))
    keys = []
    steady = Process(large, 0)
    assert steady.ready()
    for _ in range(3):
        victim = Process(large, 1)
        assert victim.ready()
        keys += [large.put(("HAM", 1000)) for _ in range(300)]
        time.sleep(rnd.uniform(0, 0.03))
        assert victim.end(signal.SIGKILL)[0] == -signal.SIGKILL
    last = Process(large, 2, [1])
    large.ring.close()
    assert last.end()[0] == 0
    assert steady.end()[0] == 0
    assert large.ring.drained
    assert statuses(large) == {"allocated": 700, "rejected": 200}
    ledger = large.folder / "ledger"
    ledger.write_text("".join(f"{format_uuid(key)} 202\n" for key in keys))
    report = large.audit(ledger)
    assert report.ok, list(report.lines())
    assert report.counts["ledger: answered"] == 900


def test_term_ends_an_idle_worker_with_0_and_nothing_in_hand(house: House) -> None:
    process = Process(house, 0)
    assert process.ready()
    key = house.put(("HAM", 1))
    until(lambda: house.ring.find(key) is None, "the order is done")
    assert process.end(signal.SIGTERM) == (0, "")
    assert house.ring.held_count(0) == 0
    assert statuses(house) == {"rejected": 1}


def test_a_processor_that_can_not_be_loaded_ends_the_worker_with_3(house: House) -> None:
    process = Process(house, 0, None, "--processor", "no.such:thing")
    assert not process.ready()
    code, errors = process.end()
    assert code == 3
    assert "no.such:thing can't be loaded" in errors


@pytest.mark.alone
def test_an_idle_worker_costs_next_to_nothing(house: House) -> None:
    process = Process(house, 0)
    assert process.ready()
    house.put(("HAM", 1))
    until(lambda: house.ring.depth + house.ring.held_count(0) == 0, "the order is done")

    def ticks() -> int:
        fields = Path(f"/proc/{process.child.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before, begun = ticks(), time.monotonic()
    until(lambda: time.monotonic() - begun > 2, "two seconds pass")
    # 100 ticks are a second of CPU: at most 1 % of 2 s, and one for rounding.
    assert ticks() - before <= 3
    process.end(signal.SIGTERM)

"""What retention costs: printed, for a machine that does something else judges nothing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest

from processors.pipeline import fefo
from processors.retention import DAY_US, Retention
from processors.stop import Stop
from processors.upkeep import Upkeep
from processors.worker import BaconWorker, Rules
from tests.processors.kit import House

OLD = 200_000
CAPACITY = 5000
ROUNDS = 12
SKUS = 50

pytestmark = [pytest.mark.prove, pytest.mark.alone]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with closing(House(tmp_path, capacity=CAPACITY)) as house:
        house.stock(*(house.lot(f"L{n}", f"SKU{n}", 10**12, hours=10**5) for n in range(SKUS)))
        yield house


def seconds_for(house: House, upkeep: Upkeep) -> float:
    """A full ring worked off."""
    for number in range(CAPACITY):
        house.put((f"SKU{number % SKUS}", 10), key=uuid4().bytes)
    house.ring.close()
    with Stop() as stop, house.ring.reader(0) as reader:
        worker = BaconWorker(house.ring, house.store, fefo(), Rules(), stop, upkeep=upkeep)
        begun = time.perf_counter()
        worker.run(reader)
        taken_s = time.perf_counter() - begun
    house.ring.reopen()
    return taken_s


def make(house: House, limit_us: int) -> Retention:
    return Retention(house.store, 1, lambda: limit_us + DAY_US, now=lambda: limit_us + DAY_US)


def test_what_200_000_old_orders_cost_a_worker(house: House) -> None:
    plain = Upkeep(house.store)
    for _ in range(OLD // CAPACITY):
        seconds_for(house, plain)
    ((limit_us,),) = house.rows("SELECT max(committed_us) + 1 FROM orders")
    retention = make(house, limit_us)
    beside = Upkeep(house.store, None, retention)
    ratios, removed = [], 0
    for _ in range(ROUNDS):
        without_s, before = seconds_for(house, plain), retention.removed
        with_s = seconds_for(house, beside)
        ratios.append(without_s / with_s)
        removed += retention.removed - before
    assert removed > 0
    print(
        f"\nworker's throughput beside retention: {statistics.median(ratios):.3f} of that without "
        f"({min(ratios):.2f} to {max(ratios):.2f}, {ROUNDS} pairs), {removed:,} orders removed; "
        f"longest hold {1000 * retention.forgetting.longest_s:.1f} ms"
    )
    begun, before, spent_s = time.perf_counter(), retention.removed, 0.0
    while retention.step():
        pass
    spent_s = time.perf_counter() - begun
    count = retention.removed - before
    print(
        f"alone: {count:,} orders and movements removed in {spent_s:.1f} s of its own time, "
        f"{count / spent_s:,.0f}/s; longest hold {1000 * retention.forgetting.longest_s:.1f} ms "
        f"for orders, {1000 * retention.folding.longest_s:.1f} ms for movements"
    )
    assert house.rows("SELECT count(*) FROM orders") == [(2 * ROUNDS * CAPACITY,)]
    assert house.audit().ok

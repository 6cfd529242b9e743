"""Limits of time: a worker that hangs ends itself, and takes no more than it can do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

import pytest
from sqlalchemy.engine import Connection

from processors.patience import Alarm, Pace
from processors.pipeline import Outcome, Work
from processors.stop import Stop
from processors.store import StoreUnavailable
from processors.worker import Rules
from tests.processors.kit import House, settled_by

REJECTED = Outcome.rejected("tested")


@pytest.mark.parametrize(
    "loop",
    [
        "while True: pass",
        "any(itertools.repeat(0))",
        "lock.acquire()",
    ],
)
def test_a_process_that_hangs_ends_by_the_alarm_and_leaves_its_traceback(loop: str) -> None:
    read, write = os.pipe()
    code = (
        "import itertools, sys, threading; from processors.patience import Alarm\n"
        "lock = threading.Lock(); lock.acquire()\n"
        f"alarm = Alarm({write}); alarm.arm(0.05)\n"
        f"def hangs():\n    {loop}\nhangs()\n"
    )
    words = [sys.executable, "-c", code]
    ran = subprocess.run(words, pass_fds=[write], timeout=20, check=False)
    os.close(write)
    with os.fdopen(read, "rb") as left:
        assert b" in hangs\n" in left.read()
    assert ran.returncode == -signal.SIGALRM


def test_an_alarm_that_is_disarmed_does_not_come() -> None:
    code = (
        "from processors.patience import Alarm; import time\n"
        "alarm = Alarm(2); alarm.arm(0.05); alarm.disarm(); time.sleep(0.2); print('lives')\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True
    )
    assert (ran.stdout, ran.stderr) == ("lives\n", "")


def test_slow_orders_are_taken_few_at_once_and_quick_ones_in_full_batches() -> None:
    pace = Pace(taken_s=2.0)
    assert pace.most(64) == 64
    pace.note(10, 5.0)
    assert pace.most(64) == 4
    pace.note(1, 100.0)
    assert pace.most(64) == 1
    for _ in range(40):
        pace.note(4, 0.001)
    assert pace.most(64) == 64


class Heard(Alarm):
    """Only tells what it was asked for."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def arm(self, seconds: float) -> None:
        self.seen.append(seconds)

    def disarm(self) -> None:
        self.seen.append(0)


def run(house: House, alarm: Alarm, decide: object = None, **rules: float) -> None:
    processor = settled_by(lambda _: REJECTED) if decide is None else decide
    house.ring.close()
    with Stop() as stop, house.ring.reader(0) as reader:
        worker = house.worker(stop, processor, Rules(batch=3, **rules), alarm=alarm)  # type: ignore[arg-type]
        worker.run(reader)


def test_a_batch_has_half_of_the_time_and_an_order_that_came_alone_all_of_it(house: House) -> None:
    alarm = Heard()
    for _ in range(4):
        house.put(("HAM", 1000))
    run(house, alarm, order_timeout_s=8)
    assert alarm.seen == [4, 0, 8, 0]


def test_when_a_batch_raises_each_of_it_has_a_quarter(house: House) -> None:
    alarm = Heard()
    for _ in range(3):
        house.put(("HAM", 1000))

    def process(_: Connection, orders: Sequence[Work], _moment: int) -> list[Outcome]:
        if len(orders) > 1:
            raise ValueError
        return [REJECTED]

    run(house, alarm, process, order_timeout_s=8)
    assert alarm.seen == [4, 0, *[2, 0] * 3]


def test_the_clock_stops_while_the_database_is_waited_for(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    alarm, writing, tries = Heard(), house.store.writing, iter([True, True, False])

    def now_and_then() -> object:
        if next(tries):
            raise StoreUnavailable("away")
        return writing()

    house.put(("HAM", 1000))
    monkeypatch.setattr(house.store, "writing", now_and_then)
    run(house, alarm)
    assert alarm.seen == [30, 0]

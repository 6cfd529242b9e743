"""A system that nobody uses costs next to nothing."""

from __future__ import annotations

import sys
import threading
import time

import pytest

from tests.program import Rasher, Start, call


def cpu_seconds(run: Rasher) -> float:
    times = [process.cpu_times() for process in (run.process, *run.children().values())]
    return sum(float(one.user + one.system) for one in times)


def percent_of_a_core(run: Rasher, seconds: float) -> float:
    """CPU of all processes over so many seconds of doing nothing."""
    since, used = time.monotonic(), cpu_seconds(run)
    threading.Event().wait(seconds)
    return 100 * (cpu_seconds(run) - used) / (time.monotonic() - since)


@pytest.mark.prove
@pytest.mark.timeout(120)
def test_a_quiet_minute_uses_under_one_percent_of_a_core(rasher: Start) -> None:
    run = rasher("--fronts", "1", "--workers", "2").ready()
    assert call(run, "GET", "/readyz")[0] == 200
    percent = percent_of_a_core(run, 60)
    sys.stdout.write(
        f"\nquiet: {percent:.2f} % of one core in 60 s, supervisor, 1 front, 2 workers\n"
    )
    assert percent < 1

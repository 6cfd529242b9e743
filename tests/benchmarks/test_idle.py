"""Idle runs, and every way wakes its reader."""

from __future__ import annotations

import pytest

from benchmarks.idle import AWAKE, CPU, DEFAULT, OURS, QUIET, TWO
from tests.benchmarks.conftest import RunSide

WAYS = [
    OURS,
    *(
        pytest.param(name, marks=pytest.mark.prove)
        for name in ("os.pipe", "multiprocessing.Queue", "pyzmq")
    ),
]


@pytest.mark.parametrize(
    ("side", "processes"), [(DEFAULT, None), pytest.param(TWO, 4, marks=pytest.mark.prove)]
)
def test_a_quiet_service_is_measured_with_all_its_processes(
    run_side: RunSide, side: str, processes: int | None
) -> None:
    figures = run_side("idle", QUIET, side)
    assert figures["processes"] == processes if processes else figures["processes"] >= 3
    assert figures[CPU] > 0


@pytest.mark.parametrize("side", WAYS)
def test_every_way_wakes_its_reader(run_side: RunSide, side: str) -> None:
    figures = run_side("idle", AWAKE, side)
    assert 0 < figures["p50_us"] <= figures["p99_us"]

"""Accept runs, with rings of one slot too."""

from __future__ import annotations

import pytest

from benchmarks.accept import CAPACITY, COST, LANE, MAIN, WAITED
from tests.benchmarks.conftest import RunSide

pytestmark = pytest.mark.prove  # its sender is installed by hand


def test_orders_are_taken_in(run_side: RunSide) -> None:
    assert run_side("accept", MAIN, LANE)[COST] > 0


def test_orders_wait_for_a_single_slot(run_side: RunSide) -> None:
    assert run_side("accept", CAPACITY, "1")[WAITED] > 50

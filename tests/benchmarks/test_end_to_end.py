"""Each service of the end-to-end benchmark commits what it has answered."""

from __future__ import annotations

import pytest

from benchmarks.end_to_end import MAIN, RATE
from tests.benchmarks.conftest import RunSide

pytestmark = pytest.mark.prove  # its sender and its peers are installed by hand

SIDES = ["Rasher", "synchronous", "RabbitMQ, 64 unconfirmed, prefetch 1,024"]


@pytest.mark.parametrize("side", SIDES)
def test_every_service_commits(run_side: RunSide, side: str) -> None:
    assert run_side("end_to_end", MAIN, side)[RATE] > 0

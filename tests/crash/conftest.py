from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ringbuf.nursery import Nursery


@pytest.fixture(scope="module")
def mains(stepping_kernel: Path) -> Iterator[Nursery]:
    """Starts workers and supervisors that end at a chosen place; see work_actors.py."""
    with Nursery("tests.crash.work_actors", str(stepping_kernel)) as nursery:
        yield nursery

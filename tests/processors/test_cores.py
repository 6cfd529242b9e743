"""What is idle, as the kernel counts it: of the machine, and of a control group with a limit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from processors.cores import Cores

Look = Callable[[], Cores]
CORES = 4


class Host:
    """Files as the kernel has them, and a clock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = 0.0
        self.ticks(0, 0)

    def ticks(self, busy: int, idle: int) -> None:
        self.write("stat", f"cpu  {busy} 0 0 {idle} 0 0 0 0 7 7\ncpu0 1 2 3\n")

    def limit(self, text: str) -> None:
        self.write("cpu.max", text)

    def usage(self, seconds: float) -> None:
        self.write("cpu.stat", f"usage_usec {int(seconds * 1e6)}\nuser_usec 1\n")

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def cores(self) -> Cores:
        return Cores(self.folder / "stat", self.folder.joinpath, lambda: self.now)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(os, "cpu_count", lambda: CORES)
    return Host(tmp_path)


def test_of_the_machine(host: Host) -> None:
    host.ticks(10, 100)
    cores = host.cores()
    assert cores.count == CORES
    host.ticks(70, 140)
    assert cores.idle() == pytest.approx(CORES * 0.4)
    assert cores.idle() == CORES  # no time has passed
    host.ticks(170, 140)
    assert cores.idle() == 0


def test_of_a_group_that_may_use_fewer(host: Host) -> None:
    host.limit("150000 100000\n")
    host.usage(100)
    cores = host.cores()
    assert cores.count == 1.5
    host.now = 10.0
    host.usage(112)
    host.ticks(0, 4000)
    assert cores.idle() == pytest.approx(0.3)
    host.now = 20.0
    host.usage(130)  # more than it may: at the edge of a period
    assert cores.idle() == 0
    host.now = 30.0
    assert cores.idle() == 1.5


def test_the_machine_may_have_less_than_the_group_may_use(host: Host) -> None:
    host.limit("300000 100000\n")
    host.usage(0)
    cores = host.cores()
    host.now = 10.0
    host.ticks(3900, 100)
    assert cores.idle() == pytest.approx(0.1)


@pytest.mark.parametrize("text", ["max 100000", "800000 100000", "nonsense", "1 0", ""])
def test_a_group_without_a_limit_below_the_machines(host: Host, text: str) -> None:
    host.limit(text)
    host.usage(0)
    cores = host.cores()
    host.now = 1.0
    host.usage(1000)
    assert (cores.count, cores.idle()) == (CORES, CORES)


def test_where_nothing_can_be_known_all_are_idle(host: Host) -> None:
    host.limit("100000 100000")
    cores = host.cores()  # usage is not told
    host.write("stat", "nonsense")
    assert cores.idle() == 1
    (host.folder / "stat").unlink()
    assert cores.idle() == 1
    assert Cores(host.folder / "none", lambda _: None).idle() == CORES


def test_of_this_machine() -> None:
    cores = Cores()
    assert 0 <= cores.idle() <= cores.count <= (os.cpu_count() or 1)

"""Benchmarks run as users run them, one side at a time, quick."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from benchmarks.measure import Figures
from benchmarks.report import Record
from tests.program import ROOT, clean_environ

RUN_S_MAX = 100.0
RunSide = Callable[[str, str, str], Figures]


@pytest.fixture
def run_side(tmp_path: Path) -> RunSide:
    """Runs one side of a table; its figures. Skips, naming what would install it."""

    def run(benchmark: str, table: str, side: str) -> Figures:
        words = ["--quick", "--results", str(tmp_path), "--only", table, "--side", side]
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{benchmark}", *words],
            cwd=ROOT,
            env=clean_environ(),
            capture_output=True,
            text=True,
            check=False,
            timeout=RUN_S_MAX,
        )
        assert done.returncode == 0, done.stderr
        record = msgspec.json.decode((tmp_path / f"{benchmark}.json").read_bytes(), type=Record)
        if side in record.not_installed:
            pytest.skip(f"{side} is not installed: {record.not_installed[side]}")
        (only,) = record.rounds
        assert (only.table, only.side) == (table, side)
        return only.figures

    return run

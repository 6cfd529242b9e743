"""How benchmarks measure: interleaved, compared within rounds, by the CPU of whole trees."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.measure import (
    Round,
    Side,
    SideFailed,
    cpu_s,
    descendants,
    interleave,
    machine,
    missing_package,
    missing_program,
    parse_options,
    ratio,
    spread,
)
from benchmarks.report import Bench

BUSY_S = 0.2
BURN = f"import time\nwhile time.process_time() < {BUSY_S}: pass"


def rounds_of(**sides: list[float]) -> list[Round]:
    return [
        Round("t", number, 0, side, {"x_per_s": value})
        for side, values in sides.items()
        for number, value in enumerate(values)
    ]


def test_rounds_rotate_who_comes_first() -> None:
    sides = [Side(name, lambda: {"x_per_s": 1.0}) for name in "abc"]
    found = [(one.number, one.side) for one in interleave("t", sides, 3)]
    assert "".join(side for _, side in found) == "abcbcacab"


def test_what_is_not_installed_is_not_run() -> None:
    def fail() -> dict[str, float]:
        raise AssertionError

    sides = [Side("there", lambda: {"x_per_s": 1.0}), Side("peer", fail, "pip install peer")]
    assert [one.side for one in interleave("t", sides, 2)] == ["there", "there"]


def test_a_ratio_is_taken_within_each_round() -> None:
    found = ratio(rounds_of(a=[2.0, 40.0, 300.0], b=[1.0, 10.0, 100.0]), "t", "x_per_s", "a", "b")
    assert found == spread([2.0, 4.0, 3.0])
    assert found is not None
    assert (found.median, found.low, found.high) == (3.0, 2.0, 4.0)


def test_no_ratio_to_what_did_not_run() -> None:
    assert ratio(rounds_of(a=[1.0]), "t", "x_per_s", "a", "b") is None


def test_cpu_of_children_counts_also_when_they_have_ended() -> None:
    before = cpu_s(os.getpid())
    subprocess.run([sys.executable, "-c", BURN], check=True)
    assert cpu_s(os.getpid()) - before >= BUSY_S - 0.02


def test_cpu_of_living_children_counts() -> None:
    before, deadline = cpu_s(os.getpid()), time.monotonic() + 30
    with subprocess.Popen([sys.executable, "-c", BURN + "\ninput()"], stdin=-1) as child:
        try:
            assert child.pid in descendants(os.getpid())
            while cpu_s(child.pid) < BUSY_S - 0.02:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert cpu_s(os.getpid()) - before >= BUSY_S - 0.02
        finally:
            child.kill()


def test_missing_things_are_named_with_what_installs_them() -> None:
    assert missing_package("msgspec", "msgspec") == ""
    assert missing_package("no_such_peer", "no-such-peer") == "pip install no-such-peer"
    assert missing_program("sh", "dash") == ""
    assert missing_program("no-such-server", "nosuch") == "apt-get install nosuch"


@pytest.mark.parametrize(
    ("ours", "at_least", "verdict"),
    [(3.0, 2.0, "met"), (3.0, 4.0, "missed"), (3.0, None, "not judged")],
)
def test_a_bar_is_judged_by_the_median(
    tmp_path: Path, ours: float, at_least: float | None, verdict: str
) -> None:
    options = parse_options("a test", ["--rounds", "3", "--results", str(tmp_path)])
    bench = Bench("test", "a test", options, machine())
    bench.run("t", [Side("a", lambda: {"x": ours}), Side("b", lambda: {"x": 1.0})])
    bench.compare("t", "x", "a", "b", at_least=at_least)
    assert bench.record.comparisons[0].verdict == verdict
    assert bench.finish() == (verdict == "missed")


@pytest.mark.parametrize(
    ("at_least", "at_most", "verdict"),
    [(1.0, None, "met"), (1.5, None, "missed"), (None, 3.0, "met"), (None, 2.5, "missed")],
)
def test_a_bar_of_the_figure_itself_is_judged_by_the_worst_round(
    tmp_path: Path, at_least: float | None, at_most: float | None, verdict: str
) -> None:
    found = iter([2.0, 1.0, 3.0])
    options = parse_options("a test", ["--rounds", "3", "--results", str(tmp_path)])
    bench = Bench("test", "a test", options, machine())
    bench.run("t", [Side("a", lambda: {"x": next(found)})])
    bench.limit("t", "x", "a", at_least=at_least, at_most=at_most)
    assert bench.record.comparisons[0].verdict == verdict


def test_a_quick_run_judges_nothing(tmp_path: Path) -> None:
    options = parse_options("a test", ["--quick", "--results", str(tmp_path)])
    bench = Bench("test", "a test", options, machine())
    bench.run("t", [Side("a", lambda: {"x": 1.0}), Side("b", lambda: {"x": 1.0})])
    bench.compare("t", "x", "a", "b", at_least=9)
    assert bench.record.comparisons[0].verdict == "not judged"
    assert bench.finish() == 0


def test_a_side_that_fails_has_no_figures_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = iter([1.0, 1.0])

    def fail() -> dict[str, float]:
        for turn in turns:
            return {"x": turn}
        raise SideFailed("message 7 is missing")

    options = parse_options("a test", ["--rounds", "5", "--results", str(tmp_path)])
    bench = Bench("test", "a test", options, machine())
    bench.run("t", [Side("peer", fail), Side("a", lambda: {"x": 1.0})])
    bench.compare("t", "x", "a", "peer", at_least=0.5)
    assert [one.side for one in bench.record.rounds] == ["a"] * 5
    assert bench.record.comparisons[0].verdict == "not run"
    assert bench.finish() == 1
    assert "failed in round 3: message 7 is missing" in " ".join(capsys.readouterr().out.split())


def test_a_table_of_nothing_says_what_installs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = parse_options("a test", ["--results", str(tmp_path)])
    bench = Bench("test", "a test", options, machine())
    bench.run("t", [Side("a", lambda: {"x": 1.0}, "apt-get install peer")])
    assert bench.finish() == 0
    assert "not installed: apt-get install peer" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["--only", "u"], ["--side", "c"], ["--only", "t", "--side", "c"]]
)
def test_a_table_or_side_that_is_not_there_is_said(tmp_path: Path, words: list[str]) -> None:
    options = parse_options("a test", ["--quick", "--results", str(tmp_path), *words])
    bench = Bench("test", "a test", options, machine())
    if bench.wants("t"):
        bench.run("t", [Side("a", lambda: {"x": 1.0})])
    assert bench.finish() == 2

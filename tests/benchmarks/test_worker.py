"""The worker benchmark runs; that its orders are settled is what it checks itself."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks import stock
from benchmarks.measure import parse_options
from benchmarks.worker import COST, MAIN, STOCKED, STORED, main_sides
from tests.benchmarks.conftest import RunSide

NAMES = [side.name for side in main_sides(parse_options("", ["--quick"]))]
SIDES = [
    pytest.param(name, marks=() if name == "BaconWorker, batch 64, FULL" else pytest.mark.prove)
    for name in NAMES
]


@pytest.mark.parametrize("side", SIDES)
def test_every_side_settles_its_orders(run_side: RunSide, side: str) -> None:
    assert run_side("worker", MAIN, side)[COST] > 0


@pytest.mark.prove
def test_orders_of_earlier_days_are_there(run_side: RunSide) -> None:
    assert run_side("worker", STORED, "2,000")[COST] > 0


@pytest.mark.prove
def test_lots_to_choose_from_are_there(run_side: RunSide) -> None:
    assert run_side("worker", STOCKED, "1,000")[COST] > 0


LOTS = stock.LOTS + 1


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with 300 orders of earlier days and their spent lots, to look at."""
    return stock.make_database(tmp_path_factory.mktemp("history"), history=300, lots=LOTS)


def test_what_is_stored_beforehand_passes_the_audit(history: Path) -> None:
    stock.check_settled(history, 300)
    with closing(sqlite3.connect(history)) as database:
        assert database.execute("SELECT count(*) FROM lots").fetchone() == (300 + LOTS,)


def test_an_order_too_few_is_noticed(history: Path) -> None:
    with pytest.raises(stock.NotDone, match="301 orders"):
        stock.check_settled(history, 301)


def test_an_order_without_its_movement_is_noticed(history: Path, tmp_path: Path) -> None:
    file = Path(shutil.copytree(history.parent, tmp_path / "copy"), history.name)
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("DELETE FROM movements WHERE lot = 7 AND delta < 0")
    with pytest.raises(stock.NotDone, match="audit"):
        stock.check_settled(file, 300)


@pytest.mark.parametrize(("mode", "number"), [("FULL", 2), ("NORMAL", 1)])
def test_the_mode_of_syncing_is_the_one_asked_for(history: Path, mode: str, number: int) -> None:
    store = stock.open_store(history, mode)
    with store.writing() as transaction:
        assert transaction.exec_driver_sql("PRAGMA synchronous").scalar() == number
    store.close()

"""The depth benchmark runs, counts what it says, and starts from stock that adds up."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks import piles, stock
from benchmarks.counted import by_object, compile_switches
from benchmarks.depth import (
    COST,
    HOT,
    IN_SQLITE,
    KINDS,
    LOT,
    STEPS_COST,
    add_used_up,
    cases,
    check,
)
from benchmarks.measure import missing_program, parse_options
from benchmarks.piles import Pile
from processors.schema import load_order
from tests.benchmarks.conftest import RunSide

INSTALL = missing_program("valgrind", "valgrind")
QUICK = cases(parse_options("", ["--quick"]))
FIRST = KINDS[0].name, QUICK[0].name
RUNS = [
    pytest.param(kind.name, case.name, marks=() if first else pytest.mark.prove)
    for kind in KINDS
    for case in QUICK
    for first in [(kind.name, case.name) == FIRST]
]
CALLGRIND = """\
# callgrind format
version: 1
positions: line
events: Ir
totals: 145

ob=(1) /usr/lib/libpython3.so
fl=(1) ceval.c
fn=(1) evaluate
10 5
+2 20
cob=(2) /usr/lib/libsqlite3.so.0
cfi=(2) ???
cfn=(2) sqlite3_step
calls=3 0
* 120
-1 10

ob=(2)
fn=(2)
0 100
* 7
fn=(1)
ob=(1)
11 3
"""


@pytest.mark.skipif(bool(INSTALL), reason=f"valgrind is not installed: {INSTALL}")
@pytest.mark.parametrize(("table", "side"), RUNS)
def test_every_case_is_counted(run_side: RunSide, table: str, side: str) -> None:
    figures = run_side("depth", table, side)
    assert figures[COST] > figures[IN_SQLITE] >= 0
    assert figures[STEPS_COST] > 1


def test_instructions_are_those_of_each_object_itself() -> None:
    counts = by_object(CALLGRIND.splitlines(keepends=True))
    assert counts == {"/usr/lib/libpython3.so": 38, "/usr/lib/libsqlite3.so.0": 107}


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho no such header >&2\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(stock.NotDone, match="cc ended with 3: no such header"):
        compile_switches(tmp_path)


@pytest.fixture(scope="module")
def piled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two skus, to look at; one has lots of every kind."""
    heaps = [Pile("SKU-0", 3, spent=5, expired=2), Pile("SKU-1", 4)]
    return piles.make_database(tmp_path_factory.mktemp("piled"), heaps, LOT)


def lots_of(file: Path, sku: str, where: str) -> int:
    query = f"SELECT count(*) FROM lots JOIN skus ON skus.id = sku_id WHERE sku = ? AND {where}"
    with closing(sqlite3.connect(file)) as database:
        (count,) = database.execute(query, (sku,)).fetchone()
    return int(count)


def test_piles_pass_the_audit(piled: Path) -> None:
    stock.check_audit(piled)
    expired = "expires_us <= unixepoch() * 1000000"
    assert lots_of(piled, "SKU-0", "lots.available = 0") == 5
    assert lots_of(piled, "SKU-0", f"lots.available > 0 AND {expired}") == 2
    assert lots_of(piled, "SKU-0", f"lots.available > 0 AND NOT {expired}") == 3
    assert lots_of(piled, "SKU-1", "lots.available > 0") == 4


def test_as_many_lots_are_added_as_orders_will_empty(piled: Path, tmp_path: Path) -> None:
    file = tmp_path / "rasher.db"
    file.write_bytes(piled.read_bytes())
    add_used_up(file, stock.make_items(5, skus=["SKU-1"], quantities=[LOT * 5 // 2]))
    stock.check_audit(file)
    assert lots_of(file, "SKU-1", "lots.available > 0") == 4 + 12


def test_orders_that_took_of_too_few_lots_are_noticed(tmp_path: Path) -> None:
    file = stock.make_database(tmp_path, history=20, lots=10)
    check(file, 20, KINDS[0])
    with pytest.raises(stock.NotDone, match="20 orders were given 20 parts, not 3 each"):
        check(file, 20, KINDS[1])


def test_orders_that_were_not_refused_are_noticed(tmp_path: Path) -> None:
    file = stock.make_database(tmp_path, history=20, lots=10)
    with pytest.raises(stock.NotDone, match="allocated"):
        check(file, 20, KINDS[2])


def test_four_in_five_orders_are_of_the_hot_skus() -> None:
    many = QUICK[-1]
    items = stock.make_items(1000, skus=many.choices())
    asked = Counter(load_order(item.payload).lines[0].sku for item in items)
    assert 750 < sum(asked[pile.sku] for pile in many.piles[:HOT]) < 850
    assert len(asked) > 5 * HOT

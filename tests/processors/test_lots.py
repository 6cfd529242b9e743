from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from processors import lots, lots_verb
from processors.inventory import list_lots
from processors.settings import Settings, load_settings
from processors.store import Store


def settings_of(folder: Path) -> Settings:
    return load_settings(["--data-dir", str(folder / "deep" / "var")], {})[0]


def line(**changes: Any) -> str:
    lot = {"lot_id": "a", "sku": "HAM", "quantity": "12.5", "expires_at": "2027-01-01T00:00:00Z"}
    return json.dumps({**lot, **changes})


def add(folder: Path, *lines: str) -> int:
    path = folder / "lots.ndjson"
    path.write_text("\n".join(lines), encoding="utf-8")
    return lots_verb.main(settings_of(folder), ["add", "--file", str(path)])


def stored(folder: Path) -> list[tuple[str, str]]:
    store = Store.open(settings_of(folder).database)
    page = list_lots(store, limit=1000)
    store.close()
    return [(lot.lot_id, lot.available) for lot in page.items]


def test_a_file_is_entered_without_anything_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add(tmp_path, line(), "", line(lot_id="b", quantity=1)) == 0
    assert stored(tmp_path) == [("a", "12.5"), ("b", "1")]
    assert capsys.readouterr().out == "lots add: 2 added, 0 there already, 0 refused\n"


def test_the_same_file_again_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(tmp_path, line(), line(lot_id="b"))
    capsys.readouterr()
    assert add(tmp_path, line(), line(lot_id="b"), line(lot_id="c")) == 0
    assert capsys.readouterr().out == "lots add: 1 added, 2 there already, 0 refused\n"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{", "not JSON"),
        (line(quantity="-1"), "/quantity"),
        (line(expires_at="soon", sku="a b"), "/sku"),
        (line(color="red"), "/color unknown field"),
        (line(sku="BACON"), "lot a is there already, with another body"),
        ('{"sku": "' + "x" * 70_000, "longer than 65536 bytes"),
    ],
)
def test_a_bad_line_is_reported_by_number_and_the_others_go_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: str, reason: str
) -> None:
    assert add(tmp_path, line(), bad, line(lot_id="b")) == 1
    assert stored(tmp_path) == [("a", "12.5"), ("b", "12.5")]
    found = capsys.readouterr()
    assert found.err.startswith("line 2: ")
    assert reason in found.err
    assert found.err.count("\n") == 1
    assert found.out == "lots add: 2 added, 0 there already, 1 refused\n"


def test_a_file_longer_than_a_batch_goes_in_whole(tmp_path: Path) -> None:
    count = lots.LOTS_AT_ONCE + 3
    assert add(tmp_path, *(line(lot_id=f"l{i:04}") for i in range(count))) == 0
    assert len(stored(tmp_path)) == count


def test_a_dash_reads_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(line().encode())))
    assert lots_verb.main(settings_of(tmp_path), ["add", "--file=-"]) == 0
    assert stored(tmp_path) == [("a", "12.5")]


def test_a_file_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lots_verb.main(settings_of(tmp_path), ["add", "--file", "/no/such/file"]) == 1
    assert "/no/such/file" in capsys.readouterr().err


@pytest.mark.parametrize("args", [[], ["add"], ["add", "--file"], ["entering"]])
def test_wrong_usage_is_said(
    tmp_path: Path, args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        lots_verb.main(settings_of(tmp_path), args)
    assert ended.value.code == 2
    assert capsys.readouterr().err

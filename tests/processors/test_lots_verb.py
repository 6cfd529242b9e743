"""`rasher lots list` and `adjust`, called as the supervisor calls them; `add`: test_lots.py."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from processors import lots_verb
from processors.inventory import LotView, add_lots, adjust_lot, list_lots
from processors.paging import Page
from processors.recalling import recall_lot
from processors.requests import Request
from processors.schema import Adjustment
from processors.settings import Settings
from processors.store import Store
from tests.processors.kit import House, on_sqlite
from tests.program import PATIENCE_S, ROOT, clean_environ

Capture = pytest.CaptureFixture[str]
# More than any pipe holds.
MANY = 5000


@pytest.fixture
def settings(house: House) -> Settings:
    return Settings(str(house.folder), house.url)


def stocked(house: House) -> None:
    """A lot in each state, and one of another sku."""
    house.stock(
        house.lot("late", "HAM", 12_500, hours=9),
        house.lot("expired", "HAM", 500, hours=-1),
        house.lot("recalled", "HAM", 700, hours=4),
        house.lot("spent", "HAM", 700, hours=5),
        replace(
            house.lot("other", "JERKY", 1000),
            supplier="Meier \x9b31m & S\N{LATIN SMALL LETTER O WITH DIAERESIS}hne",
        ),
    )
    adjust_lot(house.store, "spent", Adjustment(-700, "count"))
    recall_lot(house.store, "recalled", limit=1)


def listed(settings: Settings, capsys: Capture, *words: str) -> list[Any]:
    assert lots_verb.main(settings, ["list", "--json", *words]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# ---- list ---------------------------------------------------------------------------------------


def test_a_line_of_json_for_each_lot_is_what_the_api_shows(
    house: House, settings: Settings, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stocked(house)
    monkeypatch.setattr(lots_verb, "LIMIT_MAX", 2)
    shown = listed(settings, capsys)
    assert [lot["lot_id"] for lot in shown] == ["expired", "recalled", "spent", "late", "other"]
    whole = list_lots(house.store, limit=100).items
    assert shown == [{name: getattr(lot, name) for name in lot.__struct_fields__} for lot in whole]


def test_lots_are_chosen_by_sku_and_state(
    house: House, settings: Settings, capsys: Capture
) -> None:
    stocked(house)
    for state, ids in {
        "available": ["late", "other"], "expired": ["expired"], "spent": ["spent"],
        "recalled": ["recalled"],
    }.items():  # fmt: skip
        assert [lot["lot_id"] for lot in listed(settings, capsys, "--state", state)] == ids
    (other,) = listed(settings, capsys, "--state", "available", "--sku", "JERKY")
    assert other["lot_id"] == "other"
    assert listed(settings, capsys, "--sku", "none") == []


@on_sqlite
def test_a_file_gets_aligned_columns(house: House, settings: Settings, capsys: Capture) -> None:
    stocked(house)
    assert lots_verb.main(settings, ["list"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == list(lots_verb.COLUMNS)
    assert len(lines) == 5
    for place, sku in enumerate(["HAM"] * 4 + ["JERKY"]):
        assert lines[place][header.index("sku") :].split()[0] == sku
        end = header.index("available") + len("available")
        assert lines[place][end - 1].isdigit()
        assert lines[place][end : end + 2] == "  "
    assert lines[0].split()[:4] == ["expired", "HAM", "expired", "0.5"]
    # What a terminal would take for an order to it is not handed on.
    assert lines[4].endswith(
        "Meier \N{REPLACEMENT CHARACTER}31m & S\N{LATIN SMALL LETTER O WITH DIAERESIS}hne"
    )


@on_sqlite
def test_each_page_is_written_before_the_next_is_read(
    house: House, settings: Settings, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def read(store: Store, **words: Any) -> Page[LotView]:
        written.append(capsys.readouterr().out.count("\n"))
        return list_lots(store, **words)

    house.stock(*(house.lot(f"l{i}", "HAM", 1) for i in range(5)))
    monkeypatch.setattr(lots_verb, "LIMIT_MAX", 2)
    monkeypatch.setattr(lots_verb, "list_lots", read)
    for words, lines in (([], [0, 3, 2]), (["--json"], [0, 2, 2])):
        assert lots_verb.main(settings, ["list", *words]) == 0
        assert written == lines
        written.clear()
        capsys.readouterr()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@on_sqlite
@pytest.mark.parametrize("columns", [20, 200])
def test_a_terminal_gets_a_table_that_fits_it(
    house: House, settings: Settings, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    stocked(house)
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    assert lots_verb.main(settings, ["list"]) == 0
    header, *lines, count = screen.getvalue().splitlines()
    assert count == "5 lots"
    assert [line.split()[0] for line in lines] == ["expired", "recalled", "spent", "late", "other"]
    assert max(map(len, lines)) <= columns
    assert ("supplier" in header) == (columns == 200)


@on_sqlite
def test_who_reads_only_the_first_lots_sees_no_error(house: House, settings: Settings) -> None:
    add_lots(house.store, [house.lot(f"l{i:04}", "HAM", 1) for i in range(MANY)])
    words = [sys.executable, "supervisor.py", "lots", "list", "--data-dir", settings.data_dir]
    with subprocess.Popen(
        words, cwd=ROOT, env=clean_environ(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as program:  # fmt: skip
        assert program.stdout is not None
        assert program.stderr is not None
        assert program.stdout.readline().split()[0] == "lot"
        program.stdout.close()
        assert program.stderr.read() == ""
        assert program.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("words", [["list"], ["adjust", "a", "1", "--reason", "count"]])
def test_where_there_is_no_database_none_is_made(
    tmp_path: Path, words: list[str], capsys: Capture
) -> None:
    path = tmp_path / "rasher.db"
    assert lots_verb.main(Settings(str(tmp_path), f"sqlite:///{path}"), words) == 1
    assert f"there is no database: {path} (--data-dir, --database)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["list"], ["adjust", "a", "1", "--reason", "count"]])
def test_a_database_of_another_version_is_not_migrated(
    tmp_path: Path, words: list[str], capsys: Capture
) -> None:
    path = tmp_path / "rasher.db"
    path.touch()
    assert lots_verb.main(Settings(str(tmp_path), f"sqlite:///{path}"), words) == 1
    assert "no such table: lots" in capsys.readouterr().err


# ---- adjust -------------------------------------------------------------------------------------


def adjusted(settings: Settings, *words: str) -> int:
    return lots_verb.main(settings, ["adjust", "a", *words])


@pytest.mark.parametrize(
    ("delta", "left"), [("-30", "70"), ("-0.125", "99.875"), ("12.5", "112.5"), ("-100", "0")]
)
def test_a_lot_is_corrected_with_its_reason(
    house: House, settings: Settings, capsys: Capture, delta: str, left: str
) -> None:
    house.stock(house.lot("a", "HAM", 100_000))
    assert adjusted(settings, delta, "--reason", "spoilage") == 0
    assert capsys.readouterr().out == f"lots adjust: lot a has now {left}\n"
    assert house.rows("SELECT kind, reason FROM movements WHERE seq > 1") == [
        ("adjust", "spoilage")
    ]
    assert house.audit().ok


def test_what_would_go_below_zero_is_refused_with_the_balance(
    house: House, settings: Settings, capsys: Capture
) -> None:
    house.stock(house.lot("a", "HAM", 29_500))
    assert adjusted(settings, "-30", "--reason", "count") == 1
    assert capsys.readouterr().err == "lots adjust: lot a has 29.5: it would go below zero\n"
    assert house.rows("SELECT count(*) FROM movements") == [(1,)]


@pytest.mark.parametrize("lot_id", ["none", "", "a b"])
def test_an_unknown_lot_is_refused(
    house: House, settings: Settings, capsys: Capture, lot_id: str
) -> None:
    assert lots_verb.main(settings, ["adjust", lot_id, "1", "--reason", "count"]) == 1
    assert capsys.readouterr().err.startswith("lots adjust: no lot ")


def test_a_lot_whose_name_begins_like_a_flag_can_be_named(house: House, settings: Settings) -> None:
    house.stock(house.lot("-7", "HAM", 1000))
    assert lots_verb.main(settings, ["adjust", "--reason", "count", "--", "-7", "-1"]) == 0


def test_with_a_key_it_is_done_once_also_over_http(
    house: House, settings: Settings, capsys: Capture
) -> None:
    house.stock(house.lot("a", "HAM", 100_000))
    for said in ("has now 70", "had, as this was done before, 70"):
        assert adjusted(settings, "-30", "--reason", "spoilage", "--key", "k 1") == 0
        assert capsys.readouterr().out == f"lots adjust: lot a {said}\n"
    asked = Adjustment(-30_000, "spoilage")
    again = adjust_lot(house.store, "a", asked, Request.of(None, b"k 1", ("a", asked)))
    assert (again.outcome, again.available, again.replayed) == ("adjusted", 70_000, True)
    assert adjusted(settings, "-31", "--reason", "spoilage", "--key", "k 1") == 1
    told = "lots adjust: --key k 1: another adjustment was made with it before\n"
    assert capsys.readouterr().err == told
    assert house.rows("SELECT count(*), sum(delta) FROM movements") == [(2, 70_000)]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["list", "--state", "rotten"], "invalid choice: 'rotten'"),
        (["list", "--sku", "a b"], "--sku: must be 1 to 64 of A-Z a-z 0-9 . _ -, is a b"),
        (["adjust", "a", "1"], "--reason"),
        (["adjust", "a", "--reason", "count"], "DELTA"),
        (["adjust", "a", "0", "--reason", "count"], "DELTA: must not be 0, is 0"),
        (["adjust", "a", "1e3", "--reason", "count"], "DELTA: must be a number, '-' allowed"),
        (["adjust", "a", "0.0001", "--reason", "count"], "at most 3 decimals"),
        (["adjust", "a", "1000000001", "--reason", "count"], "must be from -1000000000 to"),
        (["adjust", "a", "1", "--reason", ""], "--reason: must have 1 to 200 characters, has 0"),
        (["adjust", "a", "1", "--reason", "\n"], "--reason: must have no control characters"),
        (["adjust", "a", "1", "--reason", "\udcff"], "--reason: must be UTF-8"),
        (["adjust", "a", "1", "--reason", "x", "--key", ""], "--key: must be 1 to 255 characters"),
        (["adjust", "a", "1", "--reason", "x", "--key", "k" * 256], "this one has 256"),
        (["adjust", "a", "1", "--reason", "x", "--key", "\xe4"], "characters of ASCII"),
    ],
)
def test_wrong_usage_is_two_and_touches_nothing(
    tmp_path: Path, words: list[str], told: str, capsys: Capture
) -> None:
    with pytest.raises(SystemExit) as ended:
        lots_verb.main(Settings(str(tmp_path), f"sqlite:///{tmp_path}/rasher.db"), words)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

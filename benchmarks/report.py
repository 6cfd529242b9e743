"""What a benchmark leaves: a table on the terminal, JSON with every round, PNG plots.

bench = Bench("ring", __doc__, options, machine(["pyzmq"]))
if bench.wants("one by one"):
    bench.run("one by one", sides)             # interleaved; the JSON grows with every round
    bench.compare("one by one", "messages_per_s", "ours", "zmq", at_least=7)
    bench.bars("one by one", "messages_per_s")  # ring-one-by-one-messages_per_s.png
sys.exit(bench.finish())                       # tables; 1 when a bar was missed
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from benchmarks.measure import (
    Machine,
    Options,
    Round,
    Side,
    Spread,
    interleave,
    missing_package,
    ratio,
    spread,
    values,
)

QUICK = "quick run: shows that it runs, its figures mean nothing"
WIDTH_MIN = 100
# More figures of a single side stand below each other.
COLUMNS_MAX = 6


class Comparison(Struct, frozen=True):
    """`side` over `against`, or, when that is empty, the figure itself; `bar` is what it was to
    reach, `verdict` what came of it: met, missed, not judged (no bar, or a quick run), not run."""

    table: str
    figure: str
    side: str
    against: str
    ratio: Spread | None
    bar: str
    verdict: str


class Record(Struct):
    """The JSON file."""

    question: str
    about: str
    command: list[str]
    quick: bool
    machine: Machine
    rounds: list[Round]
    comparisons: list[Comparison]
    not_installed: dict[str, str]
    failed: dict[str, str]
    notes: list[str]


class Bench:
    """One benchmark's run and its report. The first lines of `about` say what is asked."""

    def __init__(self, question: str, about: str | None, options: Options, host: Machine) -> None:
        self.options = options
        self.record = Record(
            question, (about or "").strip(), sys.argv[1:], options.quick, host, [], [], {}, {}, []
        )
        self._console = Console(soft_wrap=False)
        if self._console.width < WIDTH_MIN:
            self._console = Console(width=WIDTH_MIN)
        self._tables: dict[str, list[Side]] = {}
        self._seen: set[str] = set()  # tables and sides that there are

    def wants(self, table: str) -> bool:
        """Whether --only leaves it in."""
        self._seen.add(table)
        return not self.options.only or table in self.options.only

    def run(self, table: str, sides: Sequence[Side], *, rounds: int | None = None) -> None:
        """Runs the sides interleaved; what is not installed gets its row all the same, and so does
        what failed: none of its rounds counts then."""
        wanted = self.options.sides
        self._seen |= {side.name for side in sides}
        sides = [side for side in sides if not wanted or side.name in wanted]
        self._tables[table] = sides
        for side in sides:
            if side.install:
                self.record.not_installed[side.name] = side.install
        for one in interleave(table, sides, rounds or self.options.rounds):
            if one.failure:
                self._fail(one)
                continue
            self.record.rounds.append(one)
            self._save()
            figures = ", ".join(f"{name} {_number(value)}" for name, value in one.figures.items())
            sys.stderr.write(f"{table} · round {one.number + 1} · {one.side}: {figures}\n")

    def _fail(self, one: Round) -> None:
        message = f"failed in round {one.number + 1}: {one.failure}"
        self.record.failed[f"{one.table} · {one.side}"] = message
        others = [r for r in self.record.rounds if (r.table, r.side) != (one.table, one.side)]
        self.record.rounds[:] = others
        self._save()
        sys.stderr.write(f"{one.table} · {one.side}: {message}\n")

    def spread(self, table: str, figure: str, side: str) -> Spread | None:
        """A side's figure over its rounds; None when it did not run."""
        return spread(values(self.record.rounds, table, figure, side).values())

    def compare(
        self,
        table: str,
        figure: str,
        side: str,
        against: str,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> Spread | None:
        """Notes the ratio `side` over `against`; a bar is judged by its median."""
        found = ratio(self.record.rounds, table, figure, side, against)
        judged = (found.median, found.median) if found else None
        self._judge(Comparison(table, figure, side, against, found, "", ""), judged,
                    at_least, at_most)  # fmt: skip
        return found

    def limit(
        self,
        table: str,
        figure: str,
        side: str,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> Spread | None:
        """Notes the figure itself; a bar is judged by the worst round: what is promised to hold
        always has to hold in each."""
        found = self.spread(table, figure, side)
        judged = (found.low, found.high) if found else None
        self._judge(Comparison(table, figure, side, "", found, "", ""), judged, at_least, at_most)
        return found

    def note(self, text: str) -> None:
        """A line under the tables and in the JSON."""
        self.record.notes.append(text)

    def bars(self, table: str, figure: str, *, log: bool = False) -> None:
        """A bar for each side, with lowest and highest: QUESTION-TABLE-FIGURE.png."""
        found = {side.name: self.spread(table, figure, side.name) for side in self._tables[table]}
        shown = {name: one for name, one in found.items() if one is not None}
        if not shown or not self._can_plot():
            return
        with _axes(self, f"{table}-{figure}") as (axes,):
            medians = [one.median for one in shown.values()]
            axes.barh(
                list(shown), medians, xerr=_whiskers(list(shown.values())), capsize=3, log=log
            )
            axes.invert_yaxis()
            axes.set_xlabel(figure.replace("_", " "))
            axes.set_title(f"{self.record.question}: {table}")

    def lines(
        self,
        name: str,
        x_label: str,
        y_label: str,
        series: Mapping[str, Mapping[float, Spread | None]],
        *,
        log_x: bool = True,
    ) -> None:
        """A line for each series, x to spread, with lowest and highest: QUESTION-NAME.png."""
        if not self._can_plot():
            return
        with _axes(self, name) as (axes,):
            _draw(axes, y_label, series, marker="o")
            if log_x:
                axes.set_xscale("log")
            axes.set_xlabel(x_label)
            axes.set_title(f"{self.record.question}: {name}")

    def panels(
        self,
        name: str,
        x_label: str,
        panels: Mapping[str, Mapping[str, Mapping[float, Spread | None]]],
        *,
        log_x: bool = False,
    ) -> None:
        """As `lines`, one below the other over the same x, by the label of their y."""
        if not self._can_plot():
            return
        with _axes(self, name, len(panels)) as rows:
            for axes, (y_label, series) in zip(rows, panels.items(), strict=True):
                _draw(axes, y_label, series, marker="o" if log_x else "")
            if log_x:
                rows[0].set_xscale("log")  # of all: they share it
            rows[0].set_title(f"{self.record.question}: {name}")
            rows[-1].set_xlabel(x_label)

    def finish(self) -> int:
        """Prints everything; 1 when a bar was missed, else 0."""
        self._save()
        host = self.record.machine
        self._console.print(
            f"{host.cpu}, {host.cores} cores, Linux {host.kernel}, Python {host.python},"
            f" load average at the start {host.load_1m:.2f}",
            highlight=False,
        )
        for table, sides in self._tables.items():
            self._console.print(self._table(table, sides))
        if self.record.comparisons:
            self._console.print(self._ratios())
        for note in [*self.record.notes, *([QUICK] if self.options.quick else [])]:
            self._console.print(note, highlight=False)
        self._console.print(f"JSON and plots: {self.options.folder}", highlight=False)
        if unknown := {*self.options.only, *self.options.sides} - self._seen:
            there = ", ".join(sorted(self._seen))
            self._console.print(f"there is no {', '.join(sorted(unknown))}; there is: {there}")
            return 2
        missed = any(one.verdict == "missed" for one in self.record.comparisons)
        return int(missed or bool(self.record.failed))

    def _table(self, table: str, sides: Sequence[Side]) -> Table:
        rounds = [one for one in self.record.rounds if one.table == table]
        figures = list(dict.fromkeys(name for one in rounds for name in one.figures))
        shown = Table(title=f"{self.record.question}: {table}", title_justify="left")
        if len(sides) == 1 and len(figures) > COLUMNS_MAX:
            (side,) = sides
            shown.add_column("figure")
            shown.add_column(f"{side.name}\nmedian (min-max)", justify="right")
            for name in figures:
                shown.add_row(name.replace("_", " "), _cell(self.spread(table, name, side.name)))
            return shown
        shown.add_column("side")
        for name in figures:
            shown.add_column(f"{name.replace('_', ' ')}\nmedian (min-max)", justify="right")
        if not figures:
            shown.add_column("")  # says why there are none
        for side in sides:
            cells = [_cell(self.spread(table, name, side.name)) for name in figures]
            instead = self.record.failed.get(f"{table} · {side.name}", "")
            instead = f"not installed: {side.install}" if side.install else instead
            if instead:
                cells = [instead, *[""] * (len(figures) - 1)]
            shown.add_row(side.name, *cells)
        return shown

    def _judge(
        self,
        one: Comparison,
        judged: tuple[float, float] | None,
        at_least: float | None,
        at_most: float | None,
    ) -> None:
        """`judged`: the value that a lower bar is for, and the one that an upper bar is for."""
        bar = f">= {at_least:g}" if at_least is not None else ""
        bar = f"<= {at_most:g}" if at_most is not None else bar
        if judged is None:
            verdict = "not run"
        elif self.options.quick or not bar:
            verdict = "not judged"
        else:
            low = at_least is None or judged[0] >= at_least
            verdict = "met" if low and (at_most is None or judged[1] <= at_most) else "missed"
        self.record.comparisons.append(msgspec.structs.replace(one, bar=bar, verdict=verdict))

    def _ratios(self) -> Table:
        title = "ratios, pair by pair; figures over nothing, judged by the worst round"
        if all(one.against for one in self.record.comparisons):
            title = "ratios, pair by pair"
        shown = Table(title=title, title_justify="left")
        for name in ("table", "figure", "of", "over"):
            shown.add_column(name)
        for name in ("ratio or figure\nmedian (min-max)", "bar"):
            shown.add_column(name, justify="right")
        shown.add_column("")
        for one in self.record.comparisons:
            figure = one.figure.replace("_", " ")
            shown.add_row(
                one.table, figure, one.side, one.against, _cell(one.ratio), one.bar, one.verdict
            )
        return shown

    def _can_plot(self) -> bool:
        install = missing_package("matplotlib", "matplotlib")
        if install and f"no plots: {install}" not in self.record.notes:
            self.note(f"no plots: {install}")
        return not install

    def _save(self) -> None:
        self.options.folder.mkdir(parents=True, exist_ok=True)
        path = self.options.folder / f"{self.record.question}.json"
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self.record), indent=1))


@contextlib.contextmanager
def _axes(bench: Bench, name: str, count: int = 1) -> Iterator[list[Any]]:
    """A plot's axes, from the top down over the same x, saved at the end."""
    import matplotlib as mpl  # noqa: PLC0415 - takes a second, and a benchmark may be imported only

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, rows = pyplot.subplots(
        count, sharex=True, squeeze=False, figsize=(9, 5 if count == 1 else 3 * count),
        layout="constrained",
    )  # fmt: skip
    yield [row[0] for row in rows]
    if bench.options.quick:
        figure.text(0.5, 0.5, "quick run", fontsize=60, alpha=0.15, ha="center", va="center")
    file = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")
    bench.options.folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(bench.options.folder / f"{bench.record.question}-{file}.png", dpi=120)
    pyplot.close(figure)


def _draw(
    axes: Any, y_label: str, series: Mapping[str, Mapping[float, Spread | None]], *, marker: str
) -> None:
    for label, points in series.items():
        shown = {x: one for x, one in points.items() if one is not None}
        axes.errorbar(
            list(shown),
            [one.median for one in shown.values()],
            yerr=_whiskers(list(shown.values())),
            label=label,
            capsize=3,
            marker=marker,
        )
    axes.set_ylim(bottom=0)
    axes.set_ylabel(y_label)
    axes.legend()


def _whiskers(spreads: Sequence[Spread]) -> list[list[float]]:
    return [
        [one.median - one.low for one in spreads],
        [one.high - one.median for one in spreads],
    ]


def _cell(one: Spread | None) -> str:
    if one is None:
        return ""
    if one.count == 1:
        return _number(one.median)
    return f"{_number(one.median)} ({_number(one.low)}-{_number(one.high)})"


def _number(value: float) -> str:
    """Three digits at least, and no false precision."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

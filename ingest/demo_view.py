"""What `rasher demo` shows: a table that grows by a line each second, or, in a terminal, gauges."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

EVENTS_SHOWN = 6
BAR_WIDTH = 40
DOTS_PER_INCH = 120


class Sample(Struct, frozen=True):
    """One look. Rates are per second since the look before, latencies (ms) those of that time;
    `stock`: kilograms left; `delivered`: by partner; `wanted`: events that there are."""

    at_s: float
    accepted_per_s: float
    done_per_s: float
    depth: int
    capacity: int
    waiting: int
    p50_ms: float
    p99_ms: float
    stock: int
    stock_of: int
    sold_out: int
    skus: int
    wanted: int
    delivered: dict[str, int]


class View(Protocol):
    """Where the demo goes on."""

    def show(self, sample: Sample) -> None: ...
    def say(self, text: str) -> None: ...


class Lines:
    """Plain text, to be kept."""

    def __init__(self, partners: Sequence[str]) -> None:
        self._partners = partners
        self._headed = False

    def show(self, sample: Sample) -> None:
        """One line; before the first a heading."""
        if not self._headed:
            self._headed = True
            names = "".join(f"{name:>9}" for name in self._partners)
            _put(
                "   time   in/s  done/s  in ring  waiting  p50 ms  p99 ms   stock  sold out" + names
            )
        _put(
            f"{sample.at_s:5.0f} s {sample.accepted_per_s:6,.0f} {sample.done_per_s:7,.0f}"
            f" {sample.depth:8,} {sample.waiting:8,} {sample.p50_ms:7,.0f} {sample.p99_ms:7,.0f}"
            f" {sample.stock:7,} {sample.sold_out:9,}"
            + "".join(f"{sample.delivered[name]:9,}" for name in self._partners)
        )

    def say(self, text: str) -> None:
        """A line between."""
        _put(f"        -- {text}")


class Gauges:
    """For a terminal: what is now, and the last things that were said."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._said: list[str] = []
        self._sample: Sample | None = None

    def show(self, sample: Sample) -> None:
        """In the place of the one before."""
        self._sample = sample
        self._draw()

    def say(self, text: str) -> None:
        """Below the gauges."""
        self._said = [*self._said, text][-EVENTS_SHOWN:]
        self._draw()

    def _draw(self) -> None:
        said = Text("\n".join(self._said), style="dim")
        parts = [gauges(self._sample)] if self._sample else []
        self._live.update(Group(*parts, said), refresh=True)


def gauges(sample: Sample) -> RenderableType:
    """The table of gauges."""
    table = Table.grid(padding=(0, 2))
    rows: list[tuple[str, int, int, str]] = [
        ("ring", sample.depth, sample.capacity, f"{sample.depth} of {sample.capacity} slots"),
        ("waiting", sample.waiting, max(sample.waiting, 1000), f"{sample.waiting:,} clients"),
        ("stock", sample.stock, sample.stock_of,
         f"{sample.stock:,} kg, {sample.sold_out} of {sample.skus} skus sold out"),
    ]  # fmt: skip
    rows += [
        (name, count, max(sample.wanted, 1), f"{count:,} of {sample.wanted:,} events delivered")
        for name, count in sample.delivered.items()
    ]
    table.add_row(
        f"{sample.at_s:.0f} s",
        f"answered in p50 {sample.p50_ms:,.0f} ms, p99 {sample.p99_ms:,.0f} ms",
        f"in {sample.accepted_per_s:,.0f}/s, done {sample.done_per_s:,.0f}/s",
    )
    for name, value, most, text in rows:
        table.add_row(name, ProgressBar(most, value, width=BAR_WIDTH), text)
    return table


@contextmanager
def view(partners: Sequence[str]) -> Iterator[View]:
    """Gauges where somebody looks, else lines."""
    if not sys.stdout.isatty():
        yield Lines(partners)
        return
    with Live(console=Console(), auto_refresh=False) as live:
        yield Gauges(live)


def draw(samples: Sequence[Sample], marks: Sequence[tuple[float, str]], path: Path) -> None:
    """The plot. Raises OSError, ImportError without matplotlib."""
    matplotlib: Any = import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot: Any = import_module("matplotlib.pyplot")
    figure, rows = pyplot.subplots(4, sharex=True, figsize=(9, 9), layout="constrained")
    series: list[tuple[str, dict[str, list[float]]]] = [
        ("orders a second", {"taken in": [one.accepted_per_s for one in samples],
                             "done": [one.done_per_s for one in samples]}),
        ("orders", {"in the ring": [one.depth for one in samples],
                    "waiting for room": [one.waiting for one in samples]}),
        ("answered in, ms", {"p50": [one.p50_ms for one in samples],
                             "p99": [one.p99_ms for one in samples]}),
        ("in all", {"kg in stock": [one.stock for one in samples],
                    **{f"delivered, {name}": [one.delivered[name] for one in samples]
                       for name in samples[0].delivered}}),
    ]  # fmt: skip
    for axes, (label, lines) in zip(rows, series, strict=True):
        for name, values in lines.items():
            axes.plot([one.at_s for one in samples], values, label=name)
        for at_s, _ in marks:
            axes.axvline(at_s, color="grey", linestyle=":", linewidth=1)
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper right", fontsize="small")
        axes.grid(visible=True, alpha=0.3)
    for at_s, text in marks:
        rows[0].annotate(text, (at_s, 1.02), xycoords=("data", "axes fraction"), fontsize="small")
    rows[-1].set_xlabel("seconds")
    figure.savefig(path, dpi=DOTS_PER_INCH)
    pyplot.close(figure)


def _put(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()

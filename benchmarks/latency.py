"""How long does a client wait for its answer?

An open-loop sender posts one-line orders at half of what Rasher can take on one core, and the same
to an nginx that only answers 202: latency counts from the time that an order was due, so a stall
shows in all the orders that it held up. Rasher is the whole program, as it comes, with its worker
on the server's core; the sender has the other core to itself and never sleeps. A second table and
plot show a burst: two seconds at ten times the rate, which is more than Rasher can take.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import stock
from benchmarks.accept import CONNECTIONS, COST, NGINX, post
from benchmarks.cores import load_core, on_core, own_cpu_s
from benchmarks.measure import (
    Figures,
    Options,
    Side,
    Spread,
    machine,
    missing_package,
    missing_program,
    parse_options,
    spread,
)
from benchmarks.nginx import missing_nginx, nginx
from benchmarks.orders import BODIES
from benchmarks.program import on_server_core, scratch
from benchmarks.report import Bench
from benchmarks.sender import Phase, Seconds, Sent, command, load_sent
from benchmarks.stock import NotDone

SENDING_S, QUICK_SENDING_S = 20.0, 1.0
WARM_UP_S = 1.0
CAPACITY_S, QUICK_CAPACITY_S = 5, 1
CAPACITY_ROUNDS = 3
SHARE = 0.5
# Ten times that is twice the capacity.
BURST_SHARE, BURST_TIMES = 0.2, 10
# Before the burst, the burst, afterwards.
PHASES_S, QUICK_PHASES_S = (3.0, 2.0, 10.0), (0.5, 0.2, 1.0)
BURST_CONNECTIONS = 256
SLICE_S = 0.1
NORMAL_TIMES = 2
RASHER, STEADY, BURST = "Rasher", "half of its capacity", "burst"
PERCENTILES = {"p50": 50, "p90": 90, "p99": 99, "p99.9": 99.9}
CURVE = (10, 25, 50, 75, 90, 95, 98, 99, 99.5, 99.9, 99.95, 99.99)
NS_PER_S, NS_PER_US, US_PER_S, MS_PER_S = 1e9, 1e3, 1e6, 1e3
SHORTEST_NS, LONGEST_NS = 1000, 10**11

# The port, and the processes that answer there.
Start = Callable[[Path], AbstractContextManager[tuple[int, list[int]]]]


@contextmanager
def rasher(folder: Path) -> Iterator[tuple[int, list[int]]]:
    """As it comes, with stock."""
    stock.make_database(folder)
    # Like nginx, it keeps nothing on disk here: what a sync adds is accept's question.
    with on_server_core(folder, "--durability", "memory") as program:
        yield program.port, program.role("front")


@contextmanager
def plain_nginx(folder: Path) -> Iterator[tuple[int, list[int]]]:
    """One worker process."""
    with nginx(folder) as server:
        yield server.port, server.pids


def capacity_per_s(options: Options) -> float:
    """Orders a second that Rasher answers on the server's core, posted as fast as it does."""
    rates = []
    for _ in range(1 if options.quick else CAPACITY_ROUNDS):
        with scratch("latency", options.folder) as folder, rasher(folder) as (port, _):
            post(port, WARM_UP_S, CONNECTIONS, *BODIES)
            seconds = QUICK_CAPACITY_S if options.quick else CAPACITY_S
            posted = post(port, seconds, CONNECTIONS, *BODIES)
            if posted.refused or posted.broken:
                raise NotDone(f"{posted.refused} refused, {posted.broken} without an answer")
            rates.append(posted.requests / posted.seconds)
    return statistics.median(rates)


def send(port: int, folder: Path, phases: Sequence[Phase], connections: int) -> Sent:
    """All of it, by a sender of its own core. Raises NotDone when an order was not answered 2xx."""
    path = folder / "sent.npz"
    words = command(port, path, phases, connections, "--spin")
    patience_s = sum(phase.duration_s for phase in phases) + 120
    subprocess.run(on_core(load_core(), words), check=True, timeout=patience_s)
    sent = load_sent(path)
    if not sent.answered.all():
        raise NotDone(f"{np.count_nonzero(~sent.answered)} of {len(sent.status)} not answered 2xx")
    return sent


class Steady:
    """Rounds at one rate. `totals`: a histogram of each side, in nanoseconds, over its rounds."""

    def __init__(self, options: Options, rate_per_s: float) -> None:
        self._options = options
        self._rate_per_s = rate_per_s
        self.totals: dict[str, Any] = {}

    def run(self, name: str, start: Start) -> Figures:
        """One round, after a warm-up at the same rate."""
        sending_s = QUICK_SENDING_S if self._options.quick else SENDING_S
        with scratch("latency", self._options.folder) as folder, start(folder) as (port, fronts):
            send(port, folder, [Phase(self._rate_per_s, WARM_UP_S)], CONNECTIONS)
            front_s = own_cpu_s(fronts)
            sent = send(port, folder, [Phase(self._rate_per_s, sending_s)], CONNECTIONS)
            front_s = own_cpu_s(fronts) - front_s
        histogram = histogram_of(sent)
        if name in self.totals:
            self.totals[name].add(histogram)
        else:
            self.totals[name] = histogram
        figures = {
            f"{label}_us": histogram.get_value_at_percentile(percent) / NS_PER_US
            for label, percent in PERCENTILES.items()
        }
        figures[COST] = front_s / len(sent.status) * US_PER_S
        figures["max_us"] = histogram.get_max_value() / NS_PER_US
        return figures | {"sent_late_p99_us": float(np.percentile(sent.late_s, 99)) * US_PER_S}

    def keep(self, bench: Bench) -> None:
        """The whole distributions: a file of each side for HDR histogram's plotter, and a plot."""
        series: dict[str, dict[float, Spread | None]] = {}
        for name, total in self.totals.items():
            stem = name.split(",")[0].lower()
            with (self._options.folder / f"latency-{stem}.hgrm").open("wb") as file:
                total.output_percentile_distribution(file, NS_PER_US)
            series[name] = {
                1 / (1 - percent / 100): only(total.get_value_at_percentile(percent) / NS_PER_US)
                for percent in CURVE
            }
        bench.lines("percentiles", "one of so many orders waits at least", "us", series)


class Burst:
    """Rounds of a burst. `slices`: of each round, the orders due in each SLICE_S of it."""

    def __init__(self, options: Options, rate_per_s: float) -> None:
        self._options = options
        before_s, burst_s, after_s = QUICK_PHASES_S if options.quick else PHASES_S
        self.over_s = before_s + burst_s
        self._phases = [
            Phase(rate_per_s, before_s),
            Phase(rate_per_s * BURST_TIMES, burst_s),
            Phase(rate_per_s, after_s),
        ]
        self.rounds: list[Sent] = []

    def run(self) -> Figures:
        """One round."""
        with scratch("latency", self._options.folder) as folder, rasher(folder) as (port, _):
            send(port, folder, self._phases[:1], BURST_CONNECTIONS)
            sent = send(port, folder, self._phases, BURST_CONNECTIONS)
        self.rounds.append(sent)
        before = sent.latency_s[sent.intended_s < self._phases[0].duration_s]
        normal_s = float(np.median(before))
        return {
            "before_p50_us": normal_s * US_PER_S,
            "longest_ms": float(sent.latency_s.max()) * MS_PER_S,
            "normal_after_s": normal_after_s(sent, self.over_s, normal_s * NORMAL_TIMES),
        }

    def draw(self, bench: Bench) -> None:
        """Latency, and what was due and answered, over time; medians of the rounds."""
        latency: dict[str, dict[float, Spread | None]] = {"p50": {}, "p99": {}}
        rates: dict[str, dict[float, Spread | None]] = {"due": {}, "answered": {}}
        for at_s in np.arange(0, sum(phase.duration_s for phase in self._phases), SLICE_S):
            middle = float(at_s) + SLICE_S / 2
            due = [slice_of(sent, sent.intended_s, float(at_s)) for sent in self.rounds]
            for label, points in latency.items():
                points[middle] = spread(
                    float(np.percentile(one, PERCENTILES[label])) * MS_PER_S
                    for one in due
                    if len(one)
                )
            rates["due"][middle] = spread(len(one) / SLICE_S for one in due)
            rates["answered"][middle] = spread(
                len(slice_of(sent, sent.intended_s + sent.latency_s, float(at_s))) / SLICE_S
                for sent in self.rounds
            )
        bench.lines("burst", "due at, s", "latency, ms", latency, log_x=False)
        bench.lines("burst-rates", "s", "orders per s", rates, log_x=False)


def slice_of(sent: Sent, times_s: Seconds, at_s: float) -> Seconds:
    """The latencies of the orders whose time lies in the slice that begins there."""
    return sent.latency_s[(times_s >= at_s) & (times_s < at_s + SLICE_S)]


def normal_after_s(sent: Sent, over_s: float, limit_s: float) -> float:
    """How long after that time the median of every slice stays within the limit; inf: never."""
    end_s = float(sent.intended_s[-1])
    ends = np.arange(over_s, end_s - SLICE_S, SLICE_S)
    slow = [at for at in ends if np.median(slice_of(sent, sent.intended_s, at)) > limit_s]
    if not slow:
        return 0.0
    return float("inf") if slow[-1] == ends[-1] else float(slow[-1] + SLICE_S - over_s)


def histogram_of(sent: Sent) -> Any:
    """Of nanoseconds, exact to three digits."""
    from hdrh.histogram import HdrHistogram  # noqa: PLC0415 - a peer's package, not always there

    histogram = HdrHistogram(SHORTEST_NS, LONGEST_NS, 3)
    for latency_ns in (sent.latency_s * NS_PER_S).astype(np.int64).tolist():
        histogram.record_value(latency_ns)
    return histogram


def only(value: float) -> Spread | None:
    """A point without whiskers."""
    return spread([value])


def run_tables(bench: Bench, capacity: float) -> None:
    """Both tables."""
    wrk = missing_program("wrk", "wrk") or missing_package("hdrh", "hdrhistogram")
    if bench.wants(STEADY):
        steady = Steady(bench.options, capacity * SHARE)
        sides = [
            Side(RASHER, partial(steady.run, RASHER, rasher), wrk),
            Side(NGINX, partial(steady.run, NGINX, plain_nginx), wrk or missing_nginx()),
        ]
        bench.run(STEADY, sides)
        bench.compare(STEADY, "p50_us", RASHER, NGINX, at_most=3)
        bench.compare(STEADY, "p99_us", RASHER, NGINX, at_most=10)
        bench.compare(STEADY, COST, NGINX, RASHER)
        steady.keep(bench)
    if bench.wants(BURST):
        burst = Burst(bench.options, capacity * BURST_SHARE)
        bench.run(BURST, [Side(RASHER, burst.run, wrk)])
        burst.draw(bench)


def run(options: Options) -> int:
    """All of it; the exit code of the benchmark."""
    options.folder.mkdir(parents=True, exist_ok=True)
    host = machine(["uvicorn", "uvloop", "httptools", "hdrhistogram"], [["nginx", "-v"]])
    bench = Bench("latency", __doc__, options, host)
    capacity = 0.0 if missing_program("wrk", "wrk") else capacity_per_s(options)
    bench.note(f"capacity: {capacity:,.0f} orders per second on the server's core")
    run_tables(bench, capacity)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(run(parse_options(__doc__)))

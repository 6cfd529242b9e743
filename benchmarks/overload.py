"""What happens when ten times as many orders come as can be worked off?

A processor settles 300 orders a second and no more. An open-loop sender offers 3,000 a second for a
minute, over more connections than there are clients waiting, while a second one goes on with 100 a
second as before and after: its orders tell when things are normal again. Orders wait a second for
room, then they are refused with 503. In the end every order that was answered 202 has to be in the
database once, and no other; memory, and what waits, is looked at ten times a second.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from msgspec import Struct

from benchmarks.cores import load_core, on_core
from benchmarks.measure import Figures, Options, Side, Spread, machine, parse_options, spread
from benchmarks.memory import (
    MIB,
    Bound,
    bound_of,
    bound_of_requests,
    file_bytes,
    resident_bytes,
)
from benchmarks.orders import BODIES
from benchmarks.program import Program, on_server_core, scratch
from benchmarks.report import Bench
from benchmarks.sender import Phase, Seconds, Sent, command, load_sent, request_of
from benchmarks.servers import python
from benchmarks.stand_ins import PACE_PER_S
from benchmarks.stock import NotDone
from processors.settings import Settings, load_settings
from ringbuf import Ring

OFFERED_PER_S, NORMAL_PER_S = 10.0 * PACE_PER_S, 100.0
FULL_TIMEOUT_S = 1.0
# Enough for all that are offered in the time that an order waits, with room to spare; and few
# enough that each is used again before the server closes it.
CONNECTIONS, NORMAL_CONNECTIONS = 3_600, 200
FLAGS = (
    "--processor", "benchmarks.stand_ins:paced", "--full-timeout", str(FULL_TIMEOUT_S),
)  # fmt: skip
SAMPLE_S, SLICE_S = 0.1, 0.25
# What a sender's process needs before it sends; the normal one goes on for as much longer.
START_S, QUICK_START_S = 3.0, 0.7
# Above it the ring is not as empty as before.
DEPTH_SHARE_MAX = 0.1
NORMAL_TIMES = 2
DRAIN_S_MAX, AUDIT_S_MAX, SENDER_S_MAX = 30.0, 300.0, 120.0
TABLE, SIDE = "ten times too many", "Rasher"
US_PER_S, MS_PER_S = 1e6, 1e3


class Times(Struct, frozen=True):
    """Seconds at the normal rate alone, of overload, and at the normal rate again."""

    before_s: float
    over_s: float
    after_s: float
    start_s: float

    @property
    def total_s(self) -> float:
        """How long orders come at the normal rate."""
        return self.start_s + self.before_s + self.start_s + self.over_s + self.after_s


FULL = Times(5.0, 60.0, 15.0, START_S)
QUICK = Times(0.3, 0.8, 1.2, QUICK_START_S)


class Sample(Struct, frozen=True):
    """One look. `at_s`: since 1970; `depth`: orders that wait; `memory`: bytes, the ring's too."""

    at_s: float
    depth: int
    memory: int


class Story(Struct, frozen=True):
    """What was seen and noted in one round. Times since 1970; `calm_s`: until then only normal
    orders came. `commits_s`: of each order in the database."""

    idle_bytes: int
    calm_s: float
    samples: list[Sample]
    normal: Sent
    flood: Sent
    commits_s: Seconds
    lost: int

    @property
    def began_s(self) -> float:
        """The first order too many."""
        return self.flood.began_s

    @property
    def ended_s(self) -> float:
        """The last one."""
        return self.flood.began_s + float(self.flood.intended_s[-1])


@contextmanager
def sending(
    program: Program, stem: Path, phase: Phase, connections: int
) -> Iterator[subprocess.Popen[bytes]]:
    """A sender at work, on the load's core; STEM.npz is there when it ends, STEM.ledger too."""
    words = command(
        program.port, stem.with_suffix(".npz"), [phase], connections,
        "--ledger", str(stem.with_suffix(".ledger")),
    )  # fmt: skip
    with subprocess.Popen(on_core(load_core(), words)) as process:
        try:
            yield process
        finally:
            process.kill()


class Watch:
    """Looks at a program every SAMPLE_S."""

    def __init__(self, program: Program, ring: Ring) -> None:
        self._ring = ring
        self._pids = program.pids
        self._path = program.ring_path()
        self.samples: list[Sample] = []

    def until(self, done: Callable[[], bool], patience_s: float, what: str) -> None:
        """Until that is so. Raises NotDone."""
        deadline = time.monotonic() + patience_s
        while not done():
            if time.monotonic() > deadline:
                raise NotDone(f"{what}: not within {patience_s:g} s")
            memory = resident_bytes(self._pids) + file_bytes(self._path)
            self.samples.append(Sample(time.time(), self._ring.depth, memory))
            time.sleep(SAMPLE_S)

    def is_empty(self) -> bool:
        """Nothing waits, and nothing is in hand."""
        held = any(self._ring.held_count(index) for index in range(self._ring.readers))
        return not (self._ring.depth or held)


def run_round(options: Options) -> Story:
    """One round: a new program, both senders, then the audit. Raises NotDone."""
    times = QUICK if options.quick else FULL
    with scratch("overload", options.folder) as folder, on_server_core(folder, *FLAGS) as program:
        pids, idle_bytes = program.pids, resident_bytes(program.pids)
        with program.ring() as ring:
            watch = Watch(program, ring)
            calm_s = send_both(program, folder, times, watch)
            watch.until(watch.is_empty, DRAIN_S_MAX, "the ring is empty")
        if program.pids != pids:
            raise NotDone(f"processes {pids} at the start, {program.pids} at the end")
        audit(folder)
        normal, flood = (load_sent(folder / f"{name}.npz") for name in ("normal", "flood"))
        check_answers([normal, flood])
        commits_s, lost = compare(folder, [normal, flood])
        return Story(idle_bytes, calm_s, watch.samples, normal, flood, commits_s, lost)


def send_both(program: Program, folder: Path, times: Times, watch: Watch) -> float:
    """The normal orders, and meanwhile those that are too many. Returns when these began to
    connect."""
    normal = Phase(NORMAL_PER_S, times.total_s)
    flood = Phase(OFFERED_PER_S, times.over_s)
    patience_s = times.total_s + SENDER_S_MAX
    with sending(program, folder / "normal", normal, NORMAL_CONNECTIONS) as first:
        start_s = time.monotonic() + times.start_s + times.before_s
        watch.until(lambda: time.monotonic() >= start_s, patience_s, "normal orders")
        calm_s = time.time()
        with sending(program, folder / "flood", flood, CONNECTIONS) as second:
            senders = (first, second)
            watch.until(lambda: all(is_over(one) for one in senders), patience_s, "senders")
    return calm_s


def is_over(sender: subprocess.Popen[bytes]) -> bool:
    """Raises NotDone when it failed."""
    code = sender.poll()
    if code:
        raise NotDone(f"a sender ended with exit code {code}")
    return code == 0


def check_answers(sent: Sequence[Sent]) -> None:
    """Each order was taken in or refused for want of room. Raises NotDone."""
    statuses = Counter(int(status) for one in sent for status in one.status)
    if set(statuses) - {202, 503}:
        raise NotDone(f"answers by status, 0 for none: {dict(statuses)}")


def audit(folder: Path) -> None:
    """`rasher audit` with the ledger of both senders. Raises NotDone."""
    ledger = folder / "ledger"
    ledger.write_text("".join((folder / f"{n}.ledger").read_text() for n in ("normal", "flood")))
    words = ["--data-dir", str(folder), "audit", "--ledger", str(ledger)]
    done = subprocess.run(
        python("supervisor", *words),
        capture_output=True, text=True, check=False, timeout=AUDIT_S_MAX,
    )  # fmt: skip
    if done.returncode:
        raise NotDone(f"rasher audit: {done.stdout}{done.stderr}")


def compare(folder: Path, sent: Sequence[Sent]) -> tuple[Seconds, int]:
    """When each order was committed, and how many of those answered 202 were not. Raises NotDone
    for one that was refused and is there all the same."""
    answered = {line.split()[0] for line in (folder / "ledger").read_text().splitlines()}
    accepted = sum(int(one.answered.sum()) for one in sent)
    if len(answered) != accepted:
        raise NotDone(f"{accepted} orders answered 202, with {len(answered)} ids")
    with closing(sqlite3.connect(folder / "rasher.db")) as database:
        found = database.execute("SELECT lower(hex(id)), committed_us FROM orders").fetchall()
    stored = {key for key, _ in found}
    answered = {order_id.replace("-", "") for order_id in answered}
    if stored - answered:
        raise NotDone(f"{len(stored - answered)} orders are in the database that nobody took in")
    return np.array([us for _, us in found]) / US_PER_S, len(answered - stored)


def settings_of(folder: Path) -> Settings:
    """Those that the program runs with."""
    words = ["--data-dir", str(folder), "--fronts", "1", "--workers", "1", *FLAGS]
    return load_settings(words, {})[0]


def bounds(idle_bytes: int) -> tuple[Bound, Bound]:
    """What the settings allow, and of that what these senders can use."""
    settings = settings_of(Path("/"))
    request = max(len(request_of(0, body)) for body in BODIES)
    connections = CONNECTIONS + NORMAL_CONNECTIONS
    return (
        bound_of(settings, idle_bytes),
        bound_of_requests(settings, idle_bytes, connections, request),
    )


def figures_of(story: Story) -> Figures:
    """Of one round."""
    over_s = story.ended_s - story.began_s
    during = (story.commits_s >= story.began_s) & (story.commits_s < story.ended_s)
    sent_s = story.flood.intended_s + story.flood.late_s
    settings_bound, load_bound = bounds(story.idle_bytes)
    peak = max(sample.memory for sample in story.samples)
    return {
        "offered_per_s": float(np.count_nonzero(sent_s <= over_s)) / over_s,
        "goodput_percent": float(np.count_nonzero(during)) / over_s / PACE_PER_S * 100,
        "refused_percent": float(np.mean(story.flood.status == 503)) * 100,
        "lost_orders": float(story.lost),
        "peak_mib": peak / MIB,
        "peak_of_settings_bound": peak / settings_bound.total,
        "peak_of_load_bound": peak / load_bound.total,
        "second_half_over_first": growth(story),
        "normal_after_s": normal_after_s(story),
        "drained_after_s": drained_after_s(story.samples, story.ended_s, full_depth()),
        "before_p50_ms": float(np.median(calm(story))) * MS_PER_S,
    }


def full_depth() -> float:
    """Above it the ring counts as full still."""
    return DEPTH_SHARE_MAX * settings_of(Path("/")).ring.capacity


def growth(story: Story) -> float:
    """The most memory in the second half of the overload over that in the first. Raises NotDone."""
    middle_s = (story.began_s + story.ended_s) / 2
    halves = [(story.began_s, middle_s), (middle_s, story.ended_s)]
    first, second = (
        max((one.memory for one in story.samples if start <= one.at_s < end), default=0)
        for start, end in halves
    )
    if not (first and second):
        raise NotDone("one half of the overload was not looked at")
    return second / first


def calm(story: Story) -> Seconds:
    """Latencies of the orders of which the last was answered before anything was too much."""
    normal = story.normal
    return normal.latency_s[normal.began_s + normal.intended_s < story.calm_s - SLICE_S]


def normal_after_s(story: Story) -> float:
    """How long after the overload's end every slice of normal orders is taken in, all of them, and
    their median is at most twice what it was, or what one in a hundred took; never: as long as was
    looked."""
    before = calm(story)
    limit_s = max(NORMAL_TIMES * float(np.median(before)), float(np.percentile(before, 99)))
    due_s = story.normal.began_s + story.normal.intended_s - story.ended_s
    latest_s = float(due_s[-1]) - SLICE_S
    bad_s = None
    for at_s in np.arange(0, latest_s, SLICE_S):
        these = (due_s >= at_s) & (due_s < at_s + SLICE_S)
        taken = bool((story.normal.status[these] == 202).all())
        if not taken or np.median(story.normal.latency_s[these]) > limit_s:
            bad_s = float(at_s)
    if bad_s is None:
        return 0.0
    return bad_s + SLICE_S


def drained_after_s(samples: Sequence[Sample], ended_s: float, depth: float) -> float:
    """How long after that time no more than `depth` orders wait; never: as long as was looked."""
    later = [sample for sample in samples if sample.at_s >= ended_s]
    deep = [sample.at_s for sample in later if sample.depth > depth]
    return deep[-1] + SAMPLE_S - ended_s if deep else 0.0


class Overload:
    """Rounds, and what is drawn of them."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.stories: list[Story] = []

    def run(self) -> Figures:
        """One."""
        story = run_round(self._options)
        self.stories.append(story)
        return figures_of(story)

    def draw(self, bench: Bench) -> None:
        """Rates, what waits, memory and latency over time, from the overload's begin on."""
        step_s = SLICE_S if self._options.quick else 1.0
        first_s = max(story.normal.began_s - story.began_s for story in self.stories)
        last_s = min(story.samples[-1].at_s - story.began_s for story in self.stories)
        starts = [float(at) for at in np.arange(np.ceil(first_s), last_s, step_s)]
        bench.panels(
            "over time",
            "s since the overload began",
            {
                "orders per s": {
                    "offered": self._points(starts, step_s, offered),
                    "answered 202": self._points(starts, step_s, partial(answered, 202)),
                    "answered 503": self._points(starts, step_s, partial(answered, 503)),
                    "committed": self._points(starts, step_s, committed),
                },
                "orders that wait": {"ring": self._points(starts, step_s, depth_of)},
                "MiB": {"all processes and the ring": self._points(starts, step_s, memory_of)},
                "ms": {"normal orders, p50": self._points(starts, step_s, latency_of)},
            },
        )

    def _points(
        self,
        starts: Sequence[float],
        step_s: float,
        look: Callable[[Story, float, float], float | None],
    ) -> dict[float, Spread | None]:
        found = {}
        for at_s in starts:
            values = [
                look(story, story.began_s + at_s, story.began_s + at_s + step_s)
                for story in self.stories
            ]
            found[at_s + step_s / 2] = spread(one for one in values if one is not None)
        return found


def rate_of(times_s: Seconds, start_s: float, end_s: float) -> float:
    """How many a second there are in between."""
    return float(np.count_nonzero((times_s >= start_s) & (times_s < end_s))) / (end_s - start_s)


def offered(story: Story, start_s: float, end_s: float) -> float:
    """Orders a second that were due."""
    both = (story.normal, story.flood)
    return sum(rate_of(one.began_s + one.intended_s, start_s, end_s) for one in both)


def answered(status: int, story: Story, start_s: float, end_s: float) -> float:
    """Answers a second of that status."""
    total = 0.0
    for one in (story.normal, story.flood):
        these = one.status == status
        times_s = one.began_s + one.intended_s[these] + one.latency_s[these]
        total += rate_of(times_s, start_s, end_s)
    return total


def committed(story: Story, start_s: float, end_s: float) -> float:
    """Orders a second."""
    return rate_of(story.commits_s, start_s, end_s)


def depth_of(story: Story, start_s: float, end_s: float) -> float | None:
    """The most that waited."""
    return max((one.depth for one in story.samples if start_s <= one.at_s < end_s), default=None)


def memory_of(story: Story, start_s: float, end_s: float) -> float | None:
    """The most that was taken, in MiB."""
    found = [one.memory / MIB for one in story.samples if start_s <= one.at_s < end_s]
    return max(found, default=None)


def latency_of(story: Story, start_s: float, end_s: float) -> float | None:
    """Of the normal orders that were due in between."""
    due_s = story.normal.began_s + story.normal.intended_s
    these = story.normal.latency_s[(due_s >= start_s) & (due_s < end_s)]
    return float(np.median(these)) * MS_PER_S if len(these) else None


def judge(bench: Bench) -> None:
    """The bars."""
    limit = partial(bench.limit, TABLE, side=SIDE)
    limit("offered_per_s", at_least=0.95 * OFFERED_PER_S)
    limit("goodput_percent", at_least=90)
    limit("lost_orders", at_most=0)
    limit("peak_of_settings_bound", at_most=1)
    limit("peak_of_load_bound", at_most=1)
    limit("second_half_over_first", at_most=1.05)
    limit("normal_after_s", at_most=5)
    limit("drained_after_s", at_most=5)


def run(options: Options) -> int:
    """All of it; the exit code of the benchmark."""
    options.folder.mkdir(parents=True, exist_ok=True)
    bench = Bench("overload", __doc__, options, machine(["uvicorn", "uvloop", "httptools"]))
    overload = Overload(options)
    if bench.wants(TABLE):
        bench.run(TABLE, [Side(SIDE, overload.run)])
    if overload.stories:
        judge(bench)
        idle_bytes = max(story.idle_bytes for story in overload.stories)
        for what, one in zip(("the settings allow", "these senders can use"), bounds(idle_bytes),
                             strict=True):  # fmt: skip
            bench.note(f"{what} {one}")
        overload.draw(bench)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(run(parse_options(__doc__, rounds=3)))

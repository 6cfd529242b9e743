"""What does it cost to take an order in?

One order of 140 bytes POSTed per request, 64 connections that stay, wrk as the sender on one core,
the server on another. Counted is the CPU of the processes that answer HTTP alone, for each order
that was answered; whoever takes the orders away runs on the sender's core and is shown beside.
Rasher's worker has a processor that rejects everything at once, its ring more room than orders
come, so that nothing waits: how waiting does is for `latency` and `overload` to say.
"""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path

import msgspec
from msgspec import Struct

from benchmarks.cores import load_core, on_core, own_cpu_s, server_core
from benchmarks.end_to_end import Posted
from benchmarks.measure import (
    Figures,
    Options,
    Side,
    Spread,
    cpu_s,
    find_program,
    machine,
    missing_program,
    parse_options,
)
from benchmarks.nginx import missing_nginx, nginx
from benchmarks.orders import BODIES, long_body_of
from benchmarks.program import MEMORY, running, scratch
from benchmarks.report import Bench
from benchmarks.servers import Server, free_port, listens, python
from benchmarks.stock import NotDone
from processors.keys import change_keys, new_key

POSTING_S, QUICK_POSTING_S = 5, 1
WARM_UP_S = 1
CONNECTIONS = 64
# Room for whatever comes while the worker waits for its turn on the core.
ROOMY = ("--capacity", "65536", "--slot-bytes", "512")
CAPACITIES = (1, 16, 100, 1_000, 65_536)
ROOMY_LONG = ("--capacity", "16384", "--slot-bytes", "8192")
LINES_OF = (1, 10, 100)
PROCESSES = (1, 2, 3, 4)
TAKEN_S_MAX = 30.0
SCRIPT = Path(__file__).with_name("accept.lua")
COST, RATE, OTHERS = "front_cpu_per_order_us", "accepted_per_s", "others_cpu_per_order_us"
WAITED = "waited_percent"
MAIN, FRONTS, WORKERS, LINES = "64 connections", "fronts", "workers", "lines"
CAPACITY, DURABILITY = "capacity", "durability"
ON_DISK, IN_MEMORY = "disk", "memory"
LANE, ROUTE, SMALL = "Rasher", "Rasher, --lane off", "Rasher, capacity 100"
KEYED, KEYS = "Rasher, 100 keys", 100
NGINX = "nginx, return 202"
ASYNCIO = "Starlette, asyncio.Queue(100)"
MULTIPROCESSING = "Starlette, multiprocessing.Queue(100)"


class Target(Struct, frozen=True):
    """`fronts`: the processes whose CPU is judged; `roots`: all, with what they started; `taken`:
    how many orders have come in, and `waited`: how many of them found no room at first; None where
    nobody counts."""

    port: int
    fronts: list[int]
    roots: list[int]
    taken: Callable[[], int] | None = None
    waited: Callable[[], int] | None = None
    token: str = ""  # the key that the sender shows


Start = Callable[[Path], AbstractContextManager[Target]]


@contextmanager
def rasher(
    folder: Path, *flags: str, fronts: int = 1, workers: int = 1, pinned: bool = True
) -> Iterator[Target]:
    """The whole program with the null processor. Pinned: all of it on the server's core."""
    durability = ("--durability", "memory")  # as what it is compared with
    words = ("--processor", "benchmarks.stand_ins:null", *durability, *flags)
    core = server_core() if pinned else None
    with running(folder, *words, fronts=fronts, workers=workers, core=core) as program:
        yield Target(
            program.port, program.role("front"), [program.server.pid],
            program.accepted, program.waited,
        )  # fmt: skip


@contextmanager
def keyed(folder: Path, *flags: str) -> Iterator[Target]:
    """The same for known keys only, of which there are KEYS."""
    made = [new_key(f"client-{number}", ["submit"]) for number in range(KEYS)]
    path = folder / "keys.json"
    change_keys(path, lambda _: [key for key, _ in made])
    with rasher(folder, *flags, "--keys", str(path)) as target:
        yield msgspec.structs.replace(target, token=made[0][1])


@contextmanager
def starlette(folder: Path, kind: str) -> Iterator[Target]:
    """One of benchmarks/queues.py."""
    port = free_port()
    command = python("benchmarks.queues", kind, str(port))
    server = Server(on_core(server_core(), command), folder / "queue.log")
    try:
        server.wait_for(lambda: listens(port))
        yield Target(port, [server.pid], [server.pid], partial(taken_of, port))
    finally:
        server.end()


@contextmanager
def plain_nginx(folder: Path) -> Iterator[Target]:
    """Nobody counts what it answers."""
    with nginx(folder) as server:
        yield Target(server.port, server.pids, [server.server.pid])


def taken_of(port: int) -> int:
    """What `GET /taken` says."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/taken", timeout=TAKEN_S_MAX) as answer:
        return int(answer.read())


def run_side(
    options: Options,
    start: Start,
    body: bytes = BODIES[0],
    *,
    pinned: bool = True,
    parent: Path = MEMORY,
) -> Figures:
    """One round: a new server, a warm-up, then what counts. `parent`: where its data lies."""
    with scratch("accept", parent) as folder, start(folder) as target:
        post(target.port, WARM_UP_S, CONNECTIONS, body, pinned=pinned, token=target.token)
        earlier = target.taken() if target.taken else 0
        waited = target.waited() if target.waited else 0
        front_s, all_s = own_cpu_s(target.fronts), cpu_s(*target.roots)
        posting_s = QUICK_POSTING_S if options.quick else POSTING_S
        posted = post(target.port, posting_s, CONNECTIONS, body, pinned=pinned, token=target.token)
        front_s, all_s = own_cpu_s(target.fronts) - front_s, cpu_s(*target.roots) - all_s
        check(target, posted, earlier)
        waited = target.waited() - waited if target.waited else 0
    figures = {
        COST: front_s / posted.requests * 1e6,
        RATE: posted.requests / posted.seconds,
        OTHERS: max(0.0, all_s - front_s) / posted.requests * 1e6,
        "answer_p50_ms": posted.p50_ms,
        "answer_p99_ms": posted.p99_ms,
    }
    if target.waited:
        figures[WAITED] = waited / posted.requests * 100
    return figures


def check(target: Target, posted: Posted, earlier: int) -> None:
    """Every answer was a good one, and every order that was answered is in. Raises NotDone."""
    if posted.refused or posted.broken:
        raise NotDone(f"{posted.refused} requests refused, {posted.broken} without an answer")
    if target.taken is None:
        return
    deadline = time.monotonic() + TAKEN_S_MAX
    while (count := target.taken() - earlier) < posted.requests:
        if time.monotonic() > deadline:
            raise NotDone(f"{count} of {posted.requests} answered orders came in")
        time.sleep(0.05)


def post(
    port: int,
    seconds: float,
    connections: int,
    *bodies: bytes,
    pinned: bool = True,
    token: str = "",
) -> Posted:
    """wrk, one thread, on the load's core: each connection as fast as it is answered."""
    command = [str(find_program("wrk")), "-t1", f"-c{connections}", f"-d{seconds:g}s"]
    command += ["-H", f"authorization: Bearer {token}"] if token else []
    command += ["--timeout", "30s", "-s", str(SCRIPT), f"http://127.0.0.1:{port}", "--"]
    command += [body.decode() for body in bodies]
    done = subprocess.run(
        on_core(load_core(), command) if pinned else command,
        capture_output=True, text=True, check=True, timeout=seconds + 60,
    )  # fmt: skip
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Posted)


def with_flags(start: Callable[..., AbstractContextManager[Target]], *words: str) -> Start:
    """That start, with these words behind the folder."""

    def begin(folder: Path) -> AbstractContextManager[Target]:
        return start(folder, *words)

    return begin


def make_sides(options: Options, starts: dict[str, Start], body: bytes = BODIES[0]) -> list[Side]:
    """Sides of the same body, on cores of their own."""
    wrk = missing_program("wrk", "wrk")
    return [
        Side(
            name,
            partial(run_side, options, start, body),
            wrk or (missing_nginx() if name == NGINX else ""),
        )
        for name, start in starts.items()
    ]


def main_sides(options: Options) -> list[Side]:
    """Both ways of Rasher, the queues of Python, nginx."""
    starts: dict[str, Start] = {
        LANE: with_flags(rasher, *ROOMY),
        KEYED: with_flags(keyed, *ROOMY),
        ROUTE: with_flags(rasher, *ROOMY, "--lane", "off"),
        SMALL: with_flags(rasher),
        ASYNCIO: with_flags(starlette, "asyncio"),
        MULTIPROCESSING: with_flags(starlette, "multiprocessing"),
        NGINX: plain_nginx,
    }
    return make_sides(options, starts)


def lines_sides(options: Options) -> list[Side]:
    """Orders of 1, 10 and 100 lines."""
    found = []
    for lines in LINES_OF:
        starts: dict[str, Start] = {
            f"{LANE}, {lines}": with_flags(rasher, *ROOMY_LONG),
            f"{ASYNCIO}, {lines}": with_flags(starlette, "asyncio"),
        }
        found += make_sides(options, starts, long_body_of(lines))
    return found


def capacity_sides(options: Options) -> list[Side]:
    """From one slot to more than ever fill."""
    starts: dict[str, Start] = {
        f"{capacity:,}": with_flags(rasher, "--capacity", str(capacity), "--slot-bytes", "512")
        for capacity in CAPACITIES
    }
    return make_sides(options, starts)


def durability_sides(options: Options) -> list[Side]:
    """The same service with a journal and without, its data on the same disk; the kernel places
    the processes: on one core the thread that syncs would wait for the worker."""
    wrk = missing_program("wrk", "wrk")
    found = []
    for name in (ON_DISK, IN_MEMORY):
        start = partial(rasher_with, name)
        here = partial(run_side, options, start, pinned=False, parent=options.folder)
        found.append(Side(name, here, wrk))
    return found


def count_sides(options: Options, role: str) -> list[Side]:
    """1 to 4 fronts, or workers; the kernel places them."""
    wrk = missing_program("wrk", "wrk")
    found = []
    for count in PROCESSES:
        start = partial(rasher_of, role, count)
        found.append(Side(str(count), partial(run_side, options, start, pinned=False), wrk))
    return found


def rasher_of(role: str, count: int, folder: Path) -> AbstractContextManager[Target]:
    """So many of one role, and one of the other."""
    fronts, workers = (count, 1) if role == FRONTS else (1, count)
    return rasher(folder, *ROOMY, fronts=fronts, workers=workers, pinned=False)


def rasher_with(durability: str, folder: Path) -> AbstractContextManager[Target]:
    """Wherever the kernel wants it."""
    return rasher(folder, *ROOMY, "--durability", durability, pinned=False)


def run_main(bench: Bench) -> None:
    """The comparison with others."""
    if not bench.wants(MAIN):
        return
    bench.run(MAIN, main_sides(bench.options))
    bench.compare(MAIN, COST, LANE, ASYNCIO, at_most=1 / 4)
    bench.compare(MAIN, COST, LANE, MULTIPROCESSING)
    bench.compare(MAIN, COST, LANE, ROUTE)
    bench.compare(MAIN, COST, KEYED, LANE)
    bench.compare(MAIN, COST, NGINX, LANE, at_least=0.33)
    bench.bars(MAIN, COST)


def run_durability(bench: Bench) -> None:
    """What power loss costs."""
    if not bench.wants(DURABILITY):
        return
    bench.run(DURABILITY, durability_sides(bench.options))
    bench.compare(DURABILITY, RATE, ON_DISK, IN_MEMORY, at_least=0.7)
    bench.compare(DURABILITY, COST, ON_DISK, IN_MEMORY)
    bench.bars(DURABILITY, RATE)


def run_lines(bench: Bench) -> None:
    """Longer orders."""
    if not bench.wants(LINES):
        return
    bench.run(LINES, lines_sides(bench.options), rounds=bench.options.rounds)
    series = {
        name: {float(n): bench.spread(LINES, COST, f"{name}, {n}") for n in LINES_OF}
        for name in (LANE, ASYNCIO)
    }
    for lines in LINES_OF:
        bench.compare(LINES, COST, f"{LANE}, {lines}", f"{ASYNCIO}, {lines}")
    bench.lines(LINES, "lines of an order", COST.replace("_", " "), series)


def run_capacity(bench: Bench) -> None:
    """A smaller ring is full more often, and an order that waits costs more; apart from that its
    size is to cost nothing."""
    if not bench.wants(CAPACITY):
        return
    bench.run(CAPACITY, capacity_sides(bench.options))
    names = [f"{capacity:,}" for capacity in CAPACITIES]
    for smaller, larger in pairwise(names[:-1]):
        bench.compare(CAPACITY, COST, larger, smaller)
    for smaller in names[2:-1]:
        bench.compare(CAPACITY, COST, names[-1], smaller, at_most=1.2)
    bench.panels(
        CAPACITY,
        "capacity, orders",
        {
            COST.replace("_", " "): points_of(bench, COST),
            "waited for room, %": points_of(bench, WAITED),
        },
        log_x=True,
    )


def points_of(bench: Bench, figure: str) -> dict[str, dict[float, Spread | None]]:
    """A line of the sweep."""
    return {LANE: {float(n): bench.spread(CAPACITY, figure, f"{n:,}") for n in CAPACITIES}}


def run_counts(bench: Bench, role: str) -> None:
    """More processes."""
    if not bench.wants(role):
        return
    bench.run(role, count_sides(bench.options, role))
    series = {"accepted": {float(n): bench.spread(role, RATE, str(n)) for n in PROCESSES}}
    bench.lines(role, role, RATE.replace("_", " "), series, log_x=False)


def run(options: Options) -> int:
    """All of it; the exit code of the benchmark."""
    host = machine(
        ["uvicorn", "starlette", "uvloop", "httptools"], [["wrk", "-v"], ["nginx", "-v"]]
    )
    bench = Bench("accept", __doc__, options, host)
    run_main(bench)
    run_durability(bench)
    run_lines(bench)
    run_capacity(bench)
    run_counts(bench, FRONTS)
    run_counts(bench, WORKERS)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(run(parse_options(__doc__)))

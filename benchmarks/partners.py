"""By how much does order throughput fall when the partners who are told of outcomes are hostile?

The same orders over HTTP as in end_to_end, with nobody to be told, with ten partners who take all,
and with ten who hang, fail, reset, trickle, answer a gigabyte or redirect, beside two healthy ones.
Partners share the machine's cores with everything else, so their CPU and the relay's stand apart.
In the first round the healthy ones beside hostile ones have to be told of every single event, and
no attempt may take longer than it is given.
"""

from __future__ import annotations

import itertools
import socket
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import msgspec
from msgspec import Struct

from benchmarks import stock
from benchmarks.cores import own_cpu_s
from benchmarks.end_to_end import RATE, Service, count, last_commit_s, post, wait_quiet
from benchmarks.measure import Figures, Options, Side, machine, missing_program, parse_options
from benchmarks.program import Program, running, scratch
from benchmarks.receivers import SECRET, Heard
from benchmarks.report import Bench
from benchmarks.servers import Server, free_port, listens, python
from processors.attempts import ATTEMPT_S
from processors.webhooks import event_id

TABLE = "partners"
NONE, HEALTHY, HOSTILE = "nobody", "10 healthy", "10 hostile and 2"
GOOD = "healthy"
# A fifth hangs, fails, resets, trickles; a tenth has a gigabyte, a tenth redirects.
HOSTILE_KINDS = [
    *("hangs", "hangs", "fails", "fails", "resets", "resets", "trickles", "trickles"),
    *("endless", "redirects"),
]
KINDS = {NONE: [], HEALTHY: [GOOD] * 10, HOSTILE: [GOOD] * 2 + HOSTILE_KINDS}
POSTING_S, QUICK_POSTING_S, WARM_UP_S = 6, 1, 1
# A multiple of the sides, so that each comes first as often as the others; many, for one round's
# ratio is a tenth off as often as not.
ROUNDS = 12
CONNECTIONS = 64
# The relay yields to everybody: it may be that much late to end an attempt in a rush.
LATE_S_MAX = 3.0
TOLD_S_MAX, ENLISTED_S_MAX, REPORT_S_MAX = 300.0, 30.0, 30.0
LOOK_S = 0.2
LOST_BAR = 0.95
COST, RELAY, PARTNERS = "cpu_per_order_us", "relay_percent", "partners_percent"


class Partners:
    """The process with the partners of a side; of none, nothing."""

    def __init__(self, pid: int | None, report_port: int, folder: Path) -> None:
        self.pids = [] if pid is None else [pid]
        self._report_port = report_port
        self.flags: list[str] = []
        if pid is not None:
            config = folder / "rasher.toml"
            entries = [entry(number, one) for number, one in enumerate(self.heard())]
            config.write_text("".join(entries))
            self.flags = ["--config", str(config)]

    def heard(self) -> list[Heard]:
        """What came to each of them up to now."""
        if not self.pids:
            return []
        address = ("127.0.0.1", self._report_port)
        with socket.create_connection(address, REPORT_S_MAX) as link, link.makefile("rb") as told:
            return msgspec.json.decode(told.read(), type=list[Heard])


def entry(number: int, one: Heard) -> str:
    """A partner in rasher.toml."""
    url = f"http://127.0.0.1:{one.port}/"
    return f'[[webhooks]]\nname = "{one.kind}-{number}"\nurl = "{url}"\nsecret = "{SECRET}"\n'


@contextmanager
def listening(folder: Path, kinds: Sequence[str]) -> Iterator[Partners]:
    """One for each kind, in a process of their own."""
    if not kinds:
        yield Partners(None, 0, folder)
        return
    port = free_port()
    words = python("benchmarks.receivers", str(port), *kinds)
    server = Server(words, folder / "receivers.log")
    try:
        server.wait_for(lambda: listens(port))
        yield Partners(server.pid, port, folder)
    finally:
        server.end()


class Cpu(Struct, frozen=True):
    """Seconds up to `at_s`: of fronts and workers, of the relay, of the partners."""

    at_s: float
    orders_s: float
    relay_s: float
    partners_s: float


class Run:
    """One round's program, with a database of its own, and its partners."""

    def __init__(self, program: Program, partners: Partners, file: Path) -> None:
        self._program = program
        self._partners = partners
        self._file = file
        self._pids = program.pids
        self._working = program.role("front") + program.role("worker")
        self._relay = program.role("relay")

    def rush(self, posting_s: int, warm_up_s: int) -> Figures:
        """Orders as fast as they are taken. Raises NotDone."""
        service = Service(self._program.port, self._pids)
        if warm_up_s:
            post(service, warm_up_s, CONNECTIONS)
        earlier = wait_quiet(self._file, 0)
        told, before, began_s = self._told(), self._cpu(), time.time()
        posted = post(service, posting_s, CONNECTIONS)
        committed = wait_quiet(self._file, earlier + posted.requests - posted.refused) - earlier
        told, after = self._told() - told, self._cpu()
        if posted.refused or posted.broken:
            text = f"{posted.refused} requests refused, {posted.broken} without an answer"
            raise stock.NotDone(text)
        took_s = after.at_s - before.at_s
        return {
            RATE: committed / (last_commit_s(self._file) - began_s),
            COST: (after.orders_s - before.orders_s) / committed * 1e6,
            "answer_p99_ms": posted.p99_ms,
            RELAY: (after.relay_s - before.relay_s) / took_s * 100,
            PARTNERS: (after.partners_s - before.partners_s) / took_s * 100,
            "told_per_s": told / took_s,
        }

    def told_all(self) -> Figures:
        """Waits until each healthy partner was told of every event, and every other one was asked
        to the end once. Raises NotDone."""
        wanted, ids_sum = events_of(self._file)
        begun_s = last_commit_s(self._file)
        healthy = partial(all_told, wanted)
        self._until(healthy, f"{wanted} events told to all who are healthy")
        told_s = time.time() - begun_s
        self._until(all_asked, "an attempt at each partner has ended")
        heard = self._partners.heard()
        check_heard(heard, ids_sum)
        if self._program.pids != self._pids:
            raise stock.NotDone(
                f"processes {self._pids} at the start, {self._program.pids} at the end"
            )
        return {"told_after_s": told_s, "longest_attempt_s": max(one.longest_s for one in heard)}

    def _until(self, true: Callable[[Sequence[Heard]], bool], what: str) -> None:
        deadline = time.monotonic() + TOLD_S_MAX
        while not true(heard := self._partners.heard()):
            if time.monotonic() > deadline:
                raise stock.NotDone(f"{what}: not within {TOLD_S_MAX:g} s: {heard}")
            time.sleep(LOOK_S)

    def _told(self) -> int:
        return sum(one.events for one in self._partners.heard() if one.kind == GOOD)

    def _cpu(self) -> Cpu:
        trees = (self._working, self._relay, self._partners.pids)
        return Cpu(time.time(), *map(own_cpu_s, trees))


def all_told(wanted: int, heard: Sequence[Heard]) -> bool:
    """Whether all who are healthy had so many events."""
    return all(one.events >= wanted for one in heard if one.kind == GOOD)


def all_asked(heard: Sequence[Heard]) -> bool:
    """Whether at everybody an attempt has ended."""
    return all(one.ended for one in heard)


def events_of(file: Path) -> tuple[int, str]:
    """How many events there are, and the sum of their ids, as `Heard` has it."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10)) as database:
        rows = database.execute("SELECT order_id, round FROM outbox").fetchall()
    return len(rows), f"{sum(int.from_bytes(event_id(*row)) for row in rows):x}"


def check_heard(heard: Sequence[Heard], ids_sum: str) -> None:
    """Nothing but these events was told, signed, and no attempt took too long. Raises NotDone."""
    limit_s = ATTEMPT_S + LATE_S_MAX
    for one in heard:
        if one.forged or one.followed:
            raise stock.NotDone(f"a message without our signature, or a redirect followed: {one}")
        if one.longest_s > limit_s:
            raise stock.NotDone(f"an attempt of more than {limit_s:g} s: {one}")
        if one.kind == GOOD and one.ids_sum != ids_sum:
            raise stock.NotDone(f"other events than those of the database: {one}")


def enlisted(file: Path) -> int:
    """How many partners are known."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10)) as database:
        return int(database.execute("SELECT count(*) FROM endpoints").fetchone()[0])


def run_side(options: Options, kinds: Sequence[str], rounds: Iterator[int]) -> Figures:
    """One round: new partners, a new database, a new program; `rounds`: its number is the next.
    Raises NotDone."""
    whole = next(rounds) == 0 and bool(set(kinds) - {GOOD})
    posting_s, warm_up_s = (QUICK_POSTING_S, 0) if options.quick else (POSTING_S, WARM_UP_S)
    with scratch("partners", options.folder) as folder, listening(folder, kinds) as partners:
        file = stock.make_database(folder)
        with running(folder, *partners.flags) as program:
            program.server.wait_for(lambda: enlisted(file) == len(kinds))
            one = Run(program, partners, file)
            figures = one.rush(posting_s, warm_up_s)
            if whole:
                figures |= one.told_all()
        stock.check_settled(file, count(file))
    return figures


def run(options: Options) -> int:
    """All of it; the exit code of the benchmark."""
    options.folder.mkdir(parents=True, exist_ok=True)
    host = machine(["aiohttp", "uvloop", "sqlalchemy"], [["wrk", "-v"]])
    bench = Bench("partners", __doc__, options, host)
    if bench.wants(TABLE):
        wrk = missing_program("wrk", "wrk")
        sides = [
            Side(name, partial(run_side, options, kinds, itertools.count()), wrk)
            for name, kinds in KINDS.items()
        ]
        bench.run(TABLE, sides)
        bench.compare(TABLE, RATE, HOSTILE, NONE, at_least=LOST_BAR)
        bench.compare(TABLE, RATE, HOSTILE, HEALTHY, at_least=LOST_BAR)
        bench.compare(TABLE, RATE, HEALTHY, NONE)
        bench.compare(TABLE, COST, HOSTILE, NONE)
        bench.bars(TABLE, RATE)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(run(parse_options(__doc__, rounds=ROUNDS)))

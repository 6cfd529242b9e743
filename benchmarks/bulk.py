"""What does it cost to take in an order of a bulk?

The same order of 140 bytes, ORDERS times in one request, against Starlette taking one per request
from 64 connections, as in `accept`. The servers have one core, the sender the other. Counted is the
CPU of the processes that answer HTTP alone. Rasher has its 100 slots, which are full all the time,
and results are streamed back and read, or spooled and sent in the end; the third side has room for
all of them. The last two have a journal, on the disk of the results: the kernel places the
processes, for on one core the thread that syncs would wait for the worker.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial

import msgspec
from msgspec import Struct

from benchmarks.accept import ASYNCIO, COST, RATE, run_side, starlette, with_flags
from benchmarks.cores import load_core, on_core, own_cpu_s, server_core
from benchmarks.measure import Figures, Options, Side, machine, missing_program, parse_options
from benchmarks.orders import BODIES
from benchmarks.program import MEMORY, running, scratch
from benchmarks.report import Bench
from benchmarks.servers import python
from benchmarks.stock import NotDone

ORDERS, QUICK_ORDERS = 300_000, 5_000
WARM_UP_ORDERS = 5_000
AT_ONCE = 1_000
READ_BYTES = 65_536
SENT_S_MAX = 600.0
TABLE = "one request"
STREAMED, SPOOLED = "Rasher, streamed", "Rasher, spooled"
ROOMY = "Rasher, room for all"
DISK_STREAMED, DISK_SPOOLED = "Rasher, streamed, on disk", "Rasher, spooled, on disk"
# A bulk's order against a single one of Starlette's.
BAR = 1 / 30


class Sent(Struct, frozen=True):
    """What came of one bulk."""

    taken: int
    seconds: float


def send(port: int, orders: int, *, streamed: bool) -> Sent:
    """One bulk, from this process: a thread sends while results are read."""
    piece = b"".join(BODIES[place % len(BODIES)] + b"\n" for place in range(AT_ONCE))
    pieces = orders // AT_ONCE
    accept = b"accept: application/x-ndjson\r\n" if streamed else b""
    head = (
        b"POST /orders/bulk HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\n"
        b"connection: close\r\n%scontent-length: %d\r\n\r\n" % (accept, len(piece) * pieces)
    )
    begun_s, taken = time.perf_counter(), 0
    with socket.create_connection(("127.0.0.1", port), timeout=SENT_S_MAX) as connection:

        def write() -> None:
            connection.sendall(head)
            for _ in range(pieces):
                connection.sendall(piece)

        writing = threading.Thread(target=write)
        writing.start()
        tail = b""
        while data := connection.recv(READ_BYTES):
            data = tail + data
            taken += data.count(b'"order_id"')
            tail = data[-len(b'"order_id"') + 1 :]
        writing.join()
    return Sent(taken, time.perf_counter() - begun_s)


def run_bulk(options: Options, flags: Sequence[str], *, streamed: bool, disk: bool) -> Figures:
    """One round: a new server, a warm-up, then what counts."""
    words = ["--processor", "benchmarks.stand_ins:null", *flags]
    words += ["--durability", "disk" if disk else "memory"]
    orders = QUICK_ORDERS if options.quick else ORDERS
    parent, core = (options.folder, None) if disk else (MEMORY, server_core())
    with (
        scratch("bulk", parent) as folder,
        running(folder, *words, fronts=1, workers=1, core=core) as program,
    ):
        fronts = program.role("front")
        send_apart(program.port, WARM_UP_ORDERS, streamed=streamed, pinned=not disk)
        front_s = own_cpu_s(fronts)
        sent = send_apart(program.port, orders, streamed=streamed, pinned=not disk)
        front_s = own_cpu_s(fronts) - front_s
        if sent.taken != orders or program.accepted() != orders + WARM_UP_ORDERS:
            raise NotDone(f"{sent.taken} of {orders} told, {program.accepted()} came in")
    return {COST: front_s / orders * 1e6, RATE: orders / sent.seconds}


def send_apart(port: int, orders: int, *, streamed: bool, pinned: bool) -> Sent:
    """The same in a process of its own, on the load's core."""
    command = python("benchmarks.bulk", "--send", str(port), str(orders))
    command += ["--streamed"] if streamed else []
    done = subprocess.run(
        on_core(load_core(), command) if pinned else command,
        capture_output=True, check=True, timeout=SENT_S_MAX,
    )  # fmt: skip
    return msgspec.json.decode(done.stdout, type=Sent)


def sides(options: Options) -> list[Side]:
    """Bulks, and what they are compared with."""
    single = partial(run_side, options, with_flags(starlette, "asyncio"))
    found = [Side(ASYNCIO, single, missing_program("wrk", "wrk"))]
    roomy = ["--capacity", str(ORDERS + WARM_UP_ORDERS), "--slot-bytes", "256"]
    for name, flags, streamed, disk in (
        (STREAMED, [], True, False),
        (SPOOLED, [], False, False),
        (ROOMY, roomy, True, False),
        (DISK_STREAMED, [], True, True),
        (DISK_SPOOLED, [], False, True),
    ):
        found.append(Side(name, partial(run_bulk, options, flags, streamed=streamed, disk=disk)))
    return found


def run(options: Options) -> int:
    """All of it; the exit code of the benchmark."""
    host = machine(["uvicorn", "starlette", "uvloop", "httptools"], [["wrk", "-v"]])
    bench = Bench("bulk", __doc__, options, host)
    if bench.wants(TABLE):
        bench.run(TABLE, sides(options))
        for name in (STREAMED, SPOOLED, ROOMY):
            bench.compare(TABLE, COST, name, ASYNCIO, at_most=BAR)
        for name in (DISK_STREAMED, DISK_SPOOLED):
            bench.compare(TABLE, COST, name, ASYNCIO)
        bench.bars(TABLE, COST)
    return bench.finish()


def main(argv: Sequence[str]) -> int:
    """The benchmark, or with --send its sender."""
    if argv[:1] != ["--send"]:
        return run(parse_options(__doc__))
    parser = argparse.ArgumentParser("bulk --send")
    parser.add_argument("port", type=int)
    parser.add_argument("orders", type=int)
    parser.add_argument("--streamed", action="store_true")
    given = parser.parse_args(argv[1:])
    sent = send(given.port, given.orders, streamed=given.streamed)
    sys.stdout.buffer.write(msgspec.json.encode(sent))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

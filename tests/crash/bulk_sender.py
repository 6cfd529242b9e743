"""One bulk from a process of its own, of any length in constant memory.

    python -m tests.crash.bulk_sender PORT ORDERS LEDGER [--spooled] [--kill PID --after LINES]

Results are read while lines are sent, and each goes to the ledger at once. `--kill`: that process,
when so many results have been read. The last line of stdout is JSON, as `Report` has it.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

READ_BYTES = 2**16
LINES_AT_ONCE = 500
RESULT = re.compile(rb'\{"line":(\d+),"order_id":"([0-9a-f-]{36})"\}')
REFUSAL = re.compile(rb'\{"line":(\d+),"error":')


@dataclass
class Report:
    """`first_kib`, `last_kib`: the most memory this process had after a tenth, and in the end."""

    taken: int = 0
    refused: int = 0
    whole: bool = False
    in_order: bool = True
    first_kib: int = 0
    last_kib: int = 0


class Bulk:
    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given
        # Without a timeout: spooled results come after the last line. Who started us has one.
        self._socket = socket.create_connection(("127.0.0.1", given.port))
        self._last = 0
        self.report = Report()

    def run(self) -> Report:
        sending = threading.Thread(target=self._send)
        sending.start()
        with self._given.ledger.open("a") as ledger, suppress(ConnectionError):
            self._read(ledger.write)
        self._socket.close()
        sending.join()
        self.report.last_kib = most_kib()
        return self.report

    def _send(self) -> None:
        accept = "" if self._given.spooled else "accept: application/x-ndjson\r\n"
        head = (
            f"POST /orders/bulk HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\n"
            f"{accept}connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        with suppress(OSError):  # killed; whoever reads notices, too
            self._socket.sendall(head.encode())
            for begin in range(0, self._given.orders, LINES_AT_ONCE):
                end = min(begin + LINES_AT_ONCE, self._given.orders)
                data = b"".join(map(line, range(begin, end)))
                self._socket.sendall(b"%x\r\n%s\r\n" % (len(data), data))
            self._socket.sendall(b"0\r\n\r\n")

    def _read(self, write: Callable[[str], object]) -> None:
        tail = b""
        while data := self._socket.recv(READ_BYTES):
            # Results are lines, in either form; of what is between them nothing looks like one.
            *lines, tail = (tail + data).split(b"\n")
            self._note(b"\n".join(lines), write)
        self.report.whole = tail == b"" or tail.endswith(b"}")
        self._note(tail, write)

    def _note(self, text: bytes, write: Callable[[str], object]) -> None:
        report = self.report
        for found in RESULT.finditer(text):
            number = int(found[1])
            report.in_order &= number > self._last
            self._last = number
            write(f"{found[2].decode()} 202\n")
            report.taken += 1
        report.refused += len(REFUSAL.findall(text))
        if not report.first_kib and report.taken >= self._given.orders // 10:
            report.first_kib = most_kib()
        if self._given.kill and report.taken >= self._given.after:
            os.kill(self._given.kill, signal.SIGKILL)
            self._given.kill = 0


def line(number: int) -> bytes:
    """An order that tells its number."""
    order = b'{"customer":"Funky Foods","reference":"bulk-%d","lines":[%s]}\n'
    return order % (number, b'{"sku":"BELLY","quantity":"1"}')


def most_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("bulk_sender")
    parser.add_argument("port", type=int)
    parser.add_argument("orders", type=int)
    parser.add_argument("ledger", type=Path)
    parser.add_argument("--spooled", action="store_true")
    parser.add_argument("--kill", type=int, default=0)
    parser.add_argument("--after", type=int, default=0)
    report = Bulk(parser.parse_args(argv)).run()
    sys.stdout.write(msgspec.json.encode(asdict(report)).decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Rasher as a benchmark runs it: the whole program, private, with its processes by role."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.cores import on_core, server_core
from benchmarks.measure import descendants
from benchmarks.servers import Server, free_port, python
from processors.tally import ACCEPT_US, BUCKETS, bucket, sums
from ringbuf import Ring

MEMORY = Path("/dev/shm")
# Many times what a put takes, and less than a commit does.
WAITED_US = 500


class Program:
    """One run. `port`: HTTP on loopback; `data_dir`: with its database."""

    def __init__(self, server: Server, port: int, data_dir: Path) -> None:
        self.server = server
        self.port = port
        self.data_dir = data_dir

    @property
    def pids(self) -> list[int]:
        """Supervisor, fronts, workers."""
        return [self.server.pid, *descendants(self.server.pid)]

    def role(self, name: str) -> list[int]:
        """The processes with that role: front, worker, relay."""
        return [pid for pid in self.pids if f"{_title(pid)} ".startswith(f"rasher {name} ")]

    def ring(self) -> Ring:
        """Its ring, attached to this process."""
        return Ring.attach(Path(self.ring_path()))

    def ring_path(self) -> str:
        """The ring's file."""
        return (self.data_dir / "ring.path").read_text().splitlines()[0]

    def accepted(self) -> int:
        """Orders taken in since the start."""
        with self.ring() as ring:
            return ring.tail

    def waited(self) -> int:
        """Orders that were put later than WAITED_US after their request was whole: they found the
        ring full. Exact to a quarter of that."""
        with self.ring() as ring:
            total = sums(ring.pages())
        return sum(total[ACCEPT_US + bucket(WAITED_US) : ACCEPT_US + BUCKETS])


@contextmanager
def running(
    data_dir: Path, *flags: str, fronts: int = 1, workers: int = 1, core: int | None = None
) -> Iterator[Program]:
    """Started and ready. `flags`: as for `rasher`; `core`: all of it runs there."""
    ring_dir = Path(tempfile.mkdtemp(prefix="rasher-bench-", dir=MEMORY))
    port = free_port()
    words = [
        "--data-dir", str(data_dir), "--ring-dir", str(ring_dir), "--port", str(port),
        "--fronts", str(fronts), "--workers", str(workers), "--graceful-timeout", "5", *flags,
    ]  # fmt: skip
    command = python("supervisor", *words)
    server = Server(command if core is None else on_core(core, command), data_dir / "rasher.log")
    try:
        program = Program(server, port, data_dir)
        server.wait_for(lambda: server.says("ready on "))
        server.wait_for(
            lambda: (len(program.role("front")), len(program.role("worker"))) == (fronts, workers)
        )
        yield program
    finally:
        server.end()
        shutil.rmtree(ring_dir)


@contextmanager
def scratch(prefix: str, parent: Path) -> Iterator[Path]:
    """A folder that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def on_server_core(data_dir: Path, *flags: str) -> Iterator[Program]:
    """One front and one worker on the server's core."""
    with running(data_dir, *flags, core=server_core()) as program:
        yield program


def _title(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    return ""

"""A process that forks actors in a millisecond, where a new Python would take a quarter second.

It never attaches a ring itself and has no threads: a fork of it is as good as a new process.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.ringbuf.kit import PATIENCE_S

ROOT = Path(__file__).absolute().parents[2]


@dataclass(frozen=True)
class Actor:
    """A process that plays one role of actors.py."""

    pid: int
    pidfd: int
    outcome: Path

    def send(self, sign: int) -> None:
        with suppress(ProcessLookupError):  # it has ended meanwhile
            signal.pidfd_send_signal(self.pidfd, sign)

    def ended(self, patience_s: float = PATIENCE_S) -> bool:
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        return bool(poller.poll(patience_s * 1000))

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        assert self.ended(), f"actor {self.pid} outlives SIGKILL"

    def result(self) -> Any:
        """What its role returned; raises AssertionError with its traceback when it failed."""
        assert self.ended(), f"actor {self.pid} does not end"
        assert self.outcome.exists(), f"actor {self.pid} was killed"
        answer = json.loads(self.outcome.read_text())
        assert "error" not in answer, answer["error"]
        return answer["result"]


class Nursery:
    """`command`: the module that is the process, with its arguments."""

    def __init__(self, *command: str) -> None:
        command = (sys.executable, "-W", "error", "-m", *(command or ("tests.ringbuf.actors",)))
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._actors: list[Actor] = []

    def start(self, role: str, ring: str | os.PathLike[str], *args: Any) -> Actor:
        """Runs ``role(path of the ring, *args)`` in a process of its own."""
        path = os.fspath(ring)
        outcome = Path(f"{path}.actor{len(self._actors)}.json")
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps([role, str(outcome), path, *args]).encode() + b"\n")
        stdin.flush()
        pid = int(stdout.readline())
        pidfd = os.pidfd_open(pid)
        stdin.write(b"go\n")  # only now: a pid that has been reaped could not be opened
        stdin.flush()
        self._actors.append(Actor(pid, pidfd, outcome))
        return self._actors[-1]

    def end_all(self) -> None:
        for actor in self._actors:
            actor.kill()
            os.close(actor.pidfd)
        self._actors.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.end_all()
        self._process.communicate(timeout=PATIENCE_S)

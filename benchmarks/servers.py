"""Servers of a benchmark: started private, waited for, and ended by their process ids."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.measure import descendants

READY_S_MAX = 60.0
END_S_MAX = 20.0
POLL_S = 0.02
LOG_LINES_SHOWN = 20


class NotReady(Exception):
    """A server did not start, or ended too early; the text has the end of its log."""


class Server:
    """One program with all that it starts. `log`: where its output goes."""

    def __init__(
        self, command: Sequence[str], log: Path, environ: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environ,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def wait_for(self, ready: Callable[[], object]) -> None:
        """Polls until it is. Raises NotReady."""
        deadline = time.monotonic() + READY_S_MAX
        while not ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
                raise NotReady("\n".join([" ".join(map(str, self._process.args)), *lines]))  # type: ignore[arg-type]
            time.sleep(POLL_S)

    def says(self, text: str) -> bool:
        """Whether its log has that."""
        return text in self.log.read_text(errors="replace")

    def end(self) -> None:
        """TERM, and KILL for whatever of it is still there in the end."""
        below = descendants(self.pid)
        with suppress(subprocess.TimeoutExpired):
            if self._process.poll() is None:
                self._process.terminate()
                self._process.wait(END_S_MAX)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        # Their session is the server's: a pid that was given to somebody else meanwhile is not.
        for pid in below:
            with suppress(ProcessLookupError):
                if os.getsid(pid) == self.pid:
                    os.kill(pid, signal.SIGKILL)


def python(module: str, *words: str) -> list[str]:
    """The command of one of our modules."""
    return [sys.executable, "-m", module, *words]


def free_port() -> int:
    """Free now; somebody may take it before the server does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Whether somebody accepts connections there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True

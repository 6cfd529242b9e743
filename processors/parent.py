"""The parent's side of a child process: starting it, signalling it, hearing of its end at once.

Everything comes through one selector: a child's readiness by its status pipe, its end by a pidfd,
the parent's own signals by the wake-up descriptor. All of it in the main thread of a process that
has no other: children are started without fork handlers, and PR_SET_PDEATHSIG follows the thread.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from msgspec import Struct

from processors.child import LAUNCH_FLAG, READY, TERMINAL_SIGNALS, Launch, Role, write_launch
from processors.settings import Settings
from ringbuf import Ring

Key = tuple[Role, int]
Command = Callable[[Role], Sequence[str]]

MODULES: dict[Role, str] = {"front": "ingest.front", "worker": "processors.worker"}
ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class HeardReady(Struct, frozen=True):
    key: Key


class HeardEnd(Struct, frozen=True):
    """returncode as in subprocess: negative = ended by that signal."""

    key: Key
    pid: int
    returncode: int


class HeardSignal(Struct, frozen=True):
    number: int


Heard = HeardReady | HeardEnd | HeardSignal


def module_command(role: Role) -> Sequence[str]:
    return [sys.executable, "-m", MODULES[role]]


class Process:
    """A child that was started and has not been reaped."""

    def __init__(self, key: Key, popen: subprocess.Popen[bytes], status_fd: int) -> None:
        self.key = key
        self.popen = popen
        self.status_fd = status_fd
        self.pidfd = os.pidfd_open(popen.pid)

    def reap(self) -> int:
        code = self.popen.wait()
        os.close(self.pidfd)
        os.close(self.status_fd)
        return code


class Processes:
    """The children of this process. `command`: what starts a role; the launch flag is added."""

    def __init__(
        self, settings: Settings, ring: Ring, listener: socket.socket, command: Command
    ) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.settings = settings
        self.ring = ring
        self.listener = listener
        self.command = command
        self.by_key: dict[Key, Process] = {}
        self.selector = selectors.DefaultSelector()
        # Only this process has the write end: children read its end when we are gone.
        self.alive_r, self.alive_w = os.pipe()
        self.wake_r, self.wake_w = os.pipe()

    @contextlib.contextmanager
    def hearing_signals(self) -> Iterator[None]:
        """While it lasts, TERM, INT and QUIT are heard by wait() and do nothing else."""
        os.set_blocking(self.wake_r, False)
        os.set_blocking(self.wake_w, False)
        self.selector.register(self.wake_r, selectors.EVENT_READ)
        before = {number: signal.signal(number, lambda *_: None) for number in ASKING}
        fd = signal.set_wakeup_fd(self.wake_w, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(fd)
            for number, handler in before.items():
                signal.signal(number, handler)

    def start(self, key: Key, adopt: list[int]) -> int:
        """-> the pid. Raises OSError."""
        assert key not in self.by_key, "an index is given out only after its last owner is gone"
        status_r, status_w = os.pipe()
        try:
            popen = self._popen(key, adopt, status_w)
        except BaseException:
            os.close(status_r)
            raise
        finally:
            os.close(status_w)
        process = Process(key, popen, status_r)
        self.by_key[key] = process
        self.selector.register(process.pidfd, selectors.EVENT_READ, process)
        self.selector.register(status_r, selectors.EVENT_READ, process)
        return popen.pid

    def _popen(self, key: Key, adopt: list[int], status_fd: int) -> subprocess.Popen[bytes]:
        role, index = key
        listen_fd = self.listener.fileno() if role == "front" else None
        launch = Launch(
            role=role,
            index=index,
            settings=self.settings,
            ring_fd=self.ring.fd,
            listen_fd=listen_fd,
            alive_fd=self.alive_r,
            status_fd=status_fd,
            parent_pid=os.getpid(),
            adopt=adopt,
        )
        launch_fd = write_launch(launch)
        passed = [self.ring.fd, self.alive_r, status_fd, launch_fd]
        passed += [listen_fd] if listen_fd is not None else []
        # Blocked, not handled: a child between exec and its own SIG_IGN must not die of Ctrl-C.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINAL_SIGNALS)
        try:
            return subprocess.Popen(  # noqa: S603 - our own interpreter, no shell
                [*self.command(role), LAUNCH_FLAG, str(launch_fd)],
                stdin=subprocess.DEVNULL,
                pass_fds=passed,
                close_fds=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(launch_fd)

    def signal(self, key: Key, number: int) -> None:
        process = self.by_key.get(key)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process.pidfd, number)

    def wait(self, timeout_s: float) -> list[Heard]:
        heard: list[Heard] = []
        for ready, _ in self.selector.select(timeout_s):
            if ready.fd == self.wake_r:
                heard += [HeardSignal(n) for n in os.read(self.wake_r, 4096) if n in ASKING]
            elif ready.fd == ready.data.status_fd:
                heard += self._read_status(ready.data)
            else:
                heard.append(self._reap(ready.data))
        return heard

    def _read_status(self, process: Process) -> list[Heard]:
        if self.by_key.get(process.key) is not process:
            return []
        self.selector.unregister(process.status_fd)
        return [HeardReady(process.key)] if os.read(process.status_fd, 64) == READY else []

    def _reap(self, process: Process) -> HeardEnd:
        del self.by_key[process.key]
        for fd in (process.pidfd, process.status_fd):
            with contextlib.suppress(KeyError):
                self.selector.unregister(fd)
        return HeardEnd(process.key, process.popen.pid, process.reap())

    def close(self) -> None:
        """Kills and reaps whoever is left; the descriptors of this object are closed."""
        for process in self.by_key.values():
            process.popen.kill()
            process.reap()
        self.by_key.clear()
        self.selector.close()
        for fd in (self.alive_r, self.alive_w, self.wake_r, self.wake_w):
            os.close(fd)

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

from processors.child import (
    IGNORED_SIGNALS,
    LAUNCH_FLAG,
    READY,
    STANDING_BY,
    Launch,
    Role,
    give_turn,
    write_launch,
)
from processors.keys import Key as ApiKey
from processors.settings import UNKNOWN_DATABASE, Settings
from ringbuf import Ring

Key = tuple[Role, int]
Command = Callable[[Role], Sequence[str]]

MODULES: dict[Role, str] = {
    "front": "ingest.front",
    "worker": "processors.worker",
    "relay": "processors.relay_process",
}
# What a child leaves in writing is looked at from its beginning.
WORDS_BYTES_MAX = 3000
RESHAPING = (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU)
ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, *RESHAPING)


class HeardReady(Struct, frozen=True):
    """heir: it is not installed; but for a front's it stands by, and is heard again when it
    works."""

    key: Key
    heir: bool


class HeardEnd(Struct, frozen=True):
    """returncode as in subprocess: negative = ended by that signal. words: its last ones."""

    key: Key
    pid: int
    returncode: int
    heir: bool
    words: str = ""


class HeardSignal(Struct, frozen=True):
    number: int


Heard = HeardReady | HeardEnd | HeardSignal


def module_command(role: Role) -> Sequence[str]:
    return [sys.executable, "-m", MODULES[role]]


def pipe(reads: contextlib.ExitStack, writes: contextlib.ExitStack) -> tuple[int, int]:
    """-> read end, write end, each closed by its stack."""
    ends = os.pipe()
    for stack, fd in zip((reads, writes), ends, strict=True):
        stack.callback(os.close, fd)
    return ends


class Process:
    """A child that was started and has not been reaped. gate_fd: where an heir gets its turn."""

    def __init__(
        self,
        key: Key,
        popen: subprocess.Popen[bytes],
        status_fd: int,
        gate_fd: int | None,
        words_fd: int,
        *,
        heir: bool,
    ) -> None:
        self.key = key
        self.popen = popen
        self.status_fd = status_fd
        self.gate_fd = gate_fd
        self.words_fd = words_fd
        self.heir = heir
        self.pidfd = os.pidfd_open(popen.pid)

    def reap(self) -> int:
        code = self.popen.wait()
        os.close(self.pidfd)
        os.close(self.status_fd)
        os.close(self.words_fd)
        if self.gate_fd is not None:
            os.close(self.gate_fd)
        return code

    def words(self) -> str:
        """What it left in writing."""
        return os.pread(self.words_fd, WORDS_BYTES_MAX, 0).decode("utf-8", "replace")

    def take_place(self, adopt: list[int]) -> None:
        self.heir = False
        if self.gate_fd is not None:
            gate_fd, self.gate_fd = self.gate_fd, None
            give_turn(gate_fd, adopt)


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
        self.heirs: dict[Key, Process] = {}
        self.database = UNKNOWN_DATABASE  # what children are told that it is called
        self.api_keys: list[ApiKey] | None = None  # what fronts are told that they are
        self.held: tuple[int, int] | None = None
        self.causes: dict[Key, str] = {}  # how the last process of a key ended
        self.selector = selectors.DefaultSelector()
        # Only this process has the write end: children read its end when we are gone.
        self.alive_r, self.alive_w = os.pipe()
        self.wake_r, self.wake_w = os.pipe()

    @contextlib.contextmanager
    def hearing_signals(self) -> Iterator[None]:
        """While it lasts, the signals that ask are heard by wait() and do nothing else."""
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

    def start(
        self, key: Key, adopt: list[int], *, heir: bool = False, work_off: bool = False
    ) -> int:
        """-> the pid. An heir runs beside the process of that key until `install`. Raises OSError.

        adopt, work_off: see Launch; an heir is told by `install` what to adopt.
        """
        among = self.heirs if heir else self.by_key
        assert key not in among, "an index is given out only after its last owner is gone"
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            status_r, status_w = pipe(ours, theirs)
            # The child's end of this one is for reading.
            gated = heir and key[0] != "front"
            gate_r, gate_w = pipe(theirs, ours) if gated else (None, None)
            words_fd = os.memfd_create("rasher-words", os.MFD_CLOEXEC)
            ours.callback(os.close, words_fd)
            launch = self._launch(key, status_w, gate_r, words_fd, adopt=adopt, work_off=work_off)
            popen = self._popen(launch)
            ours.pop_all()
        process = Process(key, popen, status_r, gate_w, words_fd, heir=heir)
        among[key] = process
        self.selector.register(process.pidfd, selectors.EVENT_READ, process)
        self.selector.register(status_r, selectors.EVENT_READ, process)
        return popen.pid

    def install(self, key: Key, adopt: list[int]) -> None:
        """The heir takes the place of the process of that key, which was reaped. It may be dead
        too; then its end is heard next, as that of the key's process."""
        assert key not in self.by_key, "an index is given out only after its last owner is gone"
        process = self.heirs.pop(key)
        self.by_key[key] = process
        self.causes.pop(key, None)
        process.take_place(adopt)

    def hold_fronts(self) -> None:
        """Those that are started from now on take nothing in until `release_fronts`."""
        self.held = os.pipe()

    def release_fronts(self) -> None:
        """They see the end of their pipe."""
        held, self.held = self.held, None
        for fd in held or ():
            os.close(fd)

    def _launch(
        self,
        key: Key,
        status_fd: int,
        gate_fd: int | None,
        words_fd: int,
        *,
        adopt: list[int],
        work_off: bool,
    ) -> Launch:
        role, index = key
        if role == "front" and self.held is not None:
            gate_fd = self.held[0]
        cause = "reload" if key in self.by_key else self.causes.pop(key, "")
        return Launch(
            role=role,
            index=index,
            settings=self.settings,
            ring_fd=self.ring.fd,
            listen_fd=self.listener.fileno() if role == "front" else None,
            alive_fd=self.alive_r,
            status_fd=status_fd,
            parent_pid=os.getpid(),
            adopt=adopt,
            work_off=work_off,
            gate_fd=gate_fd,
            cause=cause,
            database=self.database.hex(),
            words_fd=words_fd,
            keys=self.api_keys if role == "front" else None,
        )

    def _popen(self, launch: Launch) -> subprocess.Popen[bytes]:
        launch_fd = write_launch(launch)
        passed = [launch.ring_fd, launch.alive_fd, launch.status_fd, launch.words_fd, launch_fd]
        passed += [fd for fd in (launch.listen_fd, launch.gate_fd) if fd is not None]
        # Blocked, not handled: a child between exec and its own SIG_IGN must not die of Ctrl-C.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_SIGNALS)
        try:
            return subprocess.Popen(  # noqa: S603 - our own interpreter, no shell
                [*self.command(launch.role), LAUNCH_FLAG, str(launch_fd)],
                stdin=subprocess.DEVNULL,
                pass_fds=passed,
                close_fds=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(launch_fd)

    def signal(self, key: Key, number: int, heir: bool = False) -> None:
        process = (self.heirs if heir else self.by_key).get(key)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process.pidfd, number)

    def wait(self, timeout_s: float) -> Iterator[Heard]:
        """What is heard, one by one: what is done about one comes before the next is looked at."""
        for ready, _ in self.selector.select(timeout_s):
            if ready.fd == self.wake_r:
                yield from [HeardSignal(n) for n in os.read(self.wake_r, 4096) if n in ASKING]
            elif not self._is_known(ready.data):
                continue  # reaped meanwhile
            elif ready.fd == ready.data.status_fd:
                yield from self._read_status(ready.data)
            else:
                yield self._reap(ready.data)

    def _is_known(self, process: Process) -> bool:
        return process in (self.by_key.get(process.key), self.heirs.get(process.key))

    def _read_status(self, process: Process) -> list[Heard]:
        said = os.read(process.status_fd, 64)
        if not said or said.endswith(READY):
            self.selector.unregister(process.status_fd)
        if said.endswith(READY) or (said == STANDING_BY and process.heir):
            return [HeardReady(process.key, process.heir)]
        return []

    def _reap(self, process: Process) -> HeardEnd:
        del (self.heirs if process.heir else self.by_key)[process.key]
        for fd in (process.pidfd, process.status_fd):
            with contextlib.suppress(KeyError):
                self.selector.unregister(fd)
        words = process.words()
        code = process.reap()
        if not process.heir:
            self.causes[process.key] = "signal" if code < 0 else "exit"
        return HeardEnd(process.key, process.popen.pid, code, process.heir, words)

    def close(self) -> None:
        """Kills and reaps whoever is left; the descriptors of this object are closed."""
        for process in (*self.by_key.values(), *self.heirs.values()):
            process.popen.kill()
            process.reap()
        self.by_key.clear()
        self.heirs.clear()
        self.selector.close()
        self.release_fronts()
        for fd in (self.alive_r, self.alive_w, self.wake_r, self.wake_w):
            os.close(fd)

"""What the supervisor tells a child process, and how the child begins.

The launch record travels as JSON in a memfd whose number is the child's only argument; every
descriptor that it names was passed along. A child lives no longer than its supervisor, by three
independent means: the kernel kills it when the supervisor dies (PR_SET_PDEATHSIG), the parent is
checked once after that was set (it may have died before), and the end of the alive pipe is watched.

Signals to a child:

    TERM                       end: a front drains, a worker finishes its batch, a relay what it
                               sends at the moment
    USR1 (RETIRE)              to a front that has a replacement: end, and let nobody notice
    INT, QUIT, HUP, TTIN, TTOU ignored: what a terminal sends to the whole foreground group is the
                               supervisor's to answer

The replacement of a worker, and of the relay, is started with a gate: it imports, opens, says that
it stands by, and waits there for the index, which the supervisor gives once the kernel said that
the last owner is gone. So an index changes hands in milliseconds, and never has two owners.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import select
import signal
import sys
import threading
from asyncio import AbstractEventLoop
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct
from setproctitle import setproctitle

from processors.keys import Key
from processors.logs import set_up_logging
from processors.settings import Settings
from processors.stop import Stop
from processors.tally import AWAY, OWNER, PARKED, RELAY, Tally
from ringbuf import Ring

LAUNCH_FLAG = "--launch-fd"
READY = b"ready\n"
STANDING_BY = b"standing by\n"
RETIRE = signal.SIGUSR1
PR_SET_PDEATHSIG = 1
IGNORED_SIGNALS = frozenset(
    {signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU}
)

Role = Literal["front", "worker", "relay"]


def name_of(role: Role, index: int) -> str:
    """As titles and logs have it; there is one relay."""
    return role if role == "relay" else f"{role} {index}"


class Launch(Struct, frozen=True):
    """Descriptor numbers are those of the child.

    alive_fd: read end of a pipe, end of file = the supervisor is gone. status_fd: write end.
    Of a worker only: adopt, further indexes whose hands it must work off before its own work;
    work_off: it works off its own hand, takes nothing, and ends.
    gate_fd: a worker waits there for its index and for what to adopt (give_turn), a relay for its
    turn, None: the index is its own from the start; a front takes nothing in until that end of a
    pipe is closed.
    words_fd: where its last words go, a traceback.
    database: the 16 bytes that name the database, in hex; of one not asked yet, zeros.
    cause: why it follows another: signal or exit, how that one ended, or reload; "": it does not.
    keys: of a front, whose requests it takes; None: anybody's.
    """

    role: Role
    index: int
    settings: Settings
    ring_fd: int
    listen_fd: int | None
    alive_fd: int
    status_fd: int
    parent_pid: int
    adopt: list[int] = []
    work_off: bool = False
    gate_fd: int | None = None
    cause: str = ""
    database: str = "00" * 16
    words_fd: int = 2
    keys: list[Key] | None = None

    @property
    def name(self) -> str:
        return name_of(self.role, self.index)


def write_launch(launch: Launch) -> int:
    """-> a memfd to pass on; the caller closes it."""
    fd = os.memfd_create("rasher-launch", os.MFD_CLOEXEC)
    os.write(fd, msgspec.json.encode(launch))
    return fd


def read_launch(argv: Sequence[str]) -> Launch:
    """Reads and closes the descriptor behind --launch-fd. Exits with 2 where there is none."""
    words = list(argv)
    with contextlib.suppress(ValueError, IndexError, OSError, msgspec.DecodeError):
        fd = int(words[words.index(LAUNCH_FLAG) + 1])
        with open(fd, "rb") as file:
            file.seek(0)
            return msgspec.json.decode(file.read(), type=Launch)
    sys.stderr.write(f"a part of rasher, started by it with {LAUNCH_FLAG}; run `rasher` instead\n")
    raise SystemExit(2)


def give_turn(gate_fd: int, adopt: list[int]) -> None:
    """Gives the index to the replacement at the gate, which may be gone; closes the descriptor."""
    with os.fdopen(gate_fd, "wb", buffering=0) as gate, contextlib.suppress(BrokenPipeError):
        gate.write(msgspec.json.encode(adopt))


class Child:
    """A process in its role: its launch record and the ring, attached."""

    def __init__(self, launch: Launch, ring: Ring) -> None:
        self.launch = launch
        self.ring = ring

    def tally(self, role: str, index: int) -> Tally:
        """This process's page of the ring, marked as its own; its start is counted there. A relay's
        is a writer's, in which a front may have counted before."""
        tally, of_relay = Tally(self.ring.page(role, index)), self.launch.role == "relay"
        tally.page[OWNER] = RELAY if of_relay else 1 + self.launch.index
        tally.page[AWAY] = tally.page[PARKED] = 0
        if self.launch.cause:
            tally.count(f"{'relay' if of_relay else 'restarted'}_{self.launch.cause}")
        return tally

    def ready(self) -> None:
        """Tells the supervisor, once, that this process does its work from now on."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self.launch.status_fd, READY)
        os.close(self.launch.status_fd)

    def wait_turn(self, stop: Stop) -> list[int] | None:
        """-> what to adopt, once the index is this process's; None: asked to stop before."""
        gate_fd = self.launch.gate_fd
        if gate_fd is None:
            return self.launch.adopt
        with contextlib.suppress(BrokenPipeError):
            os.write(self.launch.status_fd, STANDING_BY)
        with os.fdopen(gate_fd, "rb") as gate:
            if stop.wait_for(gate.fileno()):
                return None
            given = gate.read()
        return msgspec.json.decode(given, type=list[int]) if given else None

    def watch_parent(self, loop: AbstractEventLoop | None = None) -> None:
        """Ends this process when the supervisor is gone: a reader of `loop`, or a thread."""
        if loop is not None:
            loop.add_reader(self.launch.alive_fd, end)
            return
        watch = threading.Thread(target=self._wait_for_end, name="watch-parent", daemon=True)
        watch.start()

    def _wait_for_end(self) -> None:
        # Not a read: all children share this pipe's flags, and one loop's makes it non-blocking.
        poll = select.poll()
        poll.register(self.launch.alive_fd, select.POLLIN)
        poll.poll()
        end()


def end() -> None:
    """The same end that PR_SET_PDEATHSIG makes: nothing of this process runs after it."""
    os.kill(os.getpid(), signal.SIGKILL)


def enter(argv: Sequence[str]) -> Child:
    """The first thing a child does, in its main thread; argv with or without the program's name."""
    launch = read_launch(argv)
    gc.freeze()  # what was imported stays: no collection looks through it, the last one neither
    setproctitle(f"rasher {launch.name}")
    die_with_parent(launch.parent_pid)
    ignore_signals()
    set_up_logging(launch.settings.log, launch.name)
    ring = Ring.attach(launch.ring_fd)
    os.close(launch.ring_fd)  # the ring has its own
    return Child(launch, ring)


def die_with_parent(parent_pid: int) -> None:
    assert threading.current_thread() is threading.main_thread()
    libc: Any = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        end()


def ignore_signals() -> None:
    """The supervisor starts children with these blocked, so that none comes before this."""
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED_SIGNALS)

"""A process that forks victims, runs each instruction by instruction and kills it after the k-th.

A victim attaches the ring anew and makes one real call of the package as it is; stepper.c does the
stepping. The server attaches no ring and reads no request: a fork of it does for each, so that all
victims come from one and the same state, have the same addresses, and mostly go the same way.
"""

from __future__ import annotations

import bisect
import ctypes
import gc
import json
import os
import random
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, NoReturn, Self

from ringbuf import Ring, _kernel
from tests.ringbuf.kit import PATIENCE_S, message
from tests.ringbuf.nursery import ROOT

Call = Callable[[], object]
BEFORE, INSIDE, RETURNED = range(3)
BATCH = 3
STEPS_MAX = 1 << 17
REQUEST_BYTES = 512


class Orders(ctypes.Structure):
    _fields_: ClassVar[list[Any]] = [
        ("code_from", ctypes.c_uint64),
        ("code_to", ctypes.c_uint64),
        ("start", ctypes.c_uint64),
        ("return_to", ctypes.c_uint64),
        ("stack", ctypes.c_uint64),
        ("kill_after", ctypes.c_int64),
        ("trace", ctypes.POINTER(ctypes.c_uint64)),
        ("trace_max", ctypes.c_int64),
        ("phase", ctypes.c_int32),
    ]


class RawOutcome(ctypes.Structure):
    _fields_: ClassVar[list[Any]] = [
        ("steps", ctypes.c_int64),
        ("entered_at", ctypes.c_int64),
        ("returned_at", ctypes.c_int64),
        ("return_to", ctypes.c_uint64),
        ("stack", ctypes.c_uint64),
        ("died_at", ctypes.c_uint64),
        ("phase", ctypes.c_int32),
        ("ended", ctypes.c_int32),
    ]


@dataclass(frozen=True)
class Outcome:
    """How far a victim came. ``phase`` says whether the kernel's function was entered, and whether
    it has returned to the interpreter: the answer was given."""

    steps: int
    entered_at: int
    returned_at: int
    return_to: int
    stack: int
    died_at: int
    phase: int
    ended: bool


@dataclass(frozen=True)
class Walk:
    """One whole call, step by step: the address after each, and where each address came first."""

    call: str
    outcome: Outcome
    trace: list[int]
    firsts: list[int]  # step counts, ascending
    addresses: list[int]

    @classmethod
    def of(cls, call: str, outcome: Outcome, trace: list[int]) -> Walk:
        first_at: dict[int, int] = {}
        for steps, address in enumerate(trace, 1):
            first_at.setdefault(address, steps)
        return cls(call, outcome, trace, list(first_at.values()), list(first_at))

    def address(self, k: int) -> int:
        return self.trace[k - 1] if k else 0

    def orders(self, k: int, slowly: bool) -> dict[str, int]:
        """How to get to the k-th instruction: with few steps, or with all since the entry."""
        seen = self.outcome
        latest = seen.entered_at if slowly else k
        at = bisect.bisect_right(self.firsts, latest) - 1
        if at < 0 or k < latest:
            return {"kill_after": k}
        begin = self.firsts[at]
        phase = (begin >= seen.entered_at) + (begin >= seen.returned_at)
        entry = {"return_to": seen.return_to, "stack": seen.stack} if phase == INSIDE else {}
        return {"start": self.addresses[at], "kill_after": k - begin, "phase": phase, **entry}


def put(ring: Ring, n: int) -> Call:
    return partial(ring.writer().put, *message(n))


def put_many(ring: Ring, n: int) -> Call:
    payloads, keys = zip(*(message(n + i) for i in range(BATCH)), strict=True)
    return partial(ring.writer().put_many, payloads, keys)


def take(ring: Ring, reader: int) -> Call:
    return partial(ring.reader(reader).take, BATCH)


def release(ring: Ring, reader: int) -> Call:
    owner = ring.reader(reader)
    return partial(owner.release, owner.take(BATCH))


def adopt(ring: Ring, reader: int) -> Call:
    return partial(_kernel.Taker, ring.mapping, reader, True, PATIENCE_S)


def close(ring: Ring, _: int) -> Call:
    return ring.close


CALLS: dict[str, Callable[[Ring, int], Call]] = {
    each.__name__: each for each in (put, put_many, take, release, adopt, close)
}


class Stepper:
    """The server as its user sees it. Victims are dead and reaped when a call returns."""

    def __init__(self, library: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.ringbuf.stepping", str(library)],
            cwd=ROOT,
            # Else the first call of each libc function steps through the dynamic linker.
            env={**os.environ, "LD_BIND_NOW": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.refused: str = self._answer()

    def walk(self, call: str, ring: Ring, argument: int) -> Walk:
        """Steps the whole call through; the victim dies at its end."""
        outcome, trace = self._ask(call, ring, argument, {"kill_after": STEPS_MAX}, True)
        assert outcome.ended
        assert outcome.phase == RETURNED
        return Walk.of(call, outcome, trace)

    def kill(self, walk: Walk, ring: Ring, argument: int, k: int, slowly: bool = False) -> Outcome:
        """Makes the same call again and kills it after ``k`` instructions.

        It died elsewhere if ``died_at`` is not the walk's; ``slowly`` is never misled.
        """
        return self._ask(walk.call, ring, argument, walk.orders(k, slowly), False)[0]

    def _ask(
        self, call: str, ring: Ring, argument: int, orders: dict[str, int], traced: bool
    ) -> tuple[Outcome, list[int]]:
        assert self._process.stdin is not None
        for part in [call, ring.path, argument], [orders, traced]:
            self._process.stdin.write(json.dumps(part).encode().ljust(REQUEST_BYTES))
        self._process.stdin.flush()
        outcome, trace = self._answer()
        return Outcome(**outcome), trace

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the stepping server is gone"
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=PATIENCE_S)


def kernel_code() -> tuple[int, int]:
    """Where the instructions of the kernel that is loaded here lie."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        span, access, *_, name = line.split(maxsplit=5)
        if name == str(_kernel.__file__) and "x" in access:
            begin, end = span.split("-")
            return int(begin, 16), int(end, 16)
    raise AssertionError("the kernel is not loaded")


def refusal(library: ctypes.CDLL) -> str:
    """Why a child can't be traced here; empty when it can."""
    pid = os.fork()
    if pid == 0:
        os._exit(library.trace_me())
    error = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return f"ptrace is refused here: {os.strerror(error)}" if error else ""


def die(library: ctypes.CDLL, call: str, path: str, argument: int) -> NoReturn:
    """The victim. Nothing of it is to run after the second mark."""
    mark = os.getppid
    act = CALLS[call](Ring.attach(path), argument)
    gc.disable()
    library.trace_me()
    os.kill(os.getpid(), signal.SIGSTOP)
    mark()
    act()
    mark()
    os._exit(1)


def step(
    library: ctypes.CDLL, code: tuple[int, int], pid: int, given: dict[str, int], traced: bool
) -> list[Any]:
    trace = (ctypes.c_uint64 * (STEPS_MAX if traced else 0))()
    orders = Orders(*code, **given)
    if traced:
        orders.trace = ctypes.cast(trace, ctypes.POINTER(ctypes.c_uint64))
        orders.trace_max = len(trace)
    outcome = RawOutcome()
    failed = library.step_and_kill(pid, ctypes.byref(orders), ctypes.byref(outcome))
    assert not failed, f"a victim did not go as it should: {given}"
    values = {name: getattr(outcome, name) for name, _ in RawOutcome._fields_}
    seen = Outcome(**values | {"ended": bool(outcome.ended)})
    return [asdict(seen), trace[: outcome.steps] if traced else []]


def serve(library: ctypes.CDLL, code: tuple[int, int], victim: bytes, orders: bytes) -> NoReturn:
    """Runs in a fork of the server: what it reads and allocates is gone afterwards."""
    pid = os.fork()
    try:
        if pid == 0:
            die(library, *json.loads(victim))
        answer = step(library, code, pid, *json.loads(orders))
        os.write(1, json.dumps(answer).encode() + b"\n")
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def main() -> None:
    library = ctypes.CDLL(sys.argv[1])
    # Tracer and victim take turns: on one core that is three times as fast as on two.
    os.sched_setaffinity(0, {random.choice(sorted(os.sched_getaffinity(0)))})
    code = kernel_code()
    print(json.dumps(refusal(library)), flush=True)
    gc.freeze()
    stdin = sys.stdin.buffer
    while victim := stdin.read(REQUEST_BYTES):
        orders = stdin.read(REQUEST_BYTES)
        pid = os.fork()
        if pid == 0:
            serve(library, code, victim, orders)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()

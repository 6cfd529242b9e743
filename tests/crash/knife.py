"""Ends this process by SIGKILL at a chosen place of the program, which knows nothing of it.

A cut names a function and a side of it, "module:Class.function before 1" (the nth call), or a step
of the kernel, "take.copied 1" (where the kernel is the stepping build), or "line 1": the nth line
that is run of the program's own files, or of those named as in "line:supervisor.py+ringbuf/". What
the cut hit is written to a log first.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "ringbuf/+processors/+supervisor.py"


@dataclass
class Cut:
    place: str
    side: str = ""
    nth: int = 1

    def __str__(self) -> str:
        return " ".join(filter(None, (self.place.rpartition(":")[2], self.side, str(self.nth))))

    @classmethod
    def parse(cls, text: str) -> Cut:
        place, side, nth = text.split(",")
        return cls(place, side, int(nth))

    @property
    def text(self) -> str:
        return f"{self.place},{self.side},{self.nth}"


class Knife:
    """The last of a process: made once, before its work begins."""

    def __init__(self, cut: Cut, log: str) -> None:
        self.cut = cut
        self.log = log
        self.passed = 0
        self.files: tuple[str, ...] = ()
        if cut.place.startswith("line"):
            files = cut.place.partition(":")[2] or PROGRAM
            self.files = tuple(f"{ROOT}/{name}" for name in files.split("+"))
            sys.settrace(self._trace)
        elif cut.side:
            self._wrap()
        else:
            os.environ["RINGBUF_STEP_LOG"] = log
            os.environ["RINGBUF_STEP"] = f"{cut.place}:{cut.nth}:{int(signal.SIGKILL)}"

    def passes(self, where: str) -> None:
        self.passed += 1
        if self.passed == self.cut.nth:
            with Path(self.log).open("a") as log:
                log.write(f"{where}\n")
            os.kill(os.getpid(), signal.SIGKILL)

    def _wrap(self) -> None:
        module, _, path = self.cut.place.partition(":")
        *parents, name = path.split(".")
        owner: Any = functools.reduce(getattr, parents, importlib.import_module(module))
        found = vars(owner).get(name) or getattr(owner, name)
        if isinstance(found, classmethod):
            setattr(owner, name, classmethod(self._around(found.__func__)))
        else:
            setattr(owner, name, self._around(found))

    def _around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def cut_around(*args: Any, **kwargs: Any) -> Any:
            if self.cut.side == "before":
                self.passes(self.cut.place)
            answer = original(*args, **kwargs)
            if self.cut.side == "after":
                self.passes(self.cut.place)
            return answer

        return cut_around

    def _trace(self, frame: FrameType, event: str, _argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(self.files):
            return None
        if event == "line":
            self.passes(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        return self._trace

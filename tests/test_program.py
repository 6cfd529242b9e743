"""How the tests tell whether a process has ended."""

from __future__ import annotations

import subprocess
import sys

import psutil

from tests.program import outlasting

SLEEPER = [sys.executable, "-c", "import time; time.sleep(100)"]


def test_who_lives_on_is_named_and_who_has_ended_is_not_reaped_or_not() -> None:
    with subprocess.Popen(SLEEPER) as one, subprocess.Popen(SLEEPER) as other:
        processes = [psutil.Process(each.pid) for each in (one, other)]
        try:
            assert outlasting(processes, 0.05) == processes
            one.kill()
            assert outlasting(processes[:1]) == []
            assert processes[0].status() == psutil.STATUS_ZOMBIE
            assert outlasting(processes, 0.05) == processes[1:]
        finally:
            one.kill()
            other.kill()
        one.wait()
        assert outlasting(processes[:1]) == []

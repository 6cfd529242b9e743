from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ringbuf import Ring
from tests.ringbuf.nursery import ROOT

# Every look at the wall clock lands an hour off, forwards and backwards by turns.
JUMPING_CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static _Atomic unsigned looks;
static long jump(void) { return (looks++ % 2) ? 3600 : -3600; }
int clock_gettime(clockid_t clock, struct timespec *t) {
    int failed = (int)syscall(SYS_clock_gettime, clock, t);
    if (clock == CLOCK_REALTIME) t->tv_sec += jump();
    return failed;
}
time_t time(time_t *into) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (into) *into = t.tv_sec;
    return t.tv_sec;
}
int gettimeofday(struct timeval *restrict t, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    t->tv_sec = now.tv_sec, t->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""

SCRIPT = """
import sys, time
from ringbuf import Empty, Full, Ring

looks = [time.time() for _ in range(4)]
assert max(looks) - min(looks) > 3600, looks
with Ring.attach(sys.argv[1]) as ring, ring.writer() as writer, ring.reader(0) as reader:
    waits = {
        "take": (Empty, lambda: reader.take(timeout=0.25)),
        "put": (Full, lambda: writer.put(b"", bytes(16), timeout=0.25)),
        "commits": (None, lambda: ring.wait_commits(0, timeout=0.25)),
    }
    for name, (error, wait) in waits.items():
        if name == "put":
            while writer.try_put(b"", bytes(16)) is not None:
                pass
        began = time.monotonic()
        try:
            wait()
        except (Empty, Full) as raised:
            assert type(raised) is error, raised
        print(name, time.monotonic() - began)
"""


@pytest.fixture
def jumping_clock(tmp_path: Path) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler is installed")
    source, library = tmp_path / "clock.c", tmp_path / "clock.so"
    source.write_text(JUMPING_CLOCK)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def test_steps_of_the_wall_clock_disturb_no_timeout(ring: Ring, jumping_clock: Path) -> None:
    assert ring.path is not None
    preload = f"{os.environ.get('LD_PRELOAD', '')} {jumping_clock}"  # a sanitizer stays in front
    environment = os.environ | {"LD_PRELOAD": preload, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, ring.path],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert ran.returncode == 0, ran.stderr
    waited = {name: float(s) for name, s in map(str.split, ran.stdout.splitlines())}
    assert set(waited) == {"take", "put", "commits"}
    assert all(0.24 <= s < 30 for s in waited.values()), waited

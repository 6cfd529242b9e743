"""What is in C under the sanitizers: addresses, undefined behaviour, the order of threads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ringbuf.nursery import ROOT
from tests.ringbuf.steps import build_words

KERNEL = ROOT / "ringbuf" / "kernel.h"
OF_THE_RING = ("ringbuf._kernel", "ringbuf._journal")
OF_ORDERS = ("ingest._lane", "ingest._bulk")
# One process each, but for the last; loops, interpreters and compilers are tested elsewhere.
TESTS = ["test_ring", "test_reader", "test_writer", "test_layout", "test_corruption", "test_syncer"]
PLAYED = 20_000  # items of each thread
needs_gcc = pytest.mark.skipif(
    shutil.which("gcc") is None, reason="gcc is not installed: apt-get install gcc"
)
pytestmark = [needs_gcc]


def changed(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"{old!r} is not in the kernel once"
    return text.replace(old, new)


class Copy:
    """The package and its tests in another place, built for sanitizers; with a change in a file.
    `beside`: what else is in C."""

    def __init__(
        self,
        folder: Path,
        sanitizers: str = "address,undefined",
        *,
        beside: tuple[str, ...] = (),
        change: tuple[str, str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.sanitizers = sanitizers
        for name in ("ringbuf", "tests/ringbuf"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so"))
        (folder / "ingest").mkdir()
        files = [f"{module.replace('.', '/')}.c" for module in beside]
        for name in (*files, "setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, folder / name)
        if change is not None:
            name, old, new = change
            source = folder / "ringbuf" / name
            source.write_text(changed(source.read_text(), old, new))
        self._python([*build_words(*OF_THE_RING, *beside), "--inplace"], build=True)

    def _python(self, words: list[str], build: bool) -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, "RASHER_SANITIZE": self.sanitizers, "CC": "gcc"}
        if not build:
            environ |= self._sanitized()
        ran = subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not build or ran.returncode == 0, ran.stderr
        return ran

    def _sanitized(self) -> dict[str, str]:
        name = "libtsan.so" if self.sanitizers == "thread" else "libasan.so"
        command = ["gcc", f"-print-file-name={name}"]
        library = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        report = f"log_path={self.folder / 'report'}"
        return {
            "LD_PRELOAD": library,
            # The interpreter leaks by design. Its own allocator would hide what lies beside bytes.
            "ASAN_OPTIONS": f"detect_leaks=0:{report}",
            "TSAN_OPTIONS": report,
            "UBSAN_OPTIONS": f"halt_on_error=1:print_stacktrace=1:{report}",
            "PYTHONMALLOC": "malloc",
        }

    def test(self, *names: str, only: str = "") -> tuple[int, str, str]:
        """-> pytest's exit code, what it said, and what the sanitizers reported."""
        files = [f"tests/ringbuf/{name}.py" for name in names]
        words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not prove", "-k", only]
        ran = self._python([*words, *files], build=False)
        reports = [path.read_text() for path in sorted(self.folder.glob("report*"))]
        return ran.returncode, ran.stdout + ran.stderr, "\n".join(reports)


# What is in C of a bulk, fed with orders that were cut, stretched and damaged.
FEED = r"""
import random
from ingest._bulk import next_keys, pack_orders, render_taken
chance, plain = random.Random(7), 0
line = b'{"customer":"Funky Foods","reference":"r","metadata":{"b":"2","a":"1"},"lines":[%s]}'
orders = [
    line % b",".join(b'{"sku":"S%d","quantity":"%d.125"}' % (n, n) for n in range(1, count))
    for count in (2, 3, 20, 101, 102)
]
for _ in range(20_000):
    order, place = bytearray(chance.choice(orders)), 1
    for _ in range(chance.randrange(3)):
        place = chance.randrange(len(order))
        order[place : place + chance.randrange(3)] = chance.choice(
            [b"", b'"', b"\\", b"\0", b"}", b"]", b",", b"0" * 30, b"x" * 300, bytes(order[:place])]
        )
    plain += pack_orders([bytes(order[: chance.choice((len(order), place))])], 65536) != [None]
keys, _ = next_keys(2**64 - 1, 0, bytes(4 * 300) + b"odd")
assert len(keys) == 300 and len(render_taken(2**64 - 301, keys, b",", b".")) > 300 * 80
assert plain > 1000, plain
"""


def test_address_and_undefined_behaviour_sanitizers_find_nothing(tmp_path: Path) -> None:
    # What is only more of the same takes ten times as long here.
    copy = Copy(tmp_path, beside=OF_ORDERS)
    fed = copy._python(["-c", FEED], build=False)
    assert (fed.returncode, fed.stderr) == (0, "")
    code, said, reports = copy.test(*TESTS, only="not hundred_thousand")
    assert not reports, reports
    assert code == 0, said


def test_the_address_sanitizer_sees_a_copy_that_is_too_long(tmp_path: Path) -> None:
    right = "rb_peek(to + 1, from + 1, rb_data_bytes(r, to));"
    wrong = "rb_peek(to + 1, from + 1, rb_room(r) + 8);"
    name = "test_a_damaged_item_in_a_slot_is_seen_as_such_by_lookers"
    copy = Copy(tmp_path, change=("kernel.h", right, wrong))
    code, _, reports = copy.test("test_layout", only=name)
    assert code != 0
    assert "heap-buffer-overflow" in reports
    assert "rb_peek" in reports


def build_threads(folder: Path, include: Path) -> Path:
    """threads.c with that folder's kernel, for the thread sanitizer."""
    source, program = Path(__file__).with_name("threads.c"), folder / "threads"
    # gcc warns that it does not follow fences. What they order is read by rb_peek alone.
    words = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-tsan"]
    words += ["-fsanitize=thread", f"-I{include}", str(source), "-o", str(program), "-pthread"]
    subprocess.run(["gcc", *words], check=True, timeout=100)
    return program


@pytest.fixture(scope="module")
def threads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_threads(tmp_path_factory.mktemp("threads"), KERNEL.parent)


def play(program: Path, mode: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(program), mode, str(folder / "threads.ring"), str(PLAYED)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


@pytest.mark.parametrize(("mode", "putters"), [("one", 2), ("apart", 1), ("own", 2)])
def test_the_thread_sanitizer_finds_nothing(
    threads: Path, ring_dir: Path, mode: str, putters: int
) -> None:
    """Through one mapping, where it sees every race, and with one mapping for each thread."""
    ran = play(threads, mode, ring_dir)
    assert (ran.returncode, ran.stderr) == (0, "")
    counts = json.loads(ran.stdout)
    assert counts["items"] == putters * PLAYED
    assert counts["looks"] > 0


@pytest.mark.parametrize(
    "store", ["&side->cursor, tail + fits, ", "&side->cursor, head + count, "], ids=["tail", "head"]
)
def test_the_thread_sanitizer_sees_a_cursor_that_releases_nothing(
    ring_dir: Path, store: str
) -> None:
    right, wrong = f"{store}memory_order_release", f"{store}memory_order_relaxed"
    (ring_dir / "kernel.h").write_text(changed(KERNEL.read_text(), right, wrong))
    ran = play(build_threads(ring_dir, ring_dir), "apart", ring_dir)
    assert ran.returncode != 0
    assert "data race" in ran.stderr

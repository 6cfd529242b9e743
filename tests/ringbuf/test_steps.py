"""The steps at which tests kill and stop: every one is hit, and the shipped kernel has none.

This file comes after those that hit them (test_step_*.py).
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ringbuf import _kernel
from tests.ringbuf.stage import SCENES
from tests.ringbuf.steps import ROOT, SOURCES, STEP, build_kernel, step_names

HITTING = {"test_step_kills.py", "test_step_stops.py", "test_step_waits.py"}


def test_every_step_has_a_scene_and_every_scene_a_step() -> None:
    assert {step for scene in SCENES for step, _, _ in scene.steps} == set(step_names())


def test_each_step_is_named_once_and_seen_by_the_tests() -> None:
    """A step spelled so that the pattern misses it would be hit by nobody, and nobody told."""
    names = step_names()
    assert len(set(names)) == len(names)
    uses = sum(path.read_text(encoding="utf-8").count("RB_STEP(") for path in SOURCES)
    assert uses == len(names) + 1  # and the macro's own definition


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP], ids=lambda sign: sign.name)
def test_every_step_was_hit_in_this_run(
    steps_hit: set[tuple[str, int]], request: pytest.FixtureRequest, sign: signal.Signals
) -> None:
    run = {item.path.name for item in request.session.items}
    if request.config.getoption("keyword") or not run >= HITTING:
        pytest.skip("only some of the tests that hit steps are in this run")
    assert {step for step, signed in steps_hit if signed == sign} == set(step_names())


def test_the_shipped_kernel_has_no_trace_of_a_step(stepping_kernel: Path) -> None:
    assert _kernel.__file__ is not None
    shipped, stepping = Path(_kernel.__file__).read_bytes(), stepping_kernel.read_bytes()
    marks = [b"RINGBUF_STEP", b"rb_step", *(name.encode() for name in step_names())]
    assert [mark for mark in marks if mark in shipped] == []
    assert [mark for mark in marks if mark not in stepping] == []


def without_steps(folder: Path) -> Path:
    """A copy of what builds the kernel, its RB_STEP lines taken out."""
    (folder / "ringbuf").mkdir(parents=True)
    shutil.copy(ROOT / "setup.py", folder)
    for path in SOURCES:
        text, count = STEP.subn("", path.read_text(encoding="utf-8"))
        assert count, path
        (folder / "ringbuf" / path.name).write_text(text, encoding="utf-8")
    return folder


def machine_code(module: Path) -> bytes:
    code = module.with_suffix(".text")
    words = ["objcopy", "-O", "binary", "--only-section=.text", str(module), str(code)]
    subprocess.run(words, check=True, timeout=30)
    return code.read_bytes()


def test_the_shipped_machine_code_is_the_same_as_without_any_step(tmp_path: Path) -> None:
    trees = {"with": ROOT, "without": without_steps(tmp_path / "tree")}
    with ThreadPoolExecutor() as pool:
        builds = [
            pool.submit(build_kernel, tmp_path / name, tree=tree) for name, tree in trees.items()
        ]
        with_steps, without = (machine_code(build.result()) for build in builds)
    assert len(with_steps) > 10_000
    assert with_steps == without

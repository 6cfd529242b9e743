"""A build of the kernel in which a chosen step kills or stops its process, and actors that use it.

`python -m tests.ringbuf.steps KERNEL` is the nursery's process with that build in place of the
shipped one; tests and checkers keep the shipped one, and both work on the same ring file.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).absolute().parents[2]
SOURCES = (ROOT / "ringbuf/kernel.h", ROOT / "ringbuf/_kernel.c")
HEADER = ROOT / "tests/ringbuf/steps.h"
KERNEL = "ringbuf._kernel"
# setup.py, as if it built nothing else.
SOME = """
import runpy, setuptools
whole = setuptools.setup
def some(*, ext_modules, **given):
    whole(ext_modules=[one for one in ext_modules if one.name in {names!r}], **given)
setuptools.setup = some
runpy.run_path("setup.py")
"""
STEP = re.compile(r"^ *RB_STEP\(([a-z_]+\.[a-z_]+)\);$", re.MULTILINE)


def step_names() -> list[str]:
    """Every step that the kernel names, in the order of its text."""
    return [name for path in SOURCES for name in STEP.findall(path.read_text(encoding="utf-8"))]


def build_words(*names: str) -> list[str]:
    """For Python in a source tree: setup.py with these of its extension modules alone, quietly."""
    return ["-W", "ignore", "-c", SOME.format(names=names), "-q", "build_ext"]


def build_kernel(folder: Path, *flags: str, tree: Path = ROOT) -> Path:
    """Builds the kernel of a source tree into a folder, as setup.py does -> the module's file."""
    words = ["--build-lib", str(folder), "--build-temp", str(folder / "temp")]
    built = subprocess.run(
        [sys.executable, *build_words(KERNEL), *words],
        cwd=tree,
        env={**os.environ, "CFLAGS": " ".join(["-Werror", *flags])},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert built.returncode == 0, built.stderr
    return folder / "ringbuf/_kernel.abi3.so"


def build_stepping_kernel(folder: Path) -> Path:
    return build_kernel(folder, "-include", str(HEADER))


class Instead:
    """Finds that one build where the shipped kernel is asked for."""

    def __init__(self, kernel: Path) -> None:
        self.kernel = kernel

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != KERNEL:
            return None
        return importlib.util.spec_from_file_location(name, self.kernel)


def use_kernel(kernel: Path) -> None:
    """For this process, which has not imported ringbuf yet."""
    assert "ringbuf" not in sys.modules
    sys.meta_path.insert(0, Instead(kernel))


if __name__ == "__main__":
    use_kernel(Path(sys.argv[1]))
    from tests.ringbuf import actors, sessions

    actors.ROLES["session"] = sessions.session
    actors.main()

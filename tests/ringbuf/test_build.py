"""The C parts build with both compilers, without a warning, against the stable ABI."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_what_is_in_c_builds_without_a_warning(compiler: str, tmp_path: Path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed: apt-get install {compiler}")
    words = ["build_ext", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path / "temp")]
    built = subprocess.run(
        [sys.executable, "-W", "ignore", "setup.py", "-q", *words],
        cwd=ROOT,
        env={**os.environ, "CC": compiler, "CFLAGS": "-Werror"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert built.returncode == 0, built.stderr
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*.so")}
    assert made == {
        f"{name}.abi3.so"
        for name in ("ringbuf/_kernel", "ringbuf/_journal", "ingest/_lane", "ingest/_bulk")
    }

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.crash.disk import Ledger
from tests.crash.faults import Faults, build_faults
from tests.postgres import Postgres
from tests.program import Rasher, Start
from tests.ringbuf.nursery import Nursery


@pytest.fixture(scope="module")
def mains(stepping_kernel: Path) -> Iterator[Nursery]:
    """Starts workers and supervisors that end at a chosen place; see work_actors.py."""
    with Nursery("tests.crash.work_actors", str(stepping_kernel)) as nursery:
        yield nursery


@pytest.fixture(scope="session")
def faults_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed: apt-get install gcc")
    return build_faults(tmp_path_factory.mktemp("faults"))


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> list[str]:
    """The flag for an empty one; of SQLite none is needed."""
    if request.param == "sqlite":
        return []
    server: Postgres = request.getfixturevalue("postgres")
    return ["--database", server.url(server.database())]


@pytest.fixture
def faults(faults_library: Path, tmp_path: Path, data_dir: Path) -> Iterator[Faults]:
    """Of the data dir."""
    with Faults(faults_library, tmp_path / "faults", data_dir) as faults:
        yield faults


@pytest.fixture
def faulty(launch: Callable[..., Rasher], faults: Faults) -> Start:
    """The real program, its disk as `faults` says."""
    return lambda *argv: launch("supervisor.py", *argv, **faults.environ)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    (tmp_path / "ledger.txt").touch()
    return Ledger(tmp_path / "ledger.txt")

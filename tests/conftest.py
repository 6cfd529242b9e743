"""For every test: nothing it opened, started or made outlives it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import hypothesis
import pytest
import uvloop
from xdist.scheduler import LoadScopeScheduling

from processors.store import migrate
from tests.leaks import Belongings, left_over
from tests.postgres import Postgres, private_server
from tests.program import Rasher, Start, outlasting
from tests.ringbuf.steps import build_stepping_kernel

# The suite tries the same each time, so that it says something of the change that it is run for;
# `make prove` looks further.
hypothesis.settings.register_profile("suite", derandomize=not os.environ.get("TEST_RANDOM"))
hypothesis.settings.load_profile("suite")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With TEST_NO_SKIPS=1 a skip is a failure: CI installs whatever a test wants."""
    report = yield
    if report.skipped and os.environ.get("TEST_NO_SKIPS"):
        report.outcome = "failed"
    return report


# What takes seconds: early, so that nobody is left with it while the others have nothing to do.
LONG = (
    *("tests/crash/", "tests/supervisor/", "tests/benchmarks/"),
    *("tests/ringbuf/test_s", "tests/ingest/test_schemathesis.py"),
)
# Their tests start programs of their own, and share nothing that takes long to make.
APART = ("tests/crash/test_", "tests/supervisor/test_")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """With -n: a file's tests share a process, and so its fixtures, but for those that stand apart;
    the files that hit the kernel's steps share one, for the last of them asks whether every step
    was hit."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if Path(file).name.startswith("test_step"):
            return "steps"
        apart = file.startswith(APART) and not file.endswith("_steps.py")
        return nodeid if apart else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByFile:
    return ByFile(config, log)


@pytest.fixture(scope="session", autouse=True)
def _what_libuv_keeps() -> None:
    """The first loop of a process makes a pipe for signals that is never closed."""
    uvloop.new_event_loop().close()


@pytest.fixture(autouse=True)
def leaves_nothing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = Belongings.now()
    yield
    found = left_over(before, str(tmp_path_factory.getbasetemp()))
    assert not found, f"left behind: {', '.join(found)}"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "var"


@pytest.fixture
def ring_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="rasher-test-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def launch(data_dir: Path, ring_dir: Path) -> Iterator[Callable[..., Rasher]]:
    """Starts programs on the same data dir and ring dir; at the end they are gone, and theirs."""
    started: list[Rasher] = []

    def launch(program: str, *argv: str, **environ: str) -> Rasher:
        words = ["--ring-dir", str(ring_dir), *argv]
        started.append(Rasher(program, words, data_dir, environ))
        return started[-1]

    yield launch
    for rasher in started:
        descendants = rasher.process.children(recursive=True) if rasher.popen.poll() is None else []
        rasher.popen.kill()
        rasher.end()
        assert not outlasting(descendants), "children outlived their supervisor"
        assert not rasher.log.count("Traceback"), "\n".join(rasher.log.said)


@pytest.fixture
def rasher(launch: Callable[..., Rasher]) -> Start:
    """The real program."""
    return lambda *argv: launch("supervisor.py", *argv)


@pytest.fixture(scope="session")
def stepping_kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernel's build in which a step can be chosen that ends or stops its process."""
    return build_stepping_kernel(tmp_path_factory.mktemp("stepping"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server that the tests of this process share; each makes its own database."""
    with private_server() as server:
        yield server


@pytest.fixture(scope="session")
def migrated(postgres: Postgres) -> str:
    """A database with Rasher's schema, to make others of."""
    name = postgres.database()
    migrate(postgres.url(name))
    return name


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """One that a test may stop, kill and start again."""
    with private_server() as server:
        yield server

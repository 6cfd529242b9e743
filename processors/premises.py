"""What must hold before the first process is started, each checked for its own reason."""

from __future__ import annotations

import logging
import resource
import subprocess
import sys
from pathlib import Path

from processors.datadir import CannotStart
from processors.journal import journal_dir, make_journal_dir
from processors.setting_checks import SQLITE_PREFIXES, SettingsError, is_loopback
from processors.settings import Settings, WorkSettings
from processors.tls import server_context
from ringbuf.segment import remove_half_made

SQLITE_MAGIC = b"SQLite format 3\0"
# Descriptors of a front beside its connections: ring, database, logs, loop, each with room.
OWN_FILES = 96
IMPORT_PATIENCE_S = 30
# Imports where a child would, so that code of the operator's never runs in the supervisor.
IMPORT_CHECK = """
import importlib, sys
module, factory = sys.argv[1].split(":")
sys.exit(0 if callable(getattr(importlib.import_module(module), factory)) else "it is not callable")
"""

# Where a sync says nothing, and where locks and syncs can't be relied on.
MEMORY = frozenset({"tmpfs", "ramfs"})
NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "lustre", "afs"})
UNFIT = "locks and syncs can't be relied on there. Choose a directory on a local disk"

log = logging.getLogger(__name__)


def raise_file_limit(settings: Settings) -> None:
    """Children inherit it. A connection without a descriptor would make its front spin."""
    wanted = settings.http.max_connections + OWN_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise CannotStart(
            f"--max-connections {settings.http.max_connections}: needs {wanted} open files per "
            f"process, this system allows {hard} (ulimit -Hn); at most {max(0, hard - OWN_FILES)}"
        )
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def check_processor(settings: Settings) -> None:
    """Whether --processor can be imported; else its workers would die one after the other."""
    processor = settings.work.processor
    if processor == WorkSettings().processor:
        return
    try:
        check = subprocess.run(  # noqa: S603 - our own interpreter, no shell
            [sys.executable, "-c", IMPORT_CHECK, processor],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=IMPORT_PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise SettingsError(
            f"--processor {processor}: its import takes longer than {IMPORT_PATIENCE_S} s"
        ) from error
    if check.returncode:
        reason = (check.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SettingsError(f"--processor {processor}: {reason}")


def check_exposure(settings: Settings) -> None:
    """Whether the certificate can be used; else the fronts would die one after the other."""
    http = settings.http
    if server_context(http) is None and not is_loopback(http.host):
        log.warning(
            "--host %s without --ssl-certfile: keys and orders cross the network as they are, "
            "unless a proxy on this network brings them", http.host,
        )  # fmt: skip


def prepare_journal(settings: Settings) -> None:
    """Makes its directory, where it is wanted, on a file system that keeps what is synced."""
    data_dir = Path(settings.data_dir)
    kind = file_system(data_dir)
    if kind in NETWORK or kind.startswith("fuse.sshfs"):
        raise CannotStart(f"--data-dir {data_dir}: lies on {kind}, a network file system: {UNFIT}")
    remove_half_made(journal_dir(settings))
    if settings.durability == "memory":
        return
    if kind in MEMORY:
        raise CannotStart(
            f"--data-dir {data_dir}: lies on {kind}, which is memory: nothing there survives a "
            "power loss. Choose a directory on a disk, or --durability memory"
        )
    try:
        make_journal_dir(settings)
    except OSError as error:
        raise CannotStart(
            f"--data-dir {data_dir}: {error.strerror}: {journal_dir(settings)}"
        ) from error


def file_system(path: Path) -> str:
    """The type of the file system on which that directory lies."""
    best = ("", "")
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        front, _, back = line.partition(" - ")
        mount = front.split()[4].encode().decode("unicode_escape")
        if path.is_relative_to(mount) and len(mount) >= len(best[0]):  # the later one is on top
            best = (mount, back.split()[0])
    return best[1]


def check_database_file(settings: Settings) -> None:
    """What no retry would mend: a directory, no way to it, some other file."""
    prefix = next((one for one in SQLITE_PREFIXES if settings.database.startswith(one)), None)
    if prefix is None:
        return
    path = Path(settings.database.removeprefix(prefix).partition("?")[0])
    where = f"--database {settings.database}"
    if path.is_dir():
        raise CannotStart(f"{where}: {path} is a directory")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            return
        # r+: SQLite would take a file that it can't write for one that it may only read.
        with path.open("r+b") as file:
            start = file.read(len(SQLITE_MAGIC))
    except OSError as error:
        raise CannotStart(f"{where}: {error.strerror}: {error.filename}") from error
    if start not in (b"", SQLITE_MAGIC):
        raise CannotStart(f"{where}: {path} is no SQLite database")

"""The data directory: held by one supervisor at a time, and naming the ring that goes on living.

    rasher.pid   locked (flock) while a supervisor runs; the lock counts, a stale number does not
    ring.path    the path of the ring file, written before that file is made

The ring file itself lies in the ring directory, bears the data directory's path as its label, and
outlives every process. What the next start finds, and does:

    found                                   does
    --------------------------------------  ------------------------------------------------------
    nothing, or a name without a file       makes a new ring
    another boot's, damaged, other layout   says so, leaves the file alone, makes a new ring
    another data dir's                      not ours to touch: refused if it holds orders, else new
    ours, as the settings want it           ends who still lives in it, opens it again, goes on
    ours, otherwise made, empty             removes it, makes a new ring
    ours, otherwise made, orders in it      goes on if it has the room, else refused: names what
                                            differs and how to go on
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from processors.settings import Settings
from ringbuf import Misfit, Ring, RingError

# A killed process that hangs in the kernel longer than this won't end soon.
KILL_PATIENCE_S = 5.0

log = logging.getLogger(__name__)


class CannotStart(Exception):
    """Rasher can't start, for a reason that the text gives. Exit code 3."""


def pid_path(settings: Settings) -> Path:
    return Path(settings.data_dir, "rasher.pid")


def link_path(settings: Settings) -> Path:
    return Path(settings.data_dir, "ring.path")


def hold_data_dir(settings: Settings) -> int:
    """-> the descriptor that holds the data dir, made if need be, until it is closed."""
    path = pid_path(settings)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotStart(f"--data-dir {settings.data_dir}: {error.strerror}: {path}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        pid = os.pread(fd, 20, 0).decode(errors="replace").strip()
        os.close(fd)
        raise CannotStart(f"--data-dir {settings.data_dir}: in use by pid {pid}") from error
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def read_link(settings: Settings) -> Path | None:
    try:
        return Path(link_path(settings).read_text(encoding="utf-8").strip())
    except (FileNotFoundError, ValueError):
        return None


def write_link(settings: Settings, ring: Path) -> None:
    link = link_path(settings)
    fresh = link.with_suffix(".new")
    fresh.write_text(f"{ring}\n", encoding="utf-8")
    fresh.replace(link)


def attach_ring(settings: Settings) -> Ring | None:
    """For onlookers, the audit among them: the data dir's ring, or None. Raises Misfit."""
    path = read_link(settings)
    if path is None or not path.exists():
        return None
    ring = Ring.attach(str(path))
    if ring.label == settings.data_dir:
        return ring
    ring.detach()
    return None


def open_ring(settings: Settings) -> Ring:
    """For the supervisor, holding the data dir: the ring to go on with, open, nobody in it."""
    left = find_left(settings)
    if left is None:
        return create_ring(settings)
    end_participants(left)
    count = count_orders(left)
    if is_as_wanted(settings, left):
        return go_on(left, count)
    if not count:
        left.unlink()
        left.detach()
        return create_ring(settings)
    obstacles = list(differing(settings, left))
    if not obstacles:
        return go_on(left, count)
    left.detach()
    raise CannotStart(
        f"the ring left in {settings.data_dir} holds {count} orders and was made by other settings:"
        f" {'; '.join(obstacles)}. Start once with the old ones and end it by TERM, which drains it"
    )


def go_on(ring: Ring, count: int) -> Ring:
    ring.reopen()
    log.info("going on with the ring %s, orders in it: %d", ring.path, count)
    return ring


def find_left(settings: Settings) -> Ring | None:
    """The ring of the run before, if it is this boot's and this data dir's."""
    path = read_link(settings)
    if path is None or not path.exists():
        return None
    try:
        ring = Ring.attach(str(path))
    except OSError as error:
        raise CannotStart(
            f"{link_path(settings)} names a ring: {error.strerror}: {path}"
        ) from error
    except Misfit as error:
        log.warning(
            "can't go on with the ring that the run before left, starting anew; what may "
            "be in it is not known, the file stays: %s: %s",
            path,
            error,
        )
        return None
    if ring.label == settings.data_dir:
        return ring
    label, count = ring.label, count_orders(ring)
    ring.detach()
    if count:
        raise CannotStart(
            f"{link_path(settings)} names a ring that belongs to the data dir {label} and holds "
            f"{count} orders: {path}. If that was moved here, move it back and start there; if it "
            f"was copied, remove {link_path(settings)}"
        )
    return None


def is_as_wanted(settings: Settings, ring: Ring) -> bool:
    found = {name: getattr(ring, name) for name in geometry(settings)}
    return found == geometry(settings) and ring_file(ring).parent == ring_dir(settings)


def differing(settings: Settings, ring: Ring) -> Iterator[str]:
    """What keeps a ring that holds orders from being used, in words of flags.

    More hands, entries or cells than wanted are no obstacle, nor is another directory.
    """
    wanted = geometry(settings)
    for flag, was, now in (
        ("--capacity", ring.capacity, wanted["capacity"]),
        ("--slot-bytes", ring.slot_bytes, wanted["slot_bytes"]),
    ):
        if was != now:
            yield f"{flag} was {was}, is {now}"
    for flag, most, now in (
        ("--batch", ring.hand // 2, settings.work.batch),
        ("--workers", ring.readers, settings.work.workers),
        ("--fronts", ring.writers // 4, settings.http.fronts),
    ):
        if now > most:
            yield f"{flag} is {now}, at most {most} with that ring"


def ring_dir(settings: Settings) -> Path:
    return Path(settings.ring.ring_dir).resolve()


def ring_file(ring: Ring) -> Path:
    assert ring.path is not None, "the supervisor's ring is attached by its path"
    return Path(ring.path)


def geometry(settings: Settings) -> dict[str, int]:
    return {
        "capacity": settings.ring.capacity,
        "slot_bytes": settings.ring.slot_bytes,
        "readers": max(8, settings.work.workers),
        "writers": max(16, 4 * settings.http.fronts),
        "hand": 2 * settings.work.batch,
    }


def create_ring(settings: Settings) -> Ring:
    """Named in ring.path first: a file that nobody names would stay in memory until the reboot."""
    directory = ring_dir(settings)
    if not directory.is_dir():
        raise CannotStart(f"--ring-dir {directory}: there is no such directory")
    path = directory / f"rasher-{secrets.token_hex(8)}.ring"
    try:
        write_link(settings, path)
        return Ring.create(str(path), **geometry(settings), label=settings.data_dir)
    except OSError as error:
        reason = error.strerror
    except (RingError, ValueError) as error:
        reason = str(error)
    raise CannotStart(
        f"--ring-dir {directory}: {reason} (a ring's size follows from --capacity, --slot-bytes, "
        "--batch and --workers)"
    )


def remove_ring(settings: Settings, ring: Ring) -> None:
    ring.unlink()
    link_path(settings).unlink(missing_ok=True)


def count_orders(ring: Ring) -> int:
    """Waiting and held. Exact when nobody works; a take cut off by a kill counts its items twice
    until the lock is taken next, but never makes an empty ring look full or a full one empty."""
    return ring.depth + sum(ring.held_count(index) for index in range(ring.readers))


def is_in_place(ring: Ring) -> bool:
    """Whether the ring's path still is the file that we hold (a cleaner may have removed it)."""
    try:
        there, held = ring_file(ring).stat(), os.fstat(ring.fd)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)


def end_participants(ring: Ring) -> None:
    """Kills and awaits every process that is recorded in the ring and still lives.

    No hand may be given out before: its last owner could still commit what lies in it.
    """
    living = [one for one in ring.participants() if one.pid != os.getpid() and one.alive()]
    for participant in living:
        participant.kill()
    for participant in living:
        name = f"{participant.role} {participant.index} (pid {participant.pid}) of the run before"
        if not participant.gone_within(KILL_PATIENCE_S):
            raise CannotStart(f"{name} does not end within {KILL_PATIENCE_S:g} s of SIGKILL")
        log.info("ended %s, which still lived", name)

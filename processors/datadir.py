"""The data directory: held by one supervisor at a time, and naming the ring that goes on living.

    rasher.pid   locked (flock) while a supervisor runs; the lock counts, a stale number does not;
                 fronts lock bytes of it (fcntl) for ids that they take
    ring.path    the path of the ring file, written before that file is made; below it those of
                 rings by other settings that still hold orders (processors/moving.py)

The ring file itself lies in the ring directory, bears the data directory's path as its label, and
outlives every process. What the next start finds, and does:

    found                                   does
    --------------------------------------  ------------------------------------------------------
    nothing, or a name without a file       makes a new ring
    half of one                             removes it, makes a new ring
    another boot's, damaged                 says so, leaves the file alone, makes a new ring
    unknown layout                          refused, names the layouts; the file stays
    another data dir's                      not ours to touch: refused if it holds orders, else new
    ours, as the settings want it           ends who still lives in it, opens it again, goes on
    ours, otherwise made, empty             removes it, makes a new ring
    ours, otherwise made, orders in it      makes a new ring, and the old one's orders are moved
                                            into it; refused if one of them doesn't fit
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from processors.settings import Settings
from ringbuf import Misfit, Ring, RingError

# A killed process that hangs in the kernel longer than this won't end soon.
KILL_PATIENCE_S = 5.0

# Where every layout has its number: the magic, then 32 bits (ringbuf/kernel.h, rb_header).
LAYOUT_HEAD = struct.Struct("<8sI")
RING_MAGIC = b"RSHRRING"
# No record header begins with this byte: what was damaged is dead in another ring too, not whole
# again by the new slot's checksum.
DAMAGED_HEADER = b"\xc1"
# How a ring left by any version that this one can succeed is attached. An older layout gets a line
# here: a reader of it with those parts of Ring that moving and counting use.
LAYOUTS: dict[int, Callable[[str], Ring]] = {2: Ring.attach}

log = logging.getLogger(__name__)


class CannotStart(Exception):
    """Rasher can't start, for a reason that the text gives."""

    code = 3


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
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        os.close(fd)
        raise CannotStart(f"--data-dir {settings.data_dir}: {error.strerror}: {path}") from error
    return fd


def read_link(settings: Settings) -> list[Path]:
    """The ring in use, then those that are emptied into it; what is named need not be there."""
    try:
        text = link_path(settings).read_text(encoding="utf-8")
    except (FileNotFoundError, ValueError):
        return []
    return [Path(line) for line in text.splitlines() if line]


def write_link(settings: Settings, rings: Sequence[Path]) -> None:
    """No ring: no file."""
    link = link_path(settings)
    if not rings:
        link.unlink(missing_ok=True)
        return
    fresh = link.with_suffix(".new")
    fresh.write_text("".join(f"{ring}\n" for ring in rings), encoding="utf-8")
    fresh.replace(link)


def name_rings(settings: Settings, rings: Sequence[Path]) -> None:
    """At a start: write_link, or CannotStart."""
    try:
        write_link(settings, rings)
    except OSError as error:
        link = link_path(settings)
        raise CannotStart(f"--data-dir {settings.data_dir}: {error.strerror}: {link}") from error


def attach_rings(settings: Settings) -> list[Ring]:
    """For onlookers, the audit among them: the data dir's rings, with the flow, the one in use
    last. Raises Misfit."""
    rings: list[Ring] = []
    try:
        for path in reversed(read_link(settings)):
            with contextlib.suppress(FileNotFoundError):  # emptied meanwhile, or never made
                rings.append(Ring.attach(str(path)))
    except BaseException:
        for ring in rings:
            ring.detach()
        raise
    for ring in rings:
        if ring.label != settings.data_dir:
            ring.detach()
    return [ring for ring in rings if ring.label == settings.data_dir]


def open_rings(settings: Settings) -> tuple[Ring, list[Ring]]:
    """For the supervisor, holding the data dir: the ring to go on with, open, and those whose
    orders are to be moved into it, in that order; nobody is in any of them."""
    with contextlib.ExitStack() as stack:
        left = []
        for path in read_link(settings):
            remove_half_made(path)
            ring = find_left(settings, path)
            if ring is not None:
                stack.callback(ring.detach)
                end_participants(ring)
                left.append(ring)
        # Only the first was the one in use: the others' orders come after those that it holds.
        fits = bool(left) and is_as_wanted(settings, left[0])
        older = [ring for ring in (left[1:] if fits else left) if not is_emptied(ring)]
        check_sizes(settings, older)
        current = go_on(settings, left[0], older) if fits else create_ring(settings, older)
        for ring in left:
            if ring is not current and ring not in older:
                ring.detach()
        stack.pop_all()
    return current, older


def go_on(settings: Settings, ring: Ring, older: Sequence[Ring]) -> Ring:
    name_rings(settings, [ring_file(one) for one in (ring, *older)])
    ring.reopen()
    log.info("going on with the ring %s, orders in it: %d", ring.path, count_orders(ring))
    return ring


def find_left(settings: Settings, path: Path) -> Ring | None:
    """The ring that an earlier run left there, if it is this boot's and this data dir's."""
    try:
        ring = attach_any_layout(path)
    except FileNotFoundError:
        return None
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


def remove_half_made(path: Path) -> None:
    """What a start has left that was killed while it made that ring: as much memory as a ring."""
    for half in path.parent.glob(f"{path.name}.*.tmp"):
        half.unlink(missing_ok=True)
        log.info("removed %s, left by a start that was killed", half)


def attach_any_layout(path: Path) -> Ring:
    """A ring of whatever layout this version can still empty. Raises what Ring.attach does, and
    CannotStart for a layout that it can't: the orders in it are good, only not to be read here."""
    with path.open("rb") as file:
        head = file.read(LAYOUT_HEAD.size)
    magic, layout = LAYOUT_HEAD.unpack(head.ljust(LAYOUT_HEAD.size, b"\0"))
    if magic == RING_MAGIC and layout not in LAYOUTS:
        known = ", ".join(map(str, LAYOUTS))
        raise CannotStart(
            f"{path}: a ring of layout {layout} found, {known} wanted; the file stays. Start the "
            "version of rasher that made it and end it by TERM, which drains it"
        )
    return LAYOUTS.get(layout, Ring.attach)(str(path))


def is_emptied(ring: Ring) -> bool:
    """Removes it if it holds nothing: a start by other settings, or one that was moved whole."""
    if count_orders(ring):
        return False
    ring.unlink()
    return True


def check_sizes(settings: Settings, older: Sequence[Ring]) -> None:
    """Before anything is moved: what doesn't fit the new slots stays where it is."""
    for ring in older:
        snapshot = ring.snapshot()
        items = [*snapshot.waiting, *(item for _, item in snapshot.held)]
        size = max(len(item.header) + len(item.payload) for item in items)
        head = ring.slot_bytes - ring.room
        needed = size + head
        if needed > settings.ring.slot_bytes:
            raise CannotStart(
                f"--slot-bytes {settings.ring.slot_bytes}: the ring left by other settings holds "
                f"an order of {size} bytes, at most {settings.ring.slot_bytes - head} fit; at "
                f"least --slot-bytes {needed + -needed % 64} is needed. Nothing was moved"
            )


def is_as_wanted(settings: Settings, ring: Ring) -> bool:
    found = {name: getattr(ring, name) for name in geometry(settings)}
    return found == geometry(settings) and ring_file(ring).parent == ring_dir(settings)


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


def create_ring(settings: Settings, older: Sequence[Ring]) -> Ring:
    """Named in ring.path first: a file that nobody names would stay in memory until the reboot."""
    directory = ring_dir(settings)
    if not directory.is_dir():
        raise CannotStart(f"--ring-dir {directory}: there is no such directory")
    path = directory / f"rasher-{secrets.token_hex(8)}.ring"
    try:
        name_rings(settings, [path, *map(ring_file, older)])
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
    """The file, and then its name in ring.path."""
    ring.unlink()
    gone = ring_file(ring)
    write_link(settings, [path for path in read_link(settings) if path != gone])


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

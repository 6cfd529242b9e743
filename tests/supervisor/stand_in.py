"""The real supervisor over children that do as little as they can.

`python stand_in.py FLAGS…` is the supervisor; its children are this file again, as roles. What they
do is said by STAND_IN_FRONT and STAND_IN_WORKER:

    front   serve: accepts and says its pid (default)    deaf: the same, but no TERM or USR1 ends it
    worker  work: takes and releases (default)           hold: fills its hand, never releases
            die: ends at once, never ready               idle: takes nothing
            deaf: like hold, but no TERM ends it

and while the file STAND_IN_BROKEN exists, of either role: a replacement ends at once, never ready.

The database is left out, but for STAND_IN_DATABASE=real; then it is tried again every 0.2 s.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from processors.child import RETIRE, Child, Role, enter  # noqa: E402
from processors.settings import Settings  # noqa: E402
from processors.stop import Stop  # noqa: E402
from ringbuf import Closed, Empty, HandFull  # noqa: E402

RECHECK_S = 0.05


def ask_to_end(deaf: bool) -> Stop:
    stop = Stop()
    for number in (signal.SIGTERM, RETIRE):
        signal.signal(number, signal.SIG_IGN if deaf else stop.request)
    return stop


def front(child: Child, manner: str) -> None:
    stop = ask_to_end(manner == "deaf")
    listen_fd = child.launch.listen_fd
    assert listen_fd is not None
    with child.ring.writer(), socket.socket(fileno=listen_fd) as listener:
        child.ready()
        while not stop.requested:
            listener.settimeout(RECHECK_S)
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                connection.sendall(b"%d\n" % os.getpid())


def worker(child: Child, manner: str) -> None:
    stop = ask_to_end(manner == "deaf")
    adopt = child.wait_turn(stop)
    if adopt is None:
        return
    if adopt:
        print(f"adopting {adopt}", file=sys.stderr, flush=True)
    for index in adopt if manner == "work" else []:
        with child.ring.reader(index) as theirs:
            while theirs.held():
                theirs.release(theirs.take())
    with child.ring.reader(child.launch.index) as hand:
        child.ready()
        if child.launch.work_off:
            hand.release(hand.take())
            return
        while not stop.requested:
            if manner == "idle":
                signal.sigtimedwait([], RECHECK_S)
                continue
            try:
                items = hand.take(timeout=RECHECK_S)
            except Empty:
                continue
            except HandFull:
                signal.sigtimedwait([], RECHECK_S)
                continue
            except Closed:
                return
            if manner == "work":
                hand.release(items)


def child_main(role: Role, argv: list[str]) -> int:
    manner = os.environ.get(f"STAND_IN_{role.upper()}", "")
    if manner == "die" or Path(os.environ.get("STAND_IN_BROKEN", "/none/such")).exists():
        return 9
    child = enter(argv)
    child.watch_parent()
    front(child, manner or "serve") if role == "front" else worker(child, manner or "work")
    child.ring.detach()
    return 0


def supervisor_main() -> int:
    import supervisor  # noqa: PLC0415 - the children need none of it
    from processors import policy  # noqa: PLC0415

    original = supervisor.run

    def run(settings: Settings) -> int:
        return original(settings, lambda role: [sys.executable, __file__, role])

    supervisor.run = run  # type: ignore[assignment]
    if os.environ.get("STAND_IN_DATABASE") != "real":
        supervisor.migrated = lambda settings: True  # type: ignore[attr-defined]
        supervisor.name_of_database = lambda settings: None  # type: ignore[attr-defined]
        supervisor.tidy = lambda settings, *, empty: None  # type: ignore[attr-defined]
    policy.MIGRATE_EVERY_S = 0.2
    return supervisor.main()


if __name__ == "__main__":
    if sys.argv[1:2] == ["front"] or sys.argv[1:2] == ["worker"]:
        sys.exit(child_main(sys.argv[1], sys.argv[2:]))  # type: ignore[arg-type]
    sys.exit(supervisor_main())

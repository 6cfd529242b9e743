"""A nursery of workers and supervisors: each actor is the real main, with a knife in it or not.

`python -m tests.crash.work_actors KERNEL`: with the stepping build of the kernel.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.ringbuf.steps import use_kernel


def work(path: str, data_dir: str, adopt: list[int], processor: str, cut: str) -> int:
    """-> the exit code. `cut` as in knife.py, after the path of its log; "" for none."""
    from processors.child import LAUNCH_FLAG, Launch, write_launch  # noqa: PLC0415
    from processors.settings import Settings, WorkSettings  # noqa: PLC0415
    from tests.crash.knife import Cut, Knife  # noqa: PLC0415

    alive_r, _never_closed = os.pipe()
    work = WorkSettings(workers=1, processor=processor or WorkSettings().processor)
    launch = Launch(
        role="worker",
        index=0,
        settings=Settings(data_dir=data_dir, database=f"sqlite:///{data_dir}/rasher.db", work=work),
        ring_fd=os.open(path, os.O_RDWR | os.O_CLOEXEC),
        listen_fd=None,
        alive_fd=alive_r,
        status_fd=os.open(os.devnull, os.O_WRONLY),
        parent_pid=os.getppid(),
        adopt=adopt,
    )
    words = [LAUNCH_FLAG, str(write_launch(launch))]
    main = importlib.import_module("processors.worker").main
    if cut:
        Knife(Cut.parse(cut), f"{path}.cuts")
    code: int = main(words)
    sys.settrace(None)
    return code


def supervise(path: str, argv: list[str], cut: str) -> int:
    """-> the exit code. It has its own children, as `rasher` has, and the settings of `argv`."""
    from tests.crash.knife import Cut, Knife  # noqa: PLC0415

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the nursery ignores it
    for name in [name for name in os.environ if name.startswith("RASHER_")]:
        del os.environ[name]
    main = importlib.import_module("supervisor").main
    if cut:
        Knife(Cut.parse(cut), f"{path}.cuts")
    code: int = main(argv)
    sys.settrace(None)
    return code


def cancel(path: str, data_dir: str, order_id: str, cut: str) -> str:
    """-> what became of it, as a front does it."""
    from processors.cancelling import Canceller  # noqa: PLC0415
    from processors.store import Store  # noqa: PLC0415
    from ringbuf import Ring  # noqa: PLC0415
    from tests.crash.knife import Cut, Knife  # noqa: PLC0415

    if cut:
        Knife(Cut.parse(cut), f"{path}.cuts")
    store, key = Store.open(f"sqlite:///{data_dir}/rasher.db"), bytes.fromhex(order_id)
    with Ring.attach(path) as ring:
        found = ring.find(key)
        done = Canceller(ring.epoch).cancel(store, key, None if found is None else found.item)
        ring.bump_commits()
    store.close()
    sys.settrace(None)
    return done.verdict


def broken() -> Any:
    """A processor that can decide no order."""

    def process(_transaction: object, orders: Sequence[object], _moment: int) -> None:
        raise ValueError(f"{len(orders)} orders too many")

    return process


if __name__ == "__main__":
    use_kernel(Path(sys.argv[1]))
    from tests.ringbuf import actors

    # Here, not in each actor: they are forks of this process.
    for module in (
        *("supervisor", "processors.worker", "processors.fefo", "processors.migrate"),
        "processors.cancelling",
    ):
        importlib.import_module(module)
    actors.ROLES |= {"work": work, "supervise": supervise, "cancel": cancel}
    actors.main()

"""The process that runs the relay: `rasher relay`, one under the supervisor.

It yields to everybody else on the machine's cores: partners hear of an order a little later when
the machine is busy, and orders are not slowed down by telling.

It puts nothing into the ring, and takes one of the writers' places there all the same: so it has a
page to count in, and whoever starts after a supervisor was killed finds it and ends it, should it
still live. The replacement of a relay takes its place when its turn comes, so there is one at most.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence

from processors.attempts import Outcome
from processors.child import Child, enter
from processors.doubt import give_up
from processors.names import Loop
from processors.relay import Relay
from processors.relay_access import WAIT_S_MAX, Access, Urgent
from processors.restraint import Restraint
from processors.stop import Stop
from processors.store import Store, StoreBroken, StoreError
from processors.tally import OF_ATTEMPTS, Tally
from ringbuf import InUse

log = logging.getLogger("rasher.relay")

# Of 19. A process of niceness 0 that wants the same core has 28 times its share.
NICENESS = 15
CONNECTIONS_MAX = 4
EXIT_CANNOT_START = 3


def waited_for_turn(child: Child) -> bool:
    """Whether it is this process's turn; False: it was asked to stop before."""
    with Stop() as stop:
        signal.signal(signal.SIGTERM, stop.request)
        try:
            return child.wait_turn(stop) is not None
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def open_access(child: Child) -> Access:
    """The way to the database of the settings."""
    url = child.launch.settings.database
    if not url.startswith("sqlite:"):
        return Access(Store.open(url, connections_max=CONNECTIONS_MAX))
    store = Store.open(url, connections_max=CONNECTIONS_MAX, busy_timeout_s=WAIT_S_MAX)
    return Urgent(store, child.ring)


async def serve(child: Child, access: Access, tally: Tally) -> None:
    """Until TERM. Raises StoreBroken, StoreError, alone or in a group."""

    def counted(outcome: Outcome) -> None:
        tally.count(OF_ATTEMPTS + outcome)

    endpoints = child.launch.settings.webhooks.endpoints
    relay = Relay(
        access.store, child.ring, endpoints, counted, access=access, restraint=Restraint.of_cores()
    )
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, relay.stop)
    child.watch_parent(loop)
    await relay.run(child.ready)


def main(argv: Sequence[str]) -> int:
    """`python -m processors.relay_process --launch-fd N`: exit 0 when stopped by TERM."""
    child = enter(argv)
    access = open_access(child)
    os.nice(NICENESS)  # of this thread and those that it will start, not of those that are there
    try:
        if not waited_for_turn(child):
            return 0
        try:
            place = child.ring.writer()
        except InUse as error:
            log.error("can't start: %s", error)
            return EXIT_CANNOT_START
        with place:
            return run(child, access, child.tally("writer", place.index))
    finally:
        access.close()
        access.store.close()


def run(child: Child, access: Access, tally: Tally) -> int:
    """-> the exit code."""
    code = 0
    try:
        with asyncio.Runner(loop_factory=Loop) as runner:
            runner.run(serve(child, access, tally))
    except* StoreBroken as broken:
        give_up(child.ring, broken.exceptions[0])
    except* StoreError as unfit:
        log.error("can't start: %s", unfit.exceptions[0])
        code = EXIT_CANNOT_START
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv))

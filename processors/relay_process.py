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


async def serve(child: Child, store: Store, tally: Tally) -> None:
    """Until TERM. Raises StoreBroken, StoreError, alone or in a group."""

    def counted(outcome: Outcome) -> None:
        tally.count(OF_ATTEMPTS + outcome)

    relay = Relay(store, child.ring, child.launch.settings.webhooks.endpoints, counted)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, relay.stop)
    child.watch_parent(loop)
    await relay.run(child.ready)


def main(argv: Sequence[str]) -> int:
    """`python -m processors.relay_process --launch-fd N`: exit 0 when stopped by TERM."""
    child = enter(argv)
    os.nice(NICENESS)
    for name in ("httpx", "httpcore"):  # they would tell of each request, with its url
        logging.getLogger(name).setLevel(logging.WARNING)
    if not waited_for_turn(child):
        return 0
    try:
        place = child.ring.writer()
    except InUse as error:
        log.error("can't start: %s", error)
        return EXIT_CANNOT_START
    with place:
        return run(child, child.tally("writer", place.index))


def run(child: Child, tally: Tally) -> int:
    """-> the exit code."""
    store = Store.open(child.launch.settings.database, connections_max=CONNECTIONS_MAX)
    code = 0
    try:
        with asyncio.Runner(loop_factory=Loop) as runner:
            runner.run(serve(child, store, tally))
    except* StoreBroken as broken:
        give_up(child.ring, broken.exceptions[0])
    except* StoreError as unfit:
        log.error("can't start: %s", unfit.exceptions[0])
        code = EXIT_CANNOT_START
    finally:
        store.close()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv))

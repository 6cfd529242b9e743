"""Ending a request's wait when its client hangs up, without a task that watches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ingest.exchange import HungUp, Scope

# ASGI extension of our protocol. `on_hangup(callback)` calls back when the client goes away, None
# takes it back; one at a time. `abort()` ends the connection, which is `transport`.
CONNECTION = "rasher.connection"

T = TypeVar("T")


async def unless_hung_up(scope: Scope, wait: Coroutine[Any, Any, T]) -> T:
    """What the coroutine returns; cancelled when the client hangs up, then HungUp.

    Behind another server than ours hang-ups are not noticed.
    """
    connection = scope.get("extensions", {}).get(CONNECTION)
    task = asyncio.current_task()
    if connection is None or task is None:
        return await wait
    on_hangup: Callable[[Callable[[], object] | None], None] = connection["on_hangup"]
    gone = False

    def cancel() -> None:
        nonlocal gone
        gone = True
        task.cancel()

    on_hangup(cancel)
    try:
        return await wait
    except asyncio.CancelledError:
        if gone and task.uncancel() == 0:
            raise HungUp from None
        raise
    finally:
        on_hangup(None)


async def cut_off(scope: Scope) -> None:
    """Ends the connection without an answer, and returns when it has ended."""
    connection = scope.get("extensions", {}).get(CONNECTION)
    gone = asyncio.Event()
    if connection is not None:  # behind another server than ours the end of the process ends it
        connection["on_hangup"](gone.set)
        connection["abort"]()
    await gone.wait()

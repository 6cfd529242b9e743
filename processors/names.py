"""Looking up host names on a loop, so that one whose servers don't answer holds up no other.

uvloop looks up four names at once, in threads that nothing ends: four attempts at an endpoint whose
name server hangs, and nobody else's name is found. Here a name has a thread of its own, which all
who ask for it meanwhile wait for; there are as many names as endpoints.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from functools import partial
from typing import Any

import uvloop

Answer = list[tuple[Any, ...]]
Question = tuple[Any, ...]


class Names:
    """On one loop."""

    def __init__(self) -> None:
        self._asked: dict[Question, asyncio.Future[Answer]] = {}

    async def find(self, *question: Any) -> Answer:
        """As socket.getaddrinfo, with what it raises. Cancelled, it does not end the look-up."""
        answer = self._asked.get(question)
        if answer is None:
            loop = asyncio.get_running_loop()
            answer = self._asked[question] = loop.create_future()
            # A daemon: the process does not wait for it to end.
            threading.Thread(
                target=_look, args=(loop, question, partial(self._tell, question)), daemon=True,
                name="names",
            ).start()  # fmt: skip
        return await asyncio.shield(answer)

    def _tell(self, question: Question, found: Answer | Exception) -> None:
        answer = self._asked.pop(question)
        if isinstance(found, Exception):
            answer.set_exception(found)
            answer.exception()  # whoever asked may be gone
        else:
            answer.set_result(found)


def _look(loop: asyncio.AbstractEventLoop, question: Question, tell: Any) -> None:
    found: Answer | Exception
    try:
        found = list(socket.getaddrinfo(*question))
    except Exception as error:  # what it raises for odd names is not only OSError
        found = error
    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(tell, found)


class Loop(uvloop.Loop):
    """uvloop's, with Names."""

    def __init__(self) -> None:
        super().__init__()
        self._names = Names()

    async def getaddrinfo(
        self,
        host: Any,
        port: Any,
        *,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> Answer:
        """As every loop has it."""
        return await self._names.find(host, port, family, type, proto, flags)

"""httpx's asynchronous client, whose calls may be cut off."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import httpx

CONNECT_S_MAX = 5.0
# A call that was cut off has its connection by then, if it gets one: TCP and TLS have that each.
CUT_OFF_S = 2 * CONNECT_S_MAX + 1
# At once, of a client; httpx's own.
CONNECTIONS_MAX, IDLE_CONNECTIONS_MAX = 100, 20


class Connections:
    """Who is cancelled while he waits for a connection of httpx's pool, or for it to be there, may
    take its place in the pool away for good (httpcore issue 1093). So nobody waits in the pool, and
    what is cut off goes on by itself for as long as connecting may take. `options`: of
    httpx.AsyncClient."""

    def __init__(self, **options: Any) -> None:
        limits = options.setdefault(
            "limits",
            httpx.Limits(
                max_connections=CONNECTIONS_MAX, max_keepalive_connections=IDLE_CONNECTIONS_MAX
            ),
        )
        self._http = httpx.AsyncClient(**options)
        self._free = asyncio.Semaphore(limits.max_connections or sys.maxsize)
        self._cut_off: set[asyncio.Task[httpx.Response]] = set()

    async def request(
        self, method: str, path: str, free_s_max: float, **rest: Any
    ) -> httpx.Response:
        """As httpx.AsyncClient.request; a free connection is waited for as long as that. Raises
        httpx.TransportError."""
        try:
            async with asyncio.timeout(free_s_max):
                await self._free.acquire()
        except TimeoutError:
            text = f"no connection was free within {free_s_max:g} s: as many calls are under way"
            raise httpx.PoolTimeout(text) from None
        sending = asyncio.ensure_future(self._http.request(method, path, **rest))
        sending.add_done_callback(self._sent)
        try:
            return await asyncio.shield(sending)
        except asyncio.CancelledError:
            if not sending.done():
                self._cut_off.add(sending)
                asyncio.get_running_loop().call_later(CUT_OFF_S, sending.cancel)
            raise

    def _sent(self, sending: asyncio.Task[httpx.Response]) -> None:
        self._cut_off.discard(sending)
        self._free.release()
        if not sending.cancelled():
            sending.exception()  # nobody may be there any more to look at it

    async def aclose(self) -> None:
        """Ends all of them."""
        for sending in (left := [*self._cut_off]):
            sending.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._http.aclose()

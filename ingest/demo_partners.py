"""The partners of `rasher demo`: receivers of webhooks, each of its own temper, in this process."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from aiohttp import web

from processors.flags import BY_NAME

SECRET_BYTES = 32
SLOW_S = 0.5
END_S_MAX = 1.0
# Without the setting there is nothing that would send.
RELAYED = "webhook-url" in BY_NAME


class Partner:
    """Takes events in. `pause_s` before each answer; `status`: what it answers to those that bear
    a good signature. Of an event that comes twice the second does not count."""

    def __init__(self, name: str, *, pause_s: float = 0.0, status: int = 204) -> None:
        self.name = name
        self.forged = 0
        self._key = secrets.token_bytes(SECRET_BYTES)
        self._pause_s = pause_s
        self._status = status
        self._delivered: set[str] = set()
        self._port = 0

    @property
    def delivered(self) -> int:
        """Events that it answered 2xx."""
        return len(self._delivered)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Meanwhile it answers, on a free port."""
        application = web.Application()
        application.router.add_post("/", self._answer)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=END_S_MAX)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self._port = runner.addresses[0][1]
            yield
        finally:
            await runner.cleanup()

    def as_toml(self) -> str:
        """Its entry in rasher.toml."""
        secret = base64.b64encode(self._key).decode()
        return (
            f'[[webhooks]]\nname = "{self.name}"\nurl = "http://127.0.0.1:{self._port}/"\n'
            f'secret = "whsec_{secret}"\n'
        )

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        await asyncio.sleep(self._pause_s)
        event = request.headers.get("webhook-id", "")
        stamp = request.headers.get("webhook-timestamp", "")
        if not self.signed(event, stamp, body, request.headers.get("webhook-signature", "")):
            self.forged += 1
            return web.Response(status=401)
        if self._status < 300:
            self._delivered.add(event)
        return web.Response(status=self._status)

    def signed(self, event: str, stamp: str, body: bytes, signatures: str) -> bool:
        """Whether one of the signatures (`v1,BASE64 ...`) is of this content with its secret."""
        content = f"{event}.{stamp}.".encode() + body
        own = base64.b64encode(hmac.digest(self._key, content, hashlib.sha256)).decode()
        return any(hmac.compare_digest(f"v1,{own}", one) for one in signatures.split(" "))


def partners() -> list[Partner]:
    """One that is well, one that is slow, one that fails; none if nothing would call them."""
    if not RELAYED:
        return []
    return [Partner("healthy"), Partner("slow", pause_s=SLOW_S), Partner("failing", status=500)]


@asynccontextmanager
async def all_listening(some: Sequence[Partner]) -> AsyncIterator[None]:
    """Meanwhile each of them answers."""
    async with AsyncExitStack() as stack:
        for partner in some:
            await stack.enter_async_context(partner.listening())
        yield

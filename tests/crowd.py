"""Clients of the most watchful kind: whatever is not a whole answer of its own is counted.

A keeper sends on one connection until an answer announces its close, with pauses of up to what a
server allows an idle connection; a newcomer makes a connection for each order. Nobody tries again:
one refused connection, one reset, one end without an announced close is one count.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path

from ingest.front import KEEP_ALIVE_S
from tests.program import PATIENCE_S

SHORT_PAUSE_S = 0.08
# As a client does that wants no connection to end as it sends.
LONG_PAUSE_S = KEEP_ALIVE_S - 1.0


class Crowd:
    """Orders from the moment of `with` to its end; then `counts`, and each id in the ledger."""

    def __init__(self, port: int, ledger: Path, keepers: int, newcomers: int, idlers: int) -> None:
        self.port = port
        self.ledger = ledger
        self.pauses_s = [SHORT_PAUSE_S] * keepers + [LONG_PAUSE_S] * idlers
        self.newcomers = newcomers
        self.counts: Counter[str] = Counter()
        self.answers: list[tuple[str, int]] = []
        self.longest_s = 0.0
        self._chance = random.Random(7)
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()), name="crowd")

    def __enter__(self) -> Crowd:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        lines = [f"{order_id} {status}\n" for order_id, status in self.answers]
        self.ledger.write_text("".join(lines), encoding="ascii")

    @property
    def accepted(self) -> int:
        return self.counts["202"]

    @property
    def trouble(self) -> dict[str, int]:
        """Everything that is no 202."""
        good = ("202", "connections", "closes announced")
        return {what: count for what, count in self.counts.items() if what not in good}

    async def _all(self) -> None:
        over = asyncio.Event()
        async with asyncio.TaskGroup() as clients:
            for pause_s in self.pauses_s:
                clients.create_task(self._keep(over, pause_s))
            for _ in range(self.newcomers):
                clients.create_task(self._come_anew(over))
            await asyncio.to_thread(self._over.wait)
            over.set()

    async def _pause(self, over: asyncio.Event, most_s: float) -> bool:
        """Whether it goes on after that."""
        with suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), self._chance.uniform(0, most_s))
        return not over.is_set()

    async def _keep(self, over: asyncio.Event, pause_s: float) -> None:
        while not over.is_set():
            connection = await self._connect()
            while connection and await self._pause(over, pause_s):
                if not await self._order(*connection):
                    break
            if connection:
                connection[1].close()

    async def _come_anew(self, over: asyncio.Event) -> None:
        while await self._pause(over, SHORT_PAUSE_S):
            connection = await self._connect()
            if connection:
                await self._order(*connection, "connection: close\r\n")
                connection[1].close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        try:
            connection = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError as error:
            self.counts[f"connect: {type(error).__name__}"] += 1
            return None
        self.counts["connections"] += 1
        return connection

    async def _order(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, more: str = ""
    ) -> bool:
        """Whether the connection can be used on."""
        order_id = str(uuid.uuid4())
        lines = [{"sku": "BELLY", "quantity": "1"}]
        order = {"order_id": order_id, "customer": "crowd", "lines": lines}
        body = json.dumps(order).encode()
        head = "POST /orders HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
        head += f"{more}content-length: {len(body)}\r\n\r\n"
        began = asyncio.get_running_loop().time()
        status, on = 0, False
        try:
            writer.write(head.encode() + body)
            status, on = await self._answer(reader)
            self.counts[str(status)] += 1
        except (OSError, asyncio.IncompleteReadError) as error:
            self.counts[f"answer: {type(error).__name__}"] += 1
        self.longest_s = max(self.longest_s, asyncio.get_running_loop().time() - began)
        self.answers.append((order_id, status))
        return on

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[int, bool]:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        fields = dict(line.partition(": ")[::2] for line in head.split("\r\n")[1:])
        await reader.readexactly(int(fields["content-length"]))
        closes = fields.get("connection") == "close"
        self.counts["closes announced"] += closes
        return int(head.split()[1]), not closes

"""An integration of one's own: a courier is reserved over HTTP for whatever is allocated.

    COURIER_URL=https://courier.example rasher --processor courier:processor --attempts 10

The rules that calls to others need, each in one place:

    a time limit         a batch has LIMIT_S for all of its reservations, whatever the courier sends
    the courier is away  Retry: the batch is rolled back, its stock is free again, and its orders
                         come later; meanwhile nobody asks for AWAY_S, so that orders don't wait
                         for the time limit one after the other
    asked twice          a worker may be killed after the reservation and before its commit, and the
                         order comes again. The order's id is the reservation's, so it is the same
    a refusal            an order that the courier won't take is rejected, and holds no stock
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from uuid import UUID

import httpx
from sqlalchemy.engine import Connection

from processors.pipeline import Outcome, Processor, Retry, Work, fefo

LIMIT_S = 2.0
AWAY_S = 5.0
# Requests under way at once.
AT_ONCE = 16
REFUSED = Outcome.rejected("no_courier")
# The courier has understood, and says no: asking again would not help.
REFUSALS = frozenset({httpx.codes.CONFLICT, httpx.codes.GONE, httpx.codes.UNPROCESSABLE_ENTITY})


class Courier:
    """Reserves at `url`. `transport`: for tests, in the place of the network."""

    def __init__(
        self,
        url: str,
        *,
        limit_s: float = LIMIT_S,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url.rstrip("/")
        self._limit_s = limit_s
        self._transport = transport
        self._clock = clock
        self._away_until = 0.0
        self._tls = ssl.create_default_context()  # takes milliseconds: once, not for each batch

    def deadline(self) -> float:
        """When reservations that begin now must be through, by its clock."""
        return self._clock() + self._limit_s

    def reserve(self, orders: Iterable[Work], deadline: float) -> set[bytes]:
        """Reserves for each order -> the ids of those that were refused. Raises Retry."""
        now = self._clock()
        away_s = self._away_until - now
        if away_s > 0:
            raise Retry(away_s, f"{self._url} was away, nobody asks for another {away_s:.1f} s")
        try:
            return asyncio.run(self._reserve(list(orders), deadline - now))
        except (httpx.TransportError, TimeoutError) as error:
            self._away_until = self._clock() + AWAY_S
            raise Retry(AWAY_S, f"{self._url} is away: {error!r}") from error

    async def _reserve(self, orders: list[Work], limit_s: float) -> set[bytes]:
        # httpx limits each wait for the next bytes; whoever sends one at a time could go on for
        # ever. This limits all of it.
        async with asyncio.timeout(limit_s):
            async with httpx.AsyncClient(
                transport=self._transport, verify=self._tls, trust_env=False
            ) as client:
                gate = asyncio.Semaphore(AT_ONCE)
                answers = await asyncio.gather(*(self._ask(client, gate, one) for one in orders))
        return {work.order_id for work, taken in zip(orders, answers, strict=True) if not taken}

    async def _ask(self, client: httpx.AsyncClient, gate: asyncio.Semaphore, work: Work) -> bool:
        """Whether the courier takes it. PUT under the order's id: twice is once."""
        place = f"{self._url}/reservations/{UUID(bytes=work.order_id)}"
        body = {"customer": work.order.customer, "grams": grams_of(work)}
        # Only the status counts: of what follows it, however long, nothing is read.
        async with gate, client.stream("PUT", place, json=body) as answer:
            if answer.is_success:
                return True
            if answer.status_code in REFUSALS:
                return False
            raise Retry(AWAY_S, f"{place} answered {answer.status_code}")


def grams_of(work: Work) -> int:
    """Quantities are kilograms, which Rasher counts in thousandths."""
    return sum(line.thousandths for line in work.order.lines)


class Reserving:
    """A `Processor`: allocates, then reserves for what was allocated."""

    def __init__(self, allocate: Processor, courier: Courier) -> None:
        self._allocate = allocate
        self._courier = courier

    def __call__(
        self, transaction: Connection, orders: Sequence[Work], moment_us: int
    ) -> list[Outcome]:
        refused: set[bytes] = set()
        reserved: set[bytes] = set()
        deadline = self._courier.deadline()
        while True:
            left = [work for work in orders if work.order_id not in refused]
            # What is allocated to an order that the courier refuses has to go back, and may be just
            # what another one lacked: then all are allocated anew. Each round refuses at least one.
            savepoint = transaction.begin_nested()
            allocated = self._allocate(transaction, left, moment_us) if left else []
            outcomes = {work.order_id: one for work, one in zip(left, allocated, strict=True)}
            asked = [
                work
                for work in left
                if outcomes[work.order_id].status == "allocated" and work.order_id not in reserved
            ]
            more = self._courier.reserve(asked, deadline) if asked else set()
            if not more:
                savepoint.commit()
                return [outcomes.get(work.order_id, REFUSED) for work in orders]
            savepoint.rollback()
            refused |= more
            reserved |= {work.order_id for work in asked} - more


def processor() -> Processor:
    """What `--processor` names; each worker calls it once."""
    return Reserving(fefo(), Courier(os.environ.get("COURIER_URL", "http://127.0.0.1:9000")))

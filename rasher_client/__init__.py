"""A client of Rasher: orders in, their fate out, each order once whatever breaks on the way.

    with Client("http://127.0.0.1:8000", token="...") as rasher:
        order_id = rasher.submit({"customer": "Funky Foods", "lines": [...]})["order_id"]
        print(rasher.wait(order_id)["status"])              # allocated, rejected, dead, cancelled
        rasher.submit_many(orders, progress=True)           # any iterable, as long as you like

`AsyncClient` has the same calls to be awaited, and `submit_many` takes async iterables, too.

An order is any mapping that is JSON (Decimal and UUID are written as text), as docs/http-api.md
describes it. What the service could not answer (408, 429, 503, a connection that broke) is tried
again with growing pauses, at least as long as `Retry-After` says. Every attempt bears the same
`Idempotency-Key`, so that an order is in once even if the answer to an earlier attempt was lost.
What the service refuses is never tried again.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Self, TypeVar, cast

import httpx
from rich.console import Console
from rich.progress import Progress

from rasher_client.connections import CONNECT_S_MAX, Connections

__all__ = ["AsyncClient", "Client", "Counts", "RasherError", "Refused", "Result", "Unavailable"]

# How often something is tried; for a bulk that gets further they begin anew.
ATTEMPTS = 8
PAUSE_S, PAUSE_S_MAX = 0.25, 10.0
RETRY_AFTER_S_MAX = 60.0
# Longer than a full ring keeps an order, or ?wait an answer.
ANSWER_S_MAX = 60.0
# A bulk is answered after its last line. One that takes longer is sent again, without harm.
BULK_S_MAX = 300.0
# Of a bulk, together in one request and kept until that is answered.
BATCH_LINES, BATCH_BYTES = 1000, 512 * 1024
WAIT_S, POLL_S, POLL_S_MAX = 30, 0.02, 1.0

AGAIN = frozenset({408, 429, 503})
UNDER_WAY = frozenset({"queued", "processing"})
KEY_CHARACTERS_MAX = 200

Order = Mapping[str, Any]
View = dict[str, Any]  # what the service says of an order
T = TypeVar("T")


class RasherError(Exception):
    """What calls raise here, beside TimeoutError and ValueError."""


class Refused(RasherError):
    """The service said no, and would again. `errors`: [{"pointer", "detail"}] of single fields."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.problem = problem
        self.detail = str(problem.get("detail", ""))
        self.errors: list[dict[str, str]] = problem.get("errors", [])
        fields = "".join(f"; {one['pointer']}: {one['detail']}" for one in self.errors)
        super().__init__(f"{status} {self.detail}{fields}")


class Unavailable(RasherError):
    """No answer, or none but "later", to the last of all attempts. Whether the order is in may be
    open: the same call with the same key finds out. `counts`: what a bulk had come to."""

    def __init__(self, reason: str, counts: Counts | None = None) -> None:
        super().__init__(f"after {ATTEMPTS} attempts: {reason}")
        self.counts = counts


@dataclass(frozen=True)
class Result:
    """What became of one order of a bulk: either an order id, or `error`, a problem object.

    `number`: its place among the orders, from 0 on.
    """

    number: int
    order: Order
    order_id: str | None
    error: Mapping[str, Any] | None


@dataclass
class Counts:
    """How many orders of a bulk were taken in, now or by an earlier attempt, and refused."""

    accepted: int = 0
    refused: int = 0


# ---- what is said, whoever says it --------------------------------------------------------------
# Each call is written once, as a generator: it gives requests and pauses, and gets answers.


@dataclass(frozen=True)
class _Request:
    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes | None = None
    answer_s_max: float = ANSWER_S_MAX

    @property
    def rest(self) -> dict[str, Any]:
        """For httpx, by name."""
        timeout = httpx.Timeout(self.answer_s_max, connect=CONNECT_S_MAX)
        return {"headers": self.headers, "content": self.content, "timeout": timeout}


_Answer = httpx.Response | httpx.TransportError
_Steps = Generator[_Request | float, _Answer | None, T]


def _ask(request: _Request) -> _Steps[httpx.Response]:
    """The answer to a request that may be repeated. Raises Refused, Unavailable."""
    reason = ""
    for attempt in range(ATTEMPTS):
        answer = yield request
        if isinstance(answer, httpx.Response):
            if answer.status_code not in AGAIN:
                return _checked(answer)
            reason = f"{answer.status_code} {_problem(answer).get('detail', '')}"
        else:
            reason = repr(answer)
        if attempt < ATTEMPTS - 1:
            yield _pause_s(attempt, _retry_after_s(answer))
    raise Unavailable(reason)


def _pause_s(attempt: int, least_s: float) -> float:
    """Jittered, so that those who were turned away together do not come back together."""
    return least_s + random.uniform(0, min(PAUSE_S_MAX, PAUSE_S * 2**attempt))


def _retry_after_s(answer: _Answer | None) -> float:
    value = answer.headers.get("retry-after", "") if isinstance(answer, httpx.Response) else ""
    return min(float(value), RETRY_AFTER_S_MAX) if value.isdigit() else 0.0


def _problem(answer: httpx.Response) -> dict[str, Any]:
    try:
        content = answer.json()
    except ValueError:  # of a proxy's own making
        content = None
    return content if isinstance(content, dict) else {"detail": answer.text[:200]}


def _checked(answer: httpx.Response) -> httpx.Response:
    if not answer.is_success and answer.status_code != httpx.codes.NOT_MODIFIED:
        raise Refused(answer.status_code, _problem(answer))
    return answer


def _submit(order: Order, idempotency_key: str | None, wait_s: int) -> _Steps[View]:
    headers = {"content-type": "application/json"}
    # An order's own id does what a key does, and a key beside it would have to fit it.
    if idempotency_key is not None or order.get("order_id") is None:
        headers["idempotency-key"] = _key(idempotency_key)
    if wait_s:
        headers["prefer"] = f"wait={wait_s}"
    answer = yield from _ask(_Request("POST", "/orders", headers, _line(order)))
    return cast("View", answer.json())


def _get(order_id: str) -> _Steps[View]:
    answer = yield from _ask(_Request("GET", f"/orders/{order_id}"))
    return cast("View", answer.json())


def _cancel(order_id: str) -> _Steps[View]:
    answer = yield from _ask(_Request("DELETE", f"/orders/{order_id}"))
    return cast("View", answer.json())


def _wait(order_id: str, timeout_s: float) -> _Steps[View]:
    until_s, poll_s, tag = time.monotonic() + timeout_s, POLL_S, ""
    while True:
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"order {order_id} has no outcome after {timeout_s:g} s")
        query = f"?wait={int(min(WAIT_S, left_s))}" if left_s >= 1 else ""
        headers = {"if-none-match": tag} if tag else {}
        asked_s = time.monotonic()
        answer = yield from _ask(_Request("GET", f"/orders/{order_id}{query}", headers))
        if answer.status_code != httpx.codes.NOT_MODIFIED:
            view: View = answer.json()
            if view["status"] not in UNDER_WAY:
                return view
            tag = answer.headers.get("etag", "")
        if time.monotonic() - asked_s < POLL_S_MAX:  # it did not wait for us
            yield min(poll_s, max(0.0, until_s - time.monotonic()))
            poll_s = min(2 * poll_s, POLL_S_MAX)


class _Batch:
    """Orders that go in one request, and what became of them."""

    def __init__(self, key: str, first: int) -> None:
        self._key = f"{key}/{first}"
        self.first = first
        self._orders: list[Order] = []
        self.lines: list[bytes] = []
        self._bytes = 0
        self._results: dict[int, Result] = {}

    def add(self, order: Order) -> bool:
        """Whether it is full now."""
        line = _line(order)
        self._orders.append(order)
        self.lines.append(line)
        self._bytes += len(line)
        return len(self.lines) >= BATCH_LINES or self._bytes >= BATCH_BYTES

    def send(self) -> _Steps[list[Result]]:
        """What became of all of them, in their order. Raises Refused, Unavailable."""
        attempt, reason = 0, ""
        while len(self._results) < len(self.lines):
            if attempt == ATTEMPTS:
                raise Unavailable(reason)
            known = len(self._results)
            answer = yield self._request()
            pause_s = _retry_after_s(answer)
            if not isinstance(answer, httpx.Response):
                reason = repr(answer)
            elif answer.status_code in AGAIN:
                reason = f"{answer.status_code} {_problem(answer).get('detail', '')}"
            else:
                reason, pause_s = self._note(_checked(answer).json()["items"])
            attempt = 0 if len(self._results) > known else attempt + 1
            if len(self._results) < len(self.lines) and attempt < ATTEMPTS:
                yield _pause_s(attempt, pause_s)
        return [self._results[number] for number in sorted(self._results)]

    def _request(self) -> _Request:
        # An empty line counts and is nothing else: the others keep their numbers, and so their ids.
        done = self._results
        lines = [b"" if n in done else line for n, line in enumerate(self.lines, self.first)]
        headers = {"content-type": "application/x-ndjson", "idempotency-key": self._key}
        content = b"\n".join(lines)
        return _Request("POST", "/orders/bulk", headers, content, answer_s_max=BULK_S_MAX)

    def _note(self, items: list[dict[str, Any]]) -> tuple[str, float]:
        """-> why some were not taken in that may be yet, and how long to leave them."""
        reason, pause_s = "", 0.0
        for item in items:
            error = item.get("error")
            if error is not None and error["status"] in AGAIN:
                reason = f"{error['status']} {error['detail']}"
                pause_s = min(item.get("retry_after", 0.0), RETRY_AFTER_S_MAX)
                continue
            number, order = self.first + item["line"] - 1, self._orders[item["line"] - 1]
            self._results[number] = Result(number, order, item.get("order_id"), error)
        return reason, pause_s


class _Many:
    """One bulk, batch after batch."""

    def __init__(self, idempotency_key: str | None, on_result: Callable[[Result], object] | None):
        self.counts = Counts()
        self._key = _key(idempotency_key)
        self._on_result = on_result
        self._batch = _Batch(self._key, 0)

    def add(self, order: Order) -> _Steps[int]:
        """-> how many results there are more."""
        return (yield from self.flush()) if self._batch.add(order) else 0

    def flush(self) -> _Steps[int]:
        batch = self._batch
        self._batch = _Batch(self._key, batch.first + len(batch.lines))
        try:
            results = yield from batch.send()
        except Unavailable as error:
            error.counts = self.counts
            raise
        for result in results:
            self.counts.accepted += result.error is None
            self.counts.refused += result.error is not None
            if self._on_result is not None:
                self._on_result(result)
        return len(results)


def _key(given: str | None) -> str:
    if given is not None and not 1 <= len(given) <= KEY_CHARACTERS_MAX:
        raise ValueError(f"a key has 1 to {KEY_CHARACTERS_MAX} characters, not {len(given)}")
    return given or uuid.uuid4().hex


def _line(order: Order) -> bytes:
    return json.dumps(order, default=_as_text, separators=(",", ":")).encode()


def _as_text(value: object) -> str:
    if not isinstance(value, Decimal | uuid.UUID):
        raise TypeError(f"an order has no {type(value).__name__}")
    return format(value, "f" if isinstance(value, Decimal) else "")  # without an exponent


@contextmanager
def _shown(progress: bool, orders: object) -> Generator[Callable[[int], None], None, None]:
    """A bar on a terminal, and nothing elsewhere."""
    console = Console(stderr=True)
    total = len(orders) if hasattr(orders, "__len__") else None
    shown = progress and console.is_terminal
    with Progress(console=console, disable=not shown) as bar:
        task = bar.add_task("orders", total=total)
        yield lambda count: bar.advance(task, count)


def _session(base_url: str, token: str | None) -> dict[str, Any]:
    if httpx.URL(base_url).scheme not in ("http", "https"):
        raise ValueError(f"{base_url}: begins with neither http:// nor https://")
    headers = {"authorization": f"Bearer {token}"} if token is not None else {}
    return {"base_url": base_url, "headers": headers}


# ---- who says it --------------------------------------------------------------------------------


class Client:
    """Blocking; may be shared by threads. `token`: of an API key, where the service has keys.

    `options` go to httpx.Client: verify, cert, limits, trust_env and so on.
    """

    def __init__(self, base_url: str, token: str | None = None, **options: Any) -> None:
        self._http = httpx.Client(**_session(base_url, token), **options)

    def submit(self, order: Order, *, idempotency_key: str | None = None, wait_s: int = 0) -> View:
        """Has one order taken in -> {"order_id", "status", "position"}, or, if it gets its outcome
        within `wait_s` (30 at most), the order with its outcome.

        idempotency_key: yours, to repeat the call safely in another process; else one is made for
        the attempts of this call. Raises Refused, Unavailable.
        """
        return self._run(_submit(order, idempotency_key, wait_s))

    def submit_many(
        self,
        orders: Iterable[Order],
        *,
        idempotency_key: str | None = None,
        on_result: Callable[[Result], object] | None = None,
        progress: bool = False,
    ) -> Counts:
        """Has any number of orders taken in, as fast as the service takes them; some are read ahead
        (BATCH_LINES or BATCH_BYTES), not all.

        on_result: called once for each, in their order. idempotency_key: yours, to repeat it from
        the beginning with the same orders. progress: a bar, if stderr is a terminal. What is
        refused is a result; raises Refused when the bulk as such is, and Unavailable.
        """
        many = _Many(idempotency_key, on_result)
        with _shown(progress, orders) as advance:
            for order in orders:
                advance(self._run(many.add(order)))
            advance(self._run(many.flush()))
        return many.counts

    def get(self, order_id: str) -> View:
        """The order as it is now. Raises Refused (404), Unavailable."""
        return self._run(_get(order_id))

    def wait(self, order_id: str, timeout: float = 60.0) -> View:
        """The order once it is neither queued nor processing. Raises TimeoutError after `timeout`
        seconds, Refused, Unavailable."""
        return self._run(_wait(order_id, timeout))

    def cancel(self, order_id: str) -> View:
        """Takes an order back -> the order, cancelled; also if it was already. Raises Refused (409)
        when it is too late, Unavailable."""
        return self._run(_cancel(order_id))

    def close(self) -> None:
        """Ends its connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, steps: _Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                step = steps.send(self._do(step))
        except StopIteration as end:
            return cast("T", end.value)

    def _do(self, step: _Request | float) -> _Answer | None:
        if isinstance(step, float):
            time.sleep(step)
            return None
        try:
            return self._http.request(step.method, step.path, **step.rest)
        except httpx.TransportError as error:
            return error


class AsyncClient:
    """The same calls as Client's, awaited; `options` go to httpx.AsyncClient. Calls may be cut off
    by a timeout or a cancellation; an order may be in then, and the same key asks for it again."""

    def __init__(self, base_url: str, token: str | None = None, **options: Any) -> None:
        self._http = Connections(**_session(base_url, token), **options)

    async def submit(
        self, order: Order, *, idempotency_key: str | None = None, wait_s: int = 0
    ) -> View:
        """As Client.submit."""
        return await self._run(_submit(order, idempotency_key, wait_s))

    async def submit_many(
        self,
        orders: Iterable[Order] | AsyncIterable[Order],
        *,
        idempotency_key: str | None = None,
        on_result: Callable[[Result], object] | None = None,
        progress: bool = False,
    ) -> Counts:
        """As Client.submit_many."""
        many = _Many(idempotency_key, on_result)
        with _shown(progress, orders) as advance:
            async for order in _each(orders):
                advance(await self._run(many.add(order)))
            advance(await self._run(many.flush()))
        return many.counts

    async def get(self, order_id: str) -> View:
        """As Client.get."""
        return await self._run(_get(order_id))

    async def wait(self, order_id: str, timeout: float = 60.0) -> View:  # noqa: ASYNC109
        """As Client.wait."""
        return await self._run(_wait(order_id, timeout))

    async def cancel(self, order_id: str) -> View:
        """As Client.cancel."""
        return await self._run(_cancel(order_id))

    async def aclose(self) -> None:
        """Ends its connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _run(self, steps: _Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                step = steps.send(await self._do(step))
        except StopIteration as end:
            return cast("T", end.value)

    async def _do(self, step: _Request | float) -> _Answer | None:
        if isinstance(step, float):
            await asyncio.sleep(step)
            return None
        try:
            return await self._http.request(step.method, step.path, step.answer_s_max, **step.rest)
        except httpx.TransportError as error:
            return error


async def _each(orders: Iterable[Order] | AsyncIterable[Order]) -> AsyncIterator[Order]:
    if not isinstance(orders, AsyncIterable):
        for order in orders:
            yield order
        return
    async for order in orders:
        yield order

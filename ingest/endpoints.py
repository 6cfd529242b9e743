"""From a route to an answer: methods, and the errors that every handler may raise."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ingest.answers import Answer, Refused, header_pairs, invalid, problem, server_mistake
from ingest.exchange import Application, HungUp, Receive, Scope, Send, deliver
from ingest.operation import Operation
from ingest.problems import MALFORMED, NO_SUCH_PATH, WRONG_METHOD
from processors.schema import Invalid, Malformed

Handler: TypeAlias = "Callable[[Scope, Receive], Awaitable[Answer]]"
Entry: TypeAlias = "tuple[Operation, Application]"


class Methods:
    """One path's applications by method, described; `allowed` are the methods for the route."""

    def __init__(self, **entries: Entry) -> None:
        self.operations = {method: operation for method, (operation, _) in entries.items()}
        self._applications = {method: one for method, (_, one) in entries.items()}
        self.allowed = list(entries)

    def wrap(self, wrapper: Callable[[str, Application], Application]) -> None:
        """Puts something in front of each; given method and application."""
        for method, one in self._applications.items():
            self._applications[method] = wrapper(method, one)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        await self._applications[method](scope, receive, send)


def answering(handler: Handler) -> Application:
    """A handler as an ASGI application; what it raises becomes a problem."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer = await handler(scope, receive)
        except Refused as refused:
            answer = refused.answer
        except Malformed as error:
            answer = problem(MALFORMED, str(error))
        except Invalid as error:
            answer = invalid(error.errors)
        except HungUp:
            return
        await deliver(answer, receive, send)

    return application


async def http_problem(request: Request, error: Exception) -> Response:
    """What Starlette's router refuses by itself (404, 405)."""
    assert isinstance(error, HTTPException)
    path, headers = request.url.path[:200], header_pairs(error.headers)
    if error.status_code == 405:
        refusal = problem(WRONG_METHOD, f"{request.method} is not for {path}", headers)
    else:
        assert error.status_code == 404
        refusal = problem(NO_SUCH_PATH, f"there is nothing at {path}", headers)
    return as_response(refusal)


async def server_problem(_request: Request, _error: Exception) -> Response:
    """A mistake of ours; uvicorn logs the traceback."""
    return as_response(server_mistake())


def as_response(answer: Answer) -> Response:
    """An answer for Starlette to send."""
    response = Response(answer.body, answer.status)
    response.raw_headers = [*response.raw_headers, *answer.headers]
    return response

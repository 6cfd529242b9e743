"""Dead letters: looked at, replayed, let go."""

from __future__ import annotations

from ingest.accept import Acceptor
from ingest.answers import Answer, Refused, Unanswered, json_answer, problem
from ingest.database import Database
from ingest.exchange import HungUp, Receive, Scope, Send, deliver
from ingest.hangup import cut_off, unless_hung_up
from ingest.problems import (
    BAD_QUERY,
    NO_SUCH_DEAD_LETTER,
    NOT_DEAD,
    NOT_REPLAYABLE,
    REPLAY_UNDER_WAY,
)
from ingest.stock import as_page, check_code, read_limit, read_query
from processors.dead_letters import (
    Revival,
    discard,
    find_dead_letter,
    list_dead_letters,
    revive,
)
from processors.paging import CursorError, Page
from processors.schema import format_uuid, parse_uuid


class DeadLetters:
    """The calls about dead letters."""

    def __init__(self, acceptor: Acceptor, database: Database) -> None:
        self._acceptor = acceptor
        self._database = database

    async def get_all(self, scope: Scope, _receive: Receive) -> Answer:
        """`GET /dead-letters?reason=&limit=&cursor=`, the oldest first."""
        query = read_query(scope, "reason", "limit", "cursor")
        check_code(query, "reason")
        try:
            page = await self._database.ask(
                list_dead_letters,
                limit=read_limit(query),
                cursor=query.get("cursor"),
                reason=query.get("reason"),
            )
        except CursorError:
            raise Refused(
                problem(BAD_QUERY, "cursor is not one that this server gave out")
            ) from None
        shown = Page([one.to_json_dict() for one in page.items], page.next_cursor)
        return as_page(scope, query, shown)

    async def get(self, scope: Scope, _receive: Receive) -> Answer:
        """`GET /dead-letters/{id}`."""
        key = key_of(scope)
        found = await self._database.ask(find_dead_letter, key)
        return none(key) if found is None else json_answer(200, found.to_json_dict())

    async def delete(self, scope: Scope, _receive: Receive) -> Answer:
        """`DELETE /dead-letters/{id}`: 204; while its replay is under way, 409."""
        key = key_of(scope)
        if self._acceptor.waits(key):
            return problem(REPLAY_UNDER_WAY, f"order {format_uuid(key)} is being replayed")
        gone = await self._database.ask(discard, key)
        if gone == "discarded":
            return Answer(204, (), b"")
        return none(key) if gone == "unknown" else alive(key)

    async def post_replay(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application of `POST /dead-letters/{id}/replay`: answers as to an order."""
        try:
            answer = await unless_hung_up(scope, self._replay(scope))
        except Refused as refused:
            answer = refused.answer
        except HungUp:
            return
        except Unanswered:
            await cut_off(scope)
            return
        await deliver(answer, receive, send)

    async def _replay(self, scope: Scope) -> Answer:
        key = key_of(scope)
        revival = await self._database.ask(revive, key)
        if isinstance(revival, Revival):
            return await self._acceptor.replay(key, revival)
        if revival == "not_whole":
            text = "was damaged in memory, what is left of it can't be replayed"
            return problem(NOT_REPLAYABLE, f"order {format_uuid(key)} {text}")
        return none(key) if revival == "unknown" else alive(key)


def key_of(scope: Scope) -> bytes:
    """The order id of the path; Refused with 404 for what is none."""
    text: str = scope["path_params"]["order_id"]
    key = parse_uuid(text)
    if key is None:
        raise Refused(problem(NO_SUCH_DEAD_LETTER, f"no dead letter {text[:100]}"))
    return key


def none(key: bytes) -> Answer:
    """404."""
    return problem(NO_SUCH_DEAD_LETTER, f"no dead letter {format_uuid(key)}")


def alive(key: bytes) -> Answer:
    """409."""
    return problem(NOT_DEAD, f"order {format_uuid(key)} is no dead letter")

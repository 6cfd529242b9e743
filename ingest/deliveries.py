"""Deliveries of webhooks: looked through, and sent once more."""

from __future__ import annotations

import re

from ingest.answers import Answer, Refused, json_answer, problem
from ingest.database import Database
from ingest.exchange import Receive, Scope
from ingest.problems import BAD_QUERY, ENDPOINT_GONE, NO_SUCH_DELIVERY
from ingest.stock import as_page, read_limit, read_query
from processors.delivery_list import STATES, Resent, list_deliveries, resend
from processors.paging import CursorError
from processors.store import Store
from processors.webhooks import NAME, NAMES
from ringbuf import Ring

# What the database's numbers can be, written as they are.
NUMBER = re.compile(r"[1-9][0-9]{0,17}")


def _resend(store: Store, delivery_id: int) -> Resent:
    return store.commit(resend, delivery_id)


class Deliveries:
    """The calls about deliveries."""

    def __init__(self, ring: Ring, database: Database) -> None:
        self._ring = ring
        self._database = database

    async def get_all(self, scope: Scope, _receive: Receive) -> Answer:
        """`GET /deliveries?state=&endpoint=&limit=&cursor=`, the newest first."""
        query = read_query(scope, "state", "endpoint", "limit", "cursor")
        state, endpoint = query.get("state"), query.get("endpoint")
        if state not in (None, *STATES):
            detail = f"state must be one of {', '.join(STATES)}, is {(state or '')[:100]}"
            raise Refused(problem(BAD_QUERY, detail))
        if endpoint is not None and NAME.fullmatch(endpoint) is None:
            detail = f"endpoint must be {NAMES}, is {endpoint[:100]}"
            raise Refused(problem(BAD_QUERY, detail))
        try:
            page = await self._database.ask(
                list_deliveries,
                state=state,
                endpoint=endpoint,
                limit=read_limit(query),
                cursor=query.get("cursor"),
            )
        except CursorError:
            raise Refused(
                problem(BAD_QUERY, "cursor is not one that this server gave out")
            ) from None
        return as_page(scope, query, page)

    async def post_resend(self, scope: Scope, _receive: Receive) -> Answer:
        """`POST /deliveries/{delivery_id}/resend`: 202, and the relay sends it."""
        text: str = scope["path_params"]["delivery_id"]
        if NUMBER.fullmatch(text) is None:
            return problem(NO_SUCH_DELIVERY, f"no delivery {text[:100]}")
        outcome, found = await self._database.ask(_resend, int(text))
        if outcome == "unknown":
            return problem(NO_SUCH_DELIVERY, f"no delivery {text}")
        if outcome == "removed":
            assert found is not None
            return problem(ENDPOINT_GONE, f"the settings have no endpoint {found.endpoint}")
        self._ring.bump_commits()
        return json_answer(202, found)

"""Calls about dead letters."""

from __future__ import annotations

from ingest import shapes
from ingest.catalogue.common import (
    LINK,
    LOCATION,
    PAGING,
    REPLAYED,
    TAKING_IN,
    refusal,
)
from ingest.operation import Example, Operation, Parameter, Reply
from ingest.problems import (
    BAD_QUERY,
    DATABASE_AWAY,
    NO_SUCH_DEAD_LETTER,
    NOT_DEAD,
    NOT_REPLAYABLE,
    ORDER_TOO_LARGE,
    REPLAY_UNDER_WAY,
)
from ingest.shapes import ORDER_ID

GET_DEAD_LETTERS = Operation(
    name="getDeadLetters",
    tag="Dead letters",
    summary="Orders that ended badly",
    text="In the order of their deaths.",
    parameters=(Parameter("reason", shapes.Code, "only those of this reason"), *PAGING),
    replies={200: Reply("a page", shapes.DeadLetters, (LINK,))},
    problems=(BAD_QUERY, DATABASE_AWAY),
    examples=(Example(name="none", status=200, answer={"items": [], "next_cursor": None}),),
)

GET_DEAD_LETTER = Operation(
    name="getDeadLetter",
    tag="Dead letters",
    summary="One of them, with the cause",
    replies={
        200: Reply(
            "the dead letter", shapes.DeadLetterOut, links=("postReplay", "deleteDeadLetter")
        )
    },
    problems=(NO_SUCH_DEAD_LETTER, DATABASE_AWAY),
    examples=(
        Example(
            name="alive",
            status=404,
            given={"order_id": ORDER_ID},
            answer=refusal(NO_SUCH_DEAD_LETTER, f"no dead letter {ORDER_ID}"),
        ),
    ),
)

DELETE_DEAD_LETTER = Operation(
    name="deleteDeadLetter",
    tag="Dead letters",
    summary="Let it go",
    text="What is kept of its content is erased; id, hash and outcome stay, so that a repeat is"
    " still recognised.",
    replies={204: Reply("gone")},
    problems=(NO_SUCH_DEAD_LETTER, NOT_DEAD, REPLAY_UNDER_WAY, DATABASE_AWAY),
    examples=(
        Example(
            name="alive",
            status=409,
            given={"order_id": ORDER_ID},
            answer=refusal(NOT_DEAD, f"order {ORDER_ID} is no dead letter"),
        ),
    ),
)

POST_REPLAY = Operation(
    name="postReplay",
    tag="Dead letters",
    summary="Try it once more",
    text="The order goes through the ring again, once, however often it is asked for.",
    replies={202: Reply("it is in the ring", shapes.Accepted, (LOCATION, REPLAYED))},
    problems=(NO_SUCH_DEAD_LETTER, NOT_DEAD, NOT_REPLAYABLE, ORDER_TOO_LARGE, *TAKING_IN),
    examples=(
        Example(
            name="alive",
            status=409,
            given={"order_id": ORDER_ID},
            answer=refusal(NOT_DEAD, f"order {ORDER_ID} is no dead letter"),
        ),
    ),
)

"""Rules that JSON Schema can't express: what fits the document and is refused all the same.

`docs/openapi.md` lists them with reasons; a test holds the two together. Any other refusal of a
request that fits the document is a failure.
"""

from __future__ import annotations

import json
import re
from typing import Any

import schemathesis
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.openapi.checks import RejectedPositiveData, UnsupportedMethodResponse

IDEMPOTENCY_KEY = r"[!#-~][!-~]{0,254}"

# By the name of the rule in docs/openapi.md: type of problem, and what it says.
RULES = {
    "one line per sku": ("invalid", r"the same sku as in line \d+"),
    "three decimals": ("invalid", r"must be a number(, '-' allowed,)? with at most 3 decimals"),
    "spelling of a number": ("invalid", r"must have (at most 64 characters as a|an exponent)"),
    "size of metadata": ("invalid", r"must have at most 1024 bytes of names and texts"),
    "a time that exists": ("invalid", r"must be a time that exists"),
    "size of the body": ("too-large", r"\(--max-body-bytes\)"),
    "cursors of this server": (
        "bad-query",
        r"(?s)^cursor .*is not one that this (server|list) gave",
    ),
    "one id, one order": ("id-taken", r"was posted before with another body"),
    "one key, one request": ("key-taken", r"was posted before"),
    "key and order_id": ("key-names-another-id", r"with this Idempotency-Key the order_id is"),
}


def expected(content: Any) -> bool:
    """Whether a problem is of the rules alone; of several errors each must be."""
    kind = content["type"].partition("#")[2]
    said = [error["detail"] for error in content.get("errors", [])] or [content["detail"]]
    patterns = [pattern for name, pattern in RULES.values() if name == kind]
    return all(any(re.search(pattern, one) for pattern in patterns) for one in said)


@schemathesis.serializer("application/x-ndjson")
def as_it_is(context: Any, value: Any) -> bytes:
    """Lines of text, good or bad."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


@schemathesis.hook
def filter_failure(context: Any, failure: Failure, case: Any, response: Any) -> bool:
    """False for what is no failure."""
    if case.operation.path == "/orders/bulk":
        if isinstance(failure, UnsupportedMethodResponse):
            return bool(response.status_code != 404)  # it is the path of an order, too
        if isinstance(failure, AcceptedNegativeData):
            return "body" not in failure.message  # any text is lines, good or bad
    if not isinstance(failure, RejectedPositiveData):
        return True
    return not expected(json.loads(response.content))


@schemathesis.hook
def map_case(context: Any, case: Any) -> Any:
    """Without what would only be refused by a rule above, most of the time: an order with an id
    goes without a good key, half of the lists without a cursor."""
    body, query, headers = case.body, case.query, case.headers
    if isinstance(body, dict) and body.get("order_id") and headers:
        key = headers.get("Idempotency-Key")
        if isinstance(key, str) and re.fullmatch(IDEMPOTENCY_KEY, key):
            del headers["Idempotency-Key"]
    if query and isinstance(query.get("cursor"), str) and len(query["cursor"]) % 2 == 0:
        del query["cursor"]
    return case

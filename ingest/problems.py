"""Every kind of problem (RFC 9457) that this service answers with: its type, its title, its page.

A type is a relative reference with a whole path, so it resolves against whatever host a client
called: the front itself serves `/docs/problems`, made of the texts below, and so is
`docs/problems.md`. A name never changes its meaning; a new meaning gets a new name.
"""

from __future__ import annotations

from msgspec import Struct

PAGE = "/docs/problems"


class ProblemType(Struct, frozen=True):
    """`name` is the type's own part and the section of its page; `when` and `remedy` are plain
    sentences."""

    name: str
    status: int
    title: str
    when: str
    remedy: str

    @property
    def uri(self) -> str:
        """What `type` says."""
        return f"{PAGE}#{self.name}"


# ---- the request itself --------------------------------------------------------------------------

NOT_HTTP = ProblemType(
    "not-http", 400, "The request is not HTTP/1.1",
    "What came cannot be read as a request, or could be read in two ways.",
    "Send HTTP/1.1. The connection is closed, for nobody can tell where the next request begins.",
)  # fmt: skip
PIPELINE_TOO_LONG = ProblemType(
    "pipeline-too-long", 400, "Too many requests ahead of their answers",
    "More requests were sent on one connection than may wait there for their answers.",
    "Read answers before sending on, or use more connections.",
)  # fmt: skip
BAD_REQUEST_ID = ProblemType(
    "bad-request-id", 400, "X-Request-ID can't be kept",
    "The header has blanks, characters outside of ASCII, none, or too many.",
    "Send 1 to 128 visible ASCII characters, or leave the header out.",
)  # fmt: skip
BAD_IDEMPOTENCY_KEY = ProblemType(
    "bad-idempotency-key", 400, "Idempotency-Key is not one",
    "The header is neither a bare word nor text in double quotes, or it is too long.",
    "Send 1 to 255 characters of ASCII, bare and without blanks, or in double quotes.",
)  # fmt: skip
MALFORMED = ProblemType(
    "malformed", 400, "The body is not JSON",
    "The body is not UTF-8, not JSON, or nested too deep. NaN and Infinity are not JSON.",
    "Send a JSON document; `detail` says where reading stopped.",
)  # fmt: skip
NO_KEY = ProblemType(
    "no-key", 401, "A key is needed",
    "The service takes requests of known keys only, and this one shows none.",
    "Send `Authorization: Bearer rsk_…` with the key that the operator gave out.",
)  # fmt: skip
UNKNOWN_KEY = ProblemType(
    "unknown-key", 401, "The key is not known",
    "The key was never given out, or it was revoked, or `Authorization` is there more than once.",
    "Send one key, whole, as `Authorization: Bearer rsk_…`, or ask the operator for a new one.",
)  # fmt: skip
WRONG_SCOPE = ProblemType(
    "wrong-scope", 403, "The key may not do this",
    "The key is known and has none of the scopes that this call takes; `detail` names both.",
    "Use a key that has one of them.",
)  # fmt: skip
NO_SUCH_PATH = ProblemType(
    "no-such-path", 404, "There is nothing at this path",
    "No call has this path. A slash at the end makes another path.",
    "Look the call up in /docs.",
)  # fmt: skip
WRONG_METHOD = ProblemType(
    "wrong-method", 405, "Not with this method",
    "The path is there, and takes other methods.",
    "Use one that the answer's `Allow` names.",
)  # fmt: skip
TOO_SLOW = ProblemType(
    "too-slow", 408, "The request took too long to arrive",
    "Head or body did not come whole in time. Nothing was taken in.",
    "Send it again, on a new connection: this one is closed.",
)  # fmt: skip
TOO_LARGE = ProblemType(
    "too-large", 413, "The body is too large",
    "The body has more bytes than the server takes for one request (`--max-body-bytes`).",
    "Send less in one request. The connection is closed.",
)  # fmt: skip
LINE_TOO_LARGE = ProblemType(
    "line-too-large", 413, "The line is too long",
    "A line of a bulk has more bytes than the server takes for one order (`--max-body-bytes`). It"
    " was not taken in; the lines behind it go on.",
    "Order fewer lines at once.",
)  # fmt: skip
WRONG_TYPE = ProblemType(
    "wrong-type", 415, "Not with this Content-Type",
    "The body's Content-Type is missing or is not the one that the call takes.",
    "Say `Content-Type: application/json`, or what the call asks for.",
)  # fmt: skip
INVALID = ProblemType(
    "invalid", 422, "The body breaks the rules",
    "The body is JSON, and fields are missing, unknown or out of range. `errors` has all of them: a"
    " JSON pointer (RFC 6901) and a sentence each.",
    "Correct the fields. Sending the same again will not help.",
)  # fmt: skip
BAD_QUERY = ProblemType(
    "bad-query", 422, "The query breaks the rules",
    "A parameter of the query is unknown or out of range, or `cursor` is none that this server"
    " gave out.",
    "Correct the query; to go on in a list, follow the `Link` of the page before.",
)  # fmt: skip
HEAD_TOO_LARGE = ProblemType(
    "head-too-large", 431, "The head of the request is too large",
    "The headers have more bytes, or are more, than the server reads.",
    "Send fewer and shorter headers. The connection is closed.",
)  # fmt: skip

# ---- what it is about ----------------------------------------------------------------------------

NO_SUCH_ORDER = ProblemType(
    "no-such-order", 404, "No such order",
    "No order of this id was ever taken in, or it was finished and is forgotten (`--retain-days`),"
    " or it is of another name than the key's, which sees only its own.",
    "Check the id. An order that was answered 202 is found from that moment on.",
)  # fmt: skip
NO_SUCH_LOT = ProblemType(
    "no-such-lot", 404, "No such lot",
    "No lot of this id was entered.",
    "Check the id, or enter the lot first (`POST /lots`).",
)  # fmt: skip
NO_SUCH_SKU = ProblemType(
    "no-such-sku", 404, "No such sku",
    "No lot of this sku was ever entered.",
    "Check the sku: upper and lower case differ.",
)  # fmt: skip
NO_SUCH_DEAD_LETTER = ProblemType(
    "no-such-dead-letter", 404, "No such dead letter",
    "There is no order of this id among those that ended badly.",
    "Look through `GET /dead-letters`.",
)  # fmt: skip
NO_SUCH_DELIVERY = ProblemType(
    "no-such-delivery", 404, "No such delivery",
    "Nothing of this number was ever tried, or it is forgotten with its order (`--retain-days`).",
    "Look through `GET /deliveries`.",
)  # fmt: skip
ENDPOINT_GONE = ProblemType(
    "endpoint-gone", 409, "The endpoint is gone from the settings",
    "What was to be told to it has nowhere to go.",
    "Put the endpoint back into the settings under the same name, HUP, and send it again.",
)  # fmt: skip
LOT_EXISTS = ProblemType(
    "lot-exists", 409, "The lot is there, with another body",
    "A lot of this id was entered before and differs. Nothing was changed.",
    "Correct stock by an adjustment, or enter the lot under another id.",
)  # fmt: skip
BELOW_ZERO = ProblemType(
    "below-zero", 409, "The lot would go below zero",
    "The adjustment takes away more than the lot has. Nothing was changed.",
    "`detail` says what the lot has; adjust by that at most.",
)  # fmt: skip
REPLAY_UNDER_WAY = ProblemType(
    "replay-under-way", 409, "The dead letter is being replayed",
    "It can't be let go while its replay waits or is worked on.",
    "Wait for the outcome of the replay (`GET /orders/{id}`).",
)  # fmt: skip
NOT_DEAD = ProblemType(
    "not-dead", 409, "The order is no dead letter",
    "It was replayed or let go meanwhile, or never died.",
    "See what it is now with `GET /orders/{id}`.",
)  # fmt: skip
NOT_REPLAYABLE = ProblemType(
    "not-replayable", 409, "The dead letter can't be replayed",
    "It was damaged in memory, so what is left of it is not what was ordered.",
    "Have it ordered anew and let this one go (`DELETE /dead-letters/{id}`).",
)  # fmt: skip
NOT_CANCELLABLE = ProblemType(
    "not-cancellable", 409, "The order can't be cancelled",
    "It was rejected or is dead, so it holds nothing; or it waits and can't be read. It stays as it"
    " is.",
    "Nothing is left to cancel. A dead letter is let go with `DELETE /dead-letters/{id}`.",
)  # fmt: skip
ORDER_TOO_LARGE = ProblemType(
    "order-too-large", 413, "The order does not fit a slot of the ring",
    "The order takes more bytes than a slot has room for (`--slot-bytes`). With the default every"
    " order that the rules allow fits.",
    "Order fewer lines at once, or have the slots made larger.",
)  # fmt: skip
ID_TAKEN = ProblemType(
    "id-taken", 422, "The id is that of another order",
    "An order of this `order_id` or `Idempotency-Key` was taken in before, with another body or for"
    " another owner. That one stands, this one was not taken in.",
    "For a new order choose a new id. For a repeat send the very body of the first time.",
)  # fmt: skip
KEY_NAMES_ANOTHER_ID = ProblemType(
    "key-names-another-id", 422, "Idempotency-Key and order_id disagree",
    "The key makes the order's id, and the body has another.",
    "Leave out one of the two.",
)  # fmt: skip
KEY_TAKEN = ProblemType(
    "key-taken", 422, "The Idempotency-Key is that of another request",
    "With this key another adjustment was made before. That one stands, this one was not made.",
    "For a new adjustment choose a new key. For a repeat send the very body of the first time.",
)  # fmt: skip

# ---- the server ----------------------------------------------------------------------------------

MISTAKE = ProblemType(
    "mistake", 500, "A mistake of the server",
    "The server has a defect; its log has the traceback. Nothing that a client sends should do it.",
    "Report it, with the `X-Request-ID` if there was one.",
)  # fmt: skip
RING_FULL = ProblemType(
    "ring-full", 503, "No room within the time limit",
    "More orders come than are worked off: the ring stayed full for `--full-timeout`. The order was"
    " not taken in and never will be.",
    "Try again after `Retry-After` seconds, which follow from how fast the ring drains.",
)  # fmt: skip
DRAINING = ProblemType(
    "draining", 503, "Shutting down",
    "This process takes nothing in any more. The order was not taken in and never will be.",
    "Try again on a new connection after `Retry-After` seconds.",
)  # fmt: skip
RECOVERING = ProblemType(
    "recovering", 503, "Orders of before a power loss are put back first",
    "The service has just started after the machine stopped. The order was not taken in.",
    "Try again after `Retry-After` seconds.",
)  # fmt: skip
JOURNAL_FULL = ProblemType(
    "journal-full", 503, "No room on the disk",
    "The journal can't grow, so nothing could be promised. The order was not taken in.",
    "Try again after `Retry-After` seconds; it resumes by itself when the disk has room.",
)  # fmt: skip
DATABASE_AWAY = ProblemType(
    "database-away", 503, "The database can't be asked",
    "The database does not answer, is locked, or refuses. Orders without an id or key of their own"
    " are still taken in; whatever has to be looked up is not.",
    "Try again after `Retry-After` seconds. A change that was asked for may have been made:"
    " repeating it with the same id or key is safe.",
)  # fmt: skip
TOO_MANY_LISTENERS = ProblemType(
    "too-many-listeners", 503, "Too many listen for events",
    "This front sends events to as many clients as it may.",
    "Try again after `Retry-After` seconds, close streams that nobody reads, or have one program"
    " listen for many. An order's outcome is also told by `GET /orders/{id}`.",
)  # fmt: skip
NO_LOCK = ProblemType(
    "no-lock", 503, "The order's id can't be locked",
    "The system has no lock to give that keeps one id to one process. Nothing was taken in.",
    "Try again after `Retry-After` seconds.",
)  # fmt: skip
BULKS_FULL = ProblemType(
    "bulks-full", 503, "Too many bulks at once",
    "As many bulks as one process takes were under way for `--full-timeout`. Of this one nothing"
    " was taken in.",
    "Try again after `Retry-After` seconds.",
)  # fmt: skip
RESULTS_FULL = ProblemType(
    "results-full", 503, "No room for results",
    "The results of a bulk, kept until its last line, have no room on the disk (`--data-dir`)."
    " Nothing from that line on was taken in.",
    "Send on from that line, or read results while you send (`Accept: application/x-ndjson`).",
)  # fmt: skip


PROBLEMS: tuple[ProblemType, ...] = tuple(
    one for one in list(globals().values()) if isinstance(one, ProblemType)
)


def page() -> str:
    """`docs/problems.md`: one section for each, its heading the name."""
    sections = "\n".join(
        f"## {one.name}\n**{one.status} {one.title}.** {one.when}\n\n{one.remedy}\n"
        for one in PROBLEMS
    )
    return f"{INTRODUCTION}\n{sections}"


INTRODUCTION = """\
# Problems

Every error is `application/problem+json` (RFC 9457): `type`, `title`, `status`, `detail`, and
`errors: [{pointer, detail}]` where a body breaks rules. Programs go by `type`, people by `detail`,
which names the value, the limit and the flag that sets it.

`type` is a relative reference with a whole path, such as `/docs/problems#too-large`, compared as
text and never changed. Resolved against the address that was called it leads to a page of the very
server that answered, in its version, without another host and without the internet. An absolute
address would have to be made of the client's `Host` header, which is not to be trusted, or name a
host to be kept for ever; a URN leads nowhere.

This page is made of the server's own table (`ingest/problems.py`); the server shows the same at
`/docs/problems`.
"""

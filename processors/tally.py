"""What is counted: which word of a participant's page of the ring means what.

Every page has the same layout, though a front and a worker fill different parts of it. Histograms
are log-linear: four buckets for each power of two, so that a bucket is at most a quarter wide
whatever the size of the value; then come the sum of the values and nothing else, for the count is
the sum of the buckets. Changing the layout needs no care for older rings: a ring that another
version left is counted wrong until it is gone, and no order depends on it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from ringbuf import PAGE_WORDS

# Word 0 says whose page it is: 1 + the front's index (a worker's is that of its page), or RELAY.
OWNER = 0
RELAY = 2**32
COUNTERS = (
    "accepted",
    "malformed",
    "invalid",
    "conflict",
    "too_large",
    "wrong_type",
    "slow",
    "full",
    "draining",
    "database",
    "journal",
    "unauthorized",
    "forbidden",
    "allocated",
    "rejected",
    "dead",
    "redelivered",
    "restarted_signal",
    "restarted_exit",
    "restarted_reload",
    "cancelled",
    # The relay takes a place among the fronts', so what it counts has words of its own.
    "webhook_delivered",
    "webhook_refused",
    "webhook_gone",
    "webhook_timeout",
    "webhook_error",
    "relay_signal",
    "relay_exit",
    "relay_reload",
)
REFUSALS = COUNTERS[1:13]
OF_ATTEMPTS = "webhook_"
ATTEMPTS = tuple(name for name in COUNTERS if name.startswith(OF_ATTEMPTS))
OUTCOMES = ("allocated", "rejected", "dead", "cancelled")
CAUSES = ("signal", "exit", "reload")
# A page holds four: of a front (a writer's page) the first two, of a worker the last three. Two
# share a place, so those pages are added up apart.
HISTOGRAMS = ("accept_us", "queue_us", "commit_us", "commit_orders")
BUCKETS = 112

WORD = {name: 1 + place for place, name in enumerate(COUNTERS)}
FIRST = 56
HISTOGRAM = {name: FIRST + place * (BUCKETS + 1) for place, name in enumerate(HISTOGRAMS)}
HISTOGRAM["sync_us"] = HISTOGRAM["queue_us"]
# Of a worker: 1 while the database is away or locked, as far as it can tell.
AWAY = FIRST - 1
# Of a front: how many of its orders wait for room right now.
PARKED = FIRST - 2
assert 1 + len(COUNTERS) <= PARKED
assert FIRST + len(HISTOGRAMS) * (BUCKETS + 1) <= PAGE_WORDS

ACCEPTED = WORD["accepted"]
ACCEPT_US, QUEUE_US = HISTOGRAM["accept_us"], HISTOGRAM["queue_us"]
SYNC_US = HISTOGRAM["sync_us"]
COMMIT_US, COMMIT_ORDERS = HISTOGRAM["commit_us"], HISTOGRAM["commit_orders"]
# What a refusal is called that only its status tells.
BY_STATUS = {
    400: "malformed",
    401: "unauthorized",
    403: "forbidden",
    408: "slow",
    413: "too_large",
    415: "wrong_type",
    422: "invalid",
    503: "database",
}


def bucket(value: int) -> int:
    """In which bucket a value is counted; the last one takes all that is larger."""
    if value < 4:
        return max(0, value)
    exponent = value.bit_length() - 3
    return min((exponent << 2) + (value >> exponent), BUCKETS - 1)


def limit(index: int) -> int:
    """The least value that is too large for that bucket."""
    if index < 4:
        return index + 1
    exponent = (index >> 2) - 1
    return (5 + (index & 3)) << exponent


class Tally:
    """Counts in one page. One thread at a time; nothing is locked."""

    def __init__(self, page: memoryview | None = None) -> None:
        self.page = memoryview(bytearray(8 * PAGE_WORDS)).cast("Q") if page is None else page

    def count(self, name: str, by: int = 1) -> None:
        self.page[WORD[name]] += by

    def observe(self, histogram: int, value: int) -> None:
        """`histogram`: where it begins, from HISTOGRAM."""
        page = self.page
        page[histogram + bucket(value)] += 1
        page[histogram + BUCKETS] += value if value > 0 else 0

    def accepted(self, begun_ns: int) -> None:
        """An order was put; its request was whole at that time.perf_counter_ns."""
        page = self.page
        page[ACCEPTED] += 1
        value = (time.perf_counter_ns() - begun_ns) // 1000
        # As observe does, without the call: this is the hot path.
        exponent = value.bit_length() - 3
        place = (exponent << 2) + (value >> exponent) if exponent > 0 else value
        page[ACCEPT_US + (place if place < BUCKETS else BUCKETS - 1)] += 1
        page[ACCEPT_US + BUCKETS] += value

    def accepted_many(self, begun_ns: int, count: int) -> None:
        """The same for orders that were put together."""
        page, value = self.page, max(0, (time.perf_counter_ns() - begun_ns) // 1000)
        page[ACCEPTED] += count
        page[ACCEPT_US + bucket(value)] += count
        page[ACCEPT_US + BUCKETS] += count * value

    def refused(self, status: int) -> None:
        """A request was refused before its order was looked at."""
        self.count(BY_STATUS[status])


def sums(pages: Iterable[memoryview]) -> list[int]:
    """The words of all pages added up."""
    total = [0] * PAGE_WORDS
    for page in pages:
        if any(page):
            total = [a + b for a, b in zip(total, page, strict=True)]
    return total

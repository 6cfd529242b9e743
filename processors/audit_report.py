"""What an audit found: counts, and violations of named rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from msgspec import Struct

VIOLATIONS_SHOWN_MAX = 50

# The rules, each with what it claims; a violation names its rule.
RULES = {
    "database": "the database is whole: its own checks find nothing",
    "ring": "the ring can be read, and no item lies in two hands",
    "journal": "the journal is whole; of a ring, it holds what is there, in a hand, or committed",
    "once": "every order is there exactly once, and effects belong to an order",
    "balance": "of each lot received + adjusted - allocated + returned = available, never below 0",
    "sequence": "the movements of a sku are numbered 1, 2, 3, ... without a gap",
    "sums": "of each sku what is available, and what has expired, is what its lots have together",
    "fefo": "each allocation took from the first lot to use at its moment, not recalled or expired",
    "stock-events": "what is told of stock is true, and each expiry of stock is told once",
    "covered": "an allocated order has exactly its quantities",
    "nothing-held": "an order that is rejected, dead or cancelled holds no stock",
    "outcome": "every order has an outcome that explains itself",
    "outbox": "each outcome has its one event",
    "told": "each delivery is of an event that is there, or of an order that is forgotten",
    "place": "no endpoint was told of more than lies before its place, and that lies in the outbox",
    "turn": "of one order's deliveries that wait for an endpoint the first has a time, no other",
    "delivery": "a delivery is as an attempt left it, under its event's id",
    "ledger": "every order that was answered 200 or 202 is in database, ring, hands or journal",
}


class Violation(Struct, frozen=True):
    """`rule` is a key of RULES."""

    rule: str
    detail: str


class Report:
    """Counts everything, keeps the first VIOLATIONS_SHOWN_MAX violations of each rule."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.by_rule: Counter[str] = Counter()
        self.violations: list[Violation] = []

    @property
    def ok(self) -> bool:
        """Whether nothing was violated."""
        return not self.by_rule

    def violate(self, rule: str, detail: str) -> None:
        """Notes one violation."""
        assert rule in RULES
        self.by_rule[rule] += 1
        if self.by_rule[rule] <= VIOLATIONS_SHOWN_MAX:
            self.violations.append(Violation(rule, detail))

    def lines(self) -> Iterator[str]:
        """The report as text."""
        looked = ", ".join(
            f"{self.counts[name]:,} {name}" for name in ("orders", "lots", "movements")
        )
        head = "ok" if self.ok else f"FAILED, {self.by_rule.total():,} violations"
        yield f"audit: {head} ({looked})"
        for violation in self.violations:
            yield f"  {violation.rule}: {violation.detail}"
        for rule, count in self.by_rule.items():
            if count > VIOLATIONS_SHOWN_MAX:
                yield f"  {rule}: and {count - VIOLATIONS_SHOWN_MAX} more like these"
        width = max((len(f"{count:,}") for count in self.counts.values()), default=0)
        for name, count in self.counts.items():
            yield f"  {count:{width},} {name}"


class Groups:
    """Rows that come sorted by their first column, handed out key by key, each row once.

    Keys must be asked for in that order; rows of keys that nobody asked for go to `stray`.
    """

    def __init__(self, rows: Iterator[Any], stray: Callable[[Any], None]) -> None:
        self._rows = rows
        self._stray = stray
        self._next = next(rows, None)

    def of(self, key: Any) -> Iterator[Any]:
        """The rows of one key; exhaust it before the next key."""
        while self._next is not None and self._next[0] < key:
            self._skip()
        while self._next is not None and self._next[0] == key:
            yield self._next
            self._next = next(self._rows, None)

    def rest(self) -> None:
        """Ends it: everything left is stray."""
        while self._next is not None:
            self._skip()

    def _skip(self) -> None:
        self._stray(self._next)
        self._next = next(self._rows, None)

"""A naive model of the order line, written from what the contract says.

It shares no idea with the product: it looks at all lots of a sku for every line, copies before it
takes, and keeps everything in dictionaries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from processors.cancelling import Verdict
from processors.schema import Lot, Order

# Of the orders, those of which is remembered what they found.
SCENES_OF_256 = 32


@dataclass
class ModelLot:
    lot_id: str
    sku: str
    expires_us: int
    received_us: int
    available: int
    body: Lot
    recalled: bool = False
    expired: bool = False


@dataclass
class Scene:
    """What an order found, of each of its skus every lot, before it took anything."""

    moment: int
    lots: dict[str, dict[str, ModelLot]]

    def why(self, sku: str, lot_id: str, used: list[str], place: int, last: int) -> str:
        """`used`: the lots that it was given of, in order; `place`: of the lot, and of the last."""
        if lot_id in used:
            return "used" if lot_id == used[-1] else "used_up"
        there = self.lots[sku].get(lot_id)
        if there is None:
            return "received_later"
        if there.recalled:
            return "recalled"
        if there.expired or there.expires_us <= self.moment:
            return "expired"
        if place > last:
            return "not_needed"
        assert there.available == 0, f"{lot_id} was passed over with {there.available}"
        return "nothing_left"


@dataclass
class Model:
    """`low`: how often each sku went below its threshold."""

    lots: dict[str, ModelLot] = field(default_factory=dict)
    below: dict[str, int] = field(default_factory=dict)
    low: Counter[str] = field(default_factory=Counter)
    told_expired: dict[str, int] = field(default_factory=dict)
    outcomes: dict[bytes, tuple[str, str | None]] = field(default_factory=dict)
    given: dict[bytes, Counter[tuple[str, str]]] = field(default_factory=dict)
    scenes: dict[bytes, Scene] = field(default_factory=dict)

    def add(self, lot: Lot, now: int) -> str:
        assert lot.lot_id is not None
        there = self.lots.get(lot.lot_id)
        if there is not None:
            return "same" if there.body == lot else "conflict"
        received_us = now if lot.received_us is None else lot.received_us
        self.lots[lot.lot_id] = ModelLot(
            lot.lot_id, lot.sku, lot.expires_us, received_us, lot.thousandths, lot
        )
        return "created"

    def sums(self, sku: str) -> tuple[int, int]:
        """What is available, noted expiries alone counting, and what has expired."""
        of_sku = [lot for lot in self.lots.values() if lot.sku == sku and not lot.recalled]
        expired = sum(lot.available for lot in of_sku if lot.expired)
        return sum(lot.available for lot in of_sku) - expired, expired

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Counts who is low after it and was not before."""
        before = {sku: self.sums(sku)[0] for sku in self.below}
        yield
        for sku, below in self.below.items():
            self.low[sku] += self.sums(sku)[0] < below <= before[sku]

    def expire(self, now: int) -> None:
        for lot in self.lots.values():
            if lot.expires_us <= now and not lot.expired:
                lot.expired = True
                if lot.available and not lot.recalled:
                    self.told_expired[lot.lot_id] = lot.available

    def adjust(self, lot_id: str, delta: int) -> tuple[str, int | None]:
        lot = self.lots.get(lot_id)
        if lot is None:
            return "unknown_lot", None
        if lot.available + delta < 0:
            return "below_zero", lot.available
        lot.available += delta
        return "adjusted", lot.available

    def order(self, key: bytes, order: Order, now: int) -> None:
        if key in self.outcomes:
            return
        known = {lot.sku for lot in self.lots.values()}
        if any(line.sku not in known for line in order.lines):
            self.outcomes[key] = "rejected", "unknown_sku"
            return
        if key[0] < SCENES_OF_256:
            self.scenes[key] = self.scene(order, now)
        taken: Counter[tuple[str, str]] = Counter()
        for line in order.lines:
            wanted = line.thousandths
            usable = [
                lot
                for lot in self.lots.values()
                if lot.sku == line.sku
                and lot.expires_us > now
                and not lot.recalled
                and not lot.expired
            ]
            for lot in sorted(
                usable, key=lambda one: (one.expires_us, one.received_us, one.lot_id)
            ):
                part = min(wanted, lot.available)
                if part:
                    taken[line.sku, lot.lot_id] += part
                    wanted -= part
            if wanted:
                self.outcomes[key] = "rejected", "insufficient_stock"
                return
        for (_, lot_id), part in taken.items():
            self.lots[lot_id].available -= part
        self.outcomes[key], self.given[key] = ("allocated", None), taken

    def scene(self, order: Order, now: int) -> Scene:
        skus = {line.sku: dict[str, ModelLot]() for line in order.lines}
        for lot in self.lots.values():
            if lot.sku in skus:
                skus[lot.sku][lot.lot_id] = replace(lot)
        return Scene(now, skus)

    def watch(self, below: dict[str, int]) -> None:
        """Other thresholds: who is low by them and was not, is so now; not what nobody ever had."""
        for sku in {lot.sku for lot in self.lots.values()}:
            available, least, was = self.sums(sku)[0], below[sku], self.below[sku]
            self.low[sku] += available < least and not available < was
        self.below = below

    def cancel(self, key: bytes, *, waits: bool) -> Verdict:
        status = self.outcomes.get(key, ("unknown", None))[0]
        if status == "allocated":
            for (_, lot_id), part in self.given.pop(key).items():
                self.lots[lot_id].available += part
        elif status != "unknown" or not waits:
            return {"cancelled": "already", "unknown": "unknown"}.get(status, "settled")  # type: ignore[return-value]
        self.outcomes[key] = "cancelled", None
        return "cancelled"

    def holders(self, lot_id: str) -> dict[bytes, int]:
        held = {
            key: sum(part for (_, name), part in given.items() if name == lot_id)
            for key, given in self.given.items()
        }
        return {key: part for key, part in held.items() if part}

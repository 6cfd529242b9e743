"""Random stories, told to the naive model of the order line and to the real one."""

from __future__ import annotations

import random
from collections import Counter
from uuid import UUID

import pytest
import sqlalchemy as sa

from processors import (
    allocation,
    cancelling,
    expiring,
    inventory,
    listing,
    recalling,
    recording,
    worker,
)
from processors.cancelling import Canceller
from processors.expiring import Expirer
from processors.explaining import LineExplained, explain_order
from processors.inventory import add_lot, adjust_lot
from processors.listing import Wanted, list_orders
from processors.low_stock import set_thresholds
from processors.quantity import format_quantity
from processors.recalling import Holder, list_holders, recall_lot
from processors.schema import (
    Adjustment,
    Line,
    Lot,
    Order,
    RecordHeader,
    body_hash,
    encode_header,
    encode_order,
    format_instant,
    format_uuid,
)
from processors.stop import Stop
from processors.tables import lots, movements, orders
from processors.worker import Rules
from tests.processors.kit import House
from tests.processors.model import Model, Scene

# Few and small, so that all happens often: ties, expiry at the moment itself, the last piece.
SKUS = [f"SKU-{letter}" for letter in "ABCDEF"]
NEVER_IN = ["SKU-X", "SKU-Y"]
TICK_US = 1_000
EXPIRY_US = 8 * TICK_US
# Orders that wait together, and most of them in one transaction.
BURST_MAX = 24
BATCHES = [5, 24]
COMPARE_ALL_EVERY = 50
# Of the orders of which is remembered what they found, so many are explained after a burst.
EXPLAINED = 3
# What a page of a list looks through, so that there are many.
SCAN = 200


class Story:
    """Told step by step to the model and to a house; after each batch they are compared."""

    def __init__(self, house: House, seed: int, patch: pytest.MonkeyPatch) -> None:
        self.house = house
        self.random = random.Random(seed)
        self.model = Model()
        self.now = 1_700_000_000_000_000
        self.keys: list[tuple[bytes, Order]] = []
        self.bodies: list[Lot] = []
        self.told = self.bursts = self.explained = 0
        self.canceller = Canceller(house.ring.epoch)
        self.withdrawn = self.given_back = self.recalled = 0
        self.model.below = {sku: 3000 * number for number, sku in enumerate(SKUS)}
        set_thresholds(house.store, {sku: n for sku, n in self.model.below.items() if n})
        self.expirer = Expirer(house.store)
        for module in (allocation, cancelling, expiring, inventory, recalling, recording, worker):
            patch.setattr(module, "now_us", lambda: self.now)
        for module in (listing, recalling):
            patch.setattr(module, "SCAN_MAX", SCAN)

    def tell(self, steps: int) -> None:
        with Stop() as stop, self.house.ring.reader(0) as reader:
            self.reader = reader
            self.workers = [self.house.worker(stop, rules=Rules(batch=most)) for most in BATCHES]
            while self.told < steps:
                if self.random.random() < 0.3:
                    self.now += self.random.randrange(4) * TICK_US
                elif self.random.random() < 0.01:  # the clock is set back
                    self.now -= self.random.randrange(12) * TICK_US
                what = self.random.random()
                if what < 0.3:
                    self.receive()
                elif what < 0.4:
                    self.adjust()
                elif what < 0.5:
                    self.cancel()
                elif what < 0.54:
                    self.recall()
                elif what < 0.59:
                    self.expire()
                elif what < 0.6:
                    self.watch()
                else:
                    self.burst(min(steps - self.told, self.random.randint(1, BURST_MAX)))
        self.compare_lots()
        self.compare_sums()
        self.compare_lists()
        report = self.house.audit()
        assert report.ok, list(report.lines())

    def outcomes(self) -> Counter[str]:
        return Counter(status for status, _ in self.model.outcomes.values())

    def counts(self) -> str:
        said = [f"{count} orders {status}" for status, count in sorted(self.outcomes().items())]
        said += [f"{self.withdrawn} of them while they waited", f"{self.recalled} recalls"]
        said += [f"{len(self.model.told_expired)} lots expired with stock left"]
        said += [f"{self.model.low.total()} times a sku was low", f"{self.explained} explanations"]
        return ", ".join([f"{len(self.model.lots)} lots", *said])

    def receive(self) -> None:
        if self.bodies and self.random.random() < 0.15:
            lot = self.random.choice(self.bodies)
            if self.random.random() < 0.5:
                lot = Lot(lot.lot_id, lot.sku, lot.thousandths + 1, lot.expires_us, None, None)
        else:
            lot = self.a_lot()
            self.bodies.append(lot)
        self.told += 1
        assert add_lot(self.house.store, lot).outcome == self.model.add(lot, self.now)

    def a_lot(self) -> Lot:
        sku = self.random.choice(SKUS)
        expires_us = (self.now // EXPIRY_US + self.random.randint(-1, 5)) * EXPIRY_US
        if self.bodies and self.random.random() < 0.5:  # of the same delivery as the one before
            sku, expires_us = self.bodies[-1].sku, self.bodies[-1].expires_us
        lot_id = f"L{self.random.randrange(10**9):x}"
        received_us = self.random.choice([None, self.now - self.random.randrange(3) * TICK_US])
        return Lot(lot_id, sku, self.random.randint(1, 600) * 500, expires_us, received_us, None)

    def adjust(self) -> None:
        lot_id = "unknown"
        if self.bodies and self.random.random() < 0.95:
            lot_id = str(self.random.choice(self.bodies[-20:]).lot_id)
        delta = self.random.choice([-1, 1]) * self.random.randint(1, 8) * 500
        self.told += 1
        result = adjust_lot(self.house.store, lot_id, Adjustment(delta, "counted"))
        with self.model.watching():
            assert (result.outcome, result.available) == self.model.adjust(lot_id, delta)

    def expire(self) -> None:
        self.told += 1
        before = self.expiries()
        while self.expirer.step():
            pass
        with self.model.watching():
            self.model.expire(self.now)
        noted = sum(lot.expired for lot in self.model.lots.values())
        assert self.expiries() == noted >= before
        self.compare_sums()

    def expiries(self) -> int:
        return int(self.house.rows("SELECT count(*) FROM movements WHERE kind = 'expire'")[0][0])

    def watch(self) -> None:
        """Thresholds are read at a start, when nobody changes stock."""
        self.told += 1
        below = {sku: self.random.choice([0, 500, 3000, 9000]) for sku in SKUS}
        # What nobody ever had is not low.
        known = {lot.sku for lot in self.model.lots.values()}
        low = Counter(self.model.low)
        self.model.watch(below)
        self.model.low = Counter(
            {s: n if s in known else low[s] for s, n in self.model.low.items()}
        )
        set_thresholds(self.house.store, {sku: least for sku, least in below.items() if least})
        self.compare_sums()

    def explain(self) -> None:
        """Some of the orders that were settled at any time before."""
        keys = [*self.model.scenes]
        for key in self.random.sample(keys, min(EXPLAINED, len(keys))):
            found = explain_order(self.house.store, key)
            assert found is not None
            self.explained += len(found[1].lines)
            if self.model.outcomes[key][0] == "rejected":
                assert not found[1].lines
            for line in found[1].lines:
                self.compare_line(self.model.scenes[key], line)

    def compare_line(self, scene: Scene, line: LineExplained) -> None:
        assert line.moment == format_instant(scene.moment)
        in_order = sorted(
            (lot for lot in self.model.lots.values() if lot.sku == line.sku),
            key=lambda one: (one.expires_us, one.received_us, one.lot_id),
        )
        places = {lot.lot_id: place for place, lot in enumerate(in_order)}
        used = [lot.lot_id for lot in line.lots if lot.used != "0"]
        shown = [places[lot.lot_id] for lot in line.lots]
        last = places[used[-1]]
        # The last that was used, what comes before it as far as it is shown, two behind.
        first = shown[0]
        assert shown == list(range(first, min(last + 3, len(in_order))))
        assert line.more_lots == (first > 0)
        for lot in line.lots:
            place = places[lot.lot_id]
            assert lot.why == scene.why(line.sku, lot.lot_id, used, place, last), lot

    def cancel(self) -> None:
        key = b"unknown".ljust(16)
        if self.keys and self.random.random() < 0.95:
            key = self.random.choice(self.keys[-100:])[0]
        self.told += 1
        wanted = self.model.cancel(key, waits=False)
        assert self.canceller.cancel(self.house.store, key, None).verdict == wanted
        self.given_back += wanted == "cancelled"
        if key in self.model.outcomes:
            self.compare([key])

    def recall(self) -> None:
        self.told += 1
        if not self.bodies or self.random.random() < 0.05:
            assert recall_lot(self.house.store, "unknown", limit=1) is None
            return
        lot_id = str(self.random.choice(self.bodies[-20:]).lot_id)
        with self.model.watching():
            self.model.lots[lot_id].recalled = True
        self.recalled += 1
        recall = recall_lot(self.house.store, lot_id, limit=3)
        assert recall is not None
        assert recall.lot.state == "recalled"
        found, page = list[Holder](), recall.holders
        while True:
            found += page.items
            if page.next_cursor is None:
                break
            following = list_holders(self.house.store, lot_id, limit=3, cursor=page.next_cursor)
            assert following is not None
            page = following
        wanted = self.model.holders(lot_id)
        assert len(found) == len(wanted)
        assert {one.order_id: one.quantity for one in found} == {
            format_uuid(key): format_quantity(part) for key, part in wanted.items()
        }

    def burst(self, count: int) -> None:
        told: dict[bytes, None] = {}
        for _ in range(count):
            key, order = self.an_order()
            payload = encode_order(order)
            header = encode_header(RecordHeader(body_hash(payload)))
            accepted_ns = self.now * 1000
            put = self.house.writer.try_put(payload, key, header, accepted_ns=accepted_ns)
            assert put is not None
            # What has its outcome would give back at once, before those that wait in front of it.
            if key not in self.model.outcomes and self.random.random() < 0.05:
                self.withdraw(key)
            with self.model.watching():
                self.model.order(key, order, self.now)
            told[key] = None
        self.house.ring.close()
        self.random.choice(self.workers).run(self.reader)
        self.house.ring.reopen()
        self.told += count
        self.compare(list(told))
        self.explain()

    def withdraw(self, key: bytes) -> None:
        found = self.house.ring.find(key)
        assert found is not None
        self.withdrawn += 1
        wanted = self.model.cancel(key, waits=True)
        assert self.canceller.cancel(self.house.store, key, found.item).verdict == wanted

    def an_order(self) -> tuple[bytes, Order]:
        if self.keys and self.random.random() < 0.05:
            key, order = self.random.choice(self.keys[-50:])
            # The same again, or, rarely, another order under an id that is taken.
            return key, order if self.random.random() < 0.8 else self.a_body()
        self.keys.append((UUID(int=self.random.getrandbits(128)).bytes, self.a_body()))
        return self.keys[-1]

    def a_body(self) -> Order:
        skus = SKUS if self.random.random() < 0.98 else SKUS + NEVER_IN
        chosen = self.random.sample(skus, self.random.choice([1, 1, 1, 2, 3]))
        return Order("c", [Line(sku, self.random.randint(1, 12) * 500) for sku in chosen])

    def compare(self, keys: list[bytes]) -> None:
        self.bursts += 1
        touched = {lot_id for key in keys for _, lot_id in self.model.given.get(key, ())}
        with self.house.store.reading() as connection:
            outcomes = connection.execute(
                sa.select(orders.c.id, orders.c.status, orders.c.reason).where(
                    orders.c.id.in_(keys)
                )
            ).all()
            given = connection.execute(
                sa.select(movements.c.order_id, lots.c.lot_id, movements.c.delta)
                .join(lots, lots.c.id == movements.c.lot)
                .where(movements.c.order_id.in_(keys))
            ).all()
        assert {row.id: (row.status, row.reason) for row in outcomes} == {
            key: self.model.outcomes[key] for key in keys
        }
        found: dict[bytes, Counter[str]] = {key: Counter() for key in keys}
        for row in given:
            found[row.order_id][row.lot_id] -= row.delta
        for key in keys:
            wanted = {lot_id: n for (_, lot_id), n in self.model.given.get(key, {}).items()}
            assert {lot_id: n for lot_id, n in found[key].items() if n} == wanted
        self.compare_lots(None if self.bursts % COMPARE_ALL_EVERY == 0 else touched)

    def compare_lots(self, names: set[str] | None = None) -> None:
        query = sa.select(lots.c.lot_id, lots.c.available)
        if names is not None:
            query = query.where(lots.c.lot_id.in_(names))
        with self.house.store.reading() as connection:
            found = {row.lot_id: row.available for row in connection.execute(query)}
        wanted = self.model.lots if names is None else names
        assert found == {name: self.model.lots[name].available for name in wanted}

    def compare_sums(self) -> None:
        rows = self.house.rows("SELECT sku, available, expired FROM skus")
        found = {row[0]: row[1:] for row in rows}
        assert found == {sku: self.model.sums(sku) for sku in found}
        low = self.house.rows(
            "SELECT sku, count(*) FROM stock_events JOIN skus ON skus.id = sku_id"
            " WHERE type = 'stock.low' GROUP BY sku"
        )
        assert dict(low) == {sku: count for sku, count in self.model.low.items() if count}
        expired = self.house.rows(
            "SELECT lot_id, quantity FROM stock_events JOIN lots ON lots.id = lot"
        )
        assert dict(expired) == self.model.told_expired

    def compare_lists(self) -> None:
        for status in (None, "allocated", "rejected", "cancelled"):
            seen, cursor = list[bytes](), None
            while True:
                page = list_orders(self.house.store, Wanted(status), limit=64, cursor=cursor)
                seen += [view.order_id for view in page.items]
                cursor = page.next_cursor
                if cursor is None:
                    break
            assert len(set(seen)) == len(seen)
            assert set(seen) == {
                key for key, (found, _) in self.model.outcomes.items() if status in (None, found)
            }

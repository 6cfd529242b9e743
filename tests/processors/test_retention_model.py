"""Orders, corrections, cancels, recalls, expiry, replays, thresholds and retention in any order:
every balance stays what it was, the audit holds after each, and a partner hears of each event once.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from processors import (
    allocation,
    cancelling,
    dead_letters,
    deliveries,
    expiring,
    inventory,
    low_stock,
    recalling,
    recording,
    worker,
)
from processors.cancelling import Canceller
from processors.dead_letters import Revival, revive
from processors.deliveries import Ended, Told
from processors.events import Event, Place
from processors.expiring import Expirer
from processors.inventory import adjust_lot
from processors.low_stock import set_thresholds
from processors.outbox import bodies_of, events_behind
from processors.pipeline import Outcome, Work
from processors.places import End
from processors.recalling import recall_lot
from processors.retention import MARGIN_US, Retention
from processors.schema import (
    Adjustment,
    Line,
    Order,
    RecordHeader,
    body_hash,
    encode_header,
    encode_order,
)
from processors.webhooks import Endpoint
from tests.postgres import Postgres
from tests.processors.kit import HOUR_US, House, settled_by

SKUS = "ABC"
CLOCKS = (
    allocation, cancelling, dead_letters, deliveries, expiring, inventory, low_stock, recalling,
    recording, worker,
)  # fmt: skip
PARTNER = Endpoint("partner", "http://127.0.0.1:1/", (bytes(32),))
ALL_EVENTS = """
SELECT CAST(sku AS BLOB), stock_events.seq, type, created_us
    FROM stock_events JOIN skus ON skus.id = sku_id
UNION ALL SELECT order_id, round, type, created_us FROM outbox
"""
ALL = 64
Step = tuple[str, int, int, int]
Happened = tuple[bytes, int, str, int]


def few_or_all(few: int) -> st.SearchStrategy[int]:
    return st.one_of(st.integers(1, few), st.just(ALL))


steps = st.lists(
    st.one_of(
        st.tuples(st.just("order"), st.integers(0, 2), st.integers(1, 3000), st.integers(0, 2)),
        st.tuples(st.just("adjust"), st.integers(0, 5), st.integers(-900, 900), st.just(0)),
        st.tuples(st.just("lot"), st.integers(0, 2), st.integers(1, 5000), st.integers(-2, 50)),
        st.tuples(st.just("cancel"), st.integers(0, 30), st.booleans(), st.just(0)),
        st.tuples(st.just("recall"), st.integers(0, 5), st.just(0), st.just(0)),
        st.tuples(st.just("die"), st.integers(0, 2), st.integers(1, 3000), st.just(0)),
        st.tuples(st.just("replay"), st.integers(0, 30), st.booleans(), st.just(0)),
        st.tuples(st.just("wait"), st.integers(-1, 30), st.just(0), st.just(0)),
        st.tuples(st.just("expire"), st.just(0), st.just(0), st.just(0)),
        st.tuples(st.just("watch"), st.integers(0, 4000), st.integers(0, 2), st.just(0)),
        st.tuples(st.just("tell"), few_or_all(9), st.sampled_from([0, 0, 1, 3]), st.just(0)),
        st.tuples(st.just("retain"), st.integers(0, 120), few_or_all(12), st.integers(0, 3)),
    ),
    min_size=12,
    max_size=50,
)


class Story:
    """A house, what happens to it, and what its partner has heard of that."""

    def __init__(self, house: House, patch: pytest.MonkeyPatch) -> None:
        self.house = house
        self.now = house.now
        self.lots = 0
        self.keys: list[bytes] = []
        self.dead: list[bytes] = []
        self.canceller = Canceller(house.ring.epoch)
        self.expirer = Expirer(house.store)
        self.retention: Retention | None = None
        self.heard = Counter[Happened]()
        self.happened = set[Happened]()
        for module in CLOCKS:
            patch.setattr(module, "now_us", self.moment)
        self.place = house.store.commit(deliveries.enlist, [PARTNER], Place(0, 0))["partner"].place

    def moment(self) -> int:
        """No two are the same, as with a clock of microseconds."""
        self.now += 1
        return self.now

    def do(self, step: Step) -> None:
        kind, *numbers = step
        getattr(self, kind)(*numbers)
        self.note()

    def note(self) -> None:
        self.happened |= {
            (bytes(subject), *rest) for subject, *rest in self.house.rows(self.own(ALL_EVENTS))
        }

    def own(self, text: str) -> str:
        if self.house.on_sqlite:
            return text
        return text.replace("CAST(sku AS BLOB)", "convert_to(sku, 'UTF8')")

    def lot(self, sku: int, thousandths: int, hours: int) -> None:
        hours_from_then = hours + (self.now - self.house.now) / HOUR_US
        name = f"L{self.lots}"
        self.house.stock(self.house.lot(name, SKUS[sku], thousandths, hours=hours_from_then))
        self.lots += 1

    def order(self, sku: int, thousandths: int, more: int) -> None:
        names = SKUS[sku : sku + 1 + more]
        self.keys.append(self.put(*((name, thousandths) for name in names)))
        self.house.work()

    def put(self, *lines: tuple[str, int]) -> bytes:
        order = encode_order(Order("c", [Line(*line) for line in lines]))
        key = len(self.happened).to_bytes(8, "big") + self.now.to_bytes(8, "big")
        self.put_item(order, key, encode_header(RecordHeader(body_hash(order))), 0)
        return key

    def put_item(self, payload: bytes, key: bytes, header: bytes, number: int) -> None:
        at_ns = self.moment() * 1000
        put = self.house.writer.try_put(payload, key, header, number, accepted_ns=at_ns)
        assert put is not None

    def die(self, sku: int, thousandths: int, _: int) -> None:
        def fail(_: Work) -> Outcome:
            raise ValueError("as it happens")

        self.dead.append(self.put((SKUS[sku], thousandths)))
        self.house.work(settled_by(fail))

    def replay(self, order: int, discarded: int, _: int) -> None:
        if not self.dead:
            return
        key = self.dead.pop(order % len(self.dead))
        if discarded:
            dead_letters.discard(self.house.store, key)
            return
        again = revive(self.house.store, key)
        assert isinstance(again, Revival), again
        self.put_item(again.payload, key, again.header, again.round)
        self.house.work()
        self.keys.append(key)

    def cancel(self, order: int, waits: int, _: int) -> None:
        """One of those that are settled, or a new one that waits."""
        if not waits and self.keys:
            self.canceller.cancel(self.house.store, self.keys[order % len(self.keys)], None)
            return
        found = self.house.ring.find(self.put((SKUS[order % 3], 1)))
        assert found is not None
        self.canceller.cancel(self.house.store, found.item.key, found.item)
        self.house.work()

    def recall(self, lot: int, _: int, __: int) -> None:
        recall_lot(self.house.store, f"L{lot}", limit=1)

    def adjust(self, lot: int, delta: int, _: int) -> None:
        adjust_lot(self.house.store, f"L{lot}", Adjustment(delta or 1, "count"))

    def wait(self, hours: int, _: int, __: int) -> None:
        """The clock is set back at times."""
        self.now += hours * HOUR_US

    def expire(self, _: int, __: int, ___: int) -> None:
        self.expirer.step()

    def watch(self, below: int, sku: int, _: int) -> None:
        set_thresholds(self.house.store, {SKUS[sku]: below, "": 1000} if below else {})

    def tell(self, count: int, fails: int, _: int) -> None:
        """The partner is told what waits, and of so many events more, of which some fail."""
        store = self.house.store
        end = End(store).ask()
        assert end is not None
        with store.reading() as connection:
            due = deliveries.due_of(connection, "partner", self.now, count)
            found = events_behind(connection, self.place, end, count)
            place = self.place.behind(found)
            new = deliveries.not_told(connection, "partner", found)
            subjects = [one.subject for one in new]
            blocked = deliveries.subjects_waiting(connection, "partner", subjects)
            bodies = bodies_of(connection, [*(one.event for one in due), *new])
        ended = [self.try_to(one.event, bodies, fails, blocked, row=one.row) for one in due]
        ended += [self.try_to(one, bodies, fails, blocked) for one in new]
        self.place = place
        store.commit(deliveries.record, [Told("partner", ended, place)])

    def try_to(
        self,
        event: Event,
        bodies: dict[bytes, bytes],
        fails: int,
        blocked: set[bytes],
        row: int | None = None,
    ) -> Ended:
        if row is None and event.subject in blocked:
            return Ended(event, "waiting")
        if event.id[0] % 4 < fails:
            blocked.add(event.subject)
            return Ended(event, "waiting", row, next_us=self.now)
        assert event.id in bodies, f"{event} was forgotten before it was told"
        self.heard[event.subject, event.number, event.type, event.created_us] += 1
        return Ended(event, "delivered", row, attempts=1, first_us=self.now, status=200)

    def retain(self, percent: int, count: int, new: int) -> None:
        """So many steps, with what was committed before that moment old; perhaps of a new run."""
        if self.retention is None or not new:
            self.retention = Retention(
                self.house.store, 1, self.limit(percent), now=lambda: 2**62, told_to=["partner"]
            )
            self.retention.forgetting.rows = self.retention.folding.rows = 1
        for _ in range(count if count < ALL else 10**6):
            if not self.retention.step():
                break

    def limit(self, percent: int) -> Callable[[], int]:
        ((first, last),) = self.house.rows("SELECT min(at_us), max(at_us) + 9 FROM movements")
        moment = (
            self.house.now if first is None else first + (last - first) * min(percent, 100) // 100
        )
        return lambda: moment + MARGIN_US

    def tell_all(self) -> None:
        self.wait(24, 0, 0)
        before = None
        while before != self.heard.total():
            before = self.heard.total()
            self.tell(ALL, 0, 0)
        assert self.heard == Counter(self.happened)


def tell(story: list[Step], url: str | None = None) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(House(Path(folder), url=url)) as house,
        pytest.MonkeyPatch.context() as patch,
    ):
        told = Story(house, patch)
        for step in story:
            before = stock_of(house)
            told.do(step)
            if step[0] == "retain":
                assert stock_of(house) == before
                is_sound(house)
        is_sound(house)
        told.tell_all()


def stock_of(house: House) -> list[Any]:
    lots = house.rows("SELECT lot_id, available FROM lots ORDER BY 1")
    return lots + house.rows("SELECT sku, available, expired FROM skus ORDER BY 1")


def is_sound(house: House) -> None:
    report = house.audit()
    assert report.ok, list(report.lines())


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps)
def test_retention_changes_no_balance_and_leaves_an_audit_that_holds(story: list[Step]) -> None:
    tell(story)


@pytest.mark.prove
@pytest.mark.timeout(900)
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps)
def test_in_500_stories_retention_changes_no_balance(story: list[Step]) -> None:
    tell(story)


@pytest.mark.prove
@pytest.mark.timeout(900)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps)
def test_nor_does_it_with_postgresql(postgres: Postgres, migrated: str, story: list[Step]) -> None:
    tell(story, postgres.url(postgres.database(migrated)))

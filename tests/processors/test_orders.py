from __future__ import annotations

from uuid import uuid4

import msgspec

from processors.orders import KnownOrders, find_order
from processors.schema import (
    Line,
    Order,
    body_hash,
    encode_order,
    format_instant,
    format_uuid,
    parse_instant,
)
from tests.processors.kit import House

ORDER = Order(
    "Fünky Foods",
    [Line("HAM", 1500), Line("BACON", 250)],
    "PO 7",
    {"dock": "3", "a": 'quote " and \n'},
)


def test_an_order_comes_out_of_the_database_as_it_went_in(house: House) -> None:
    house.stock(
        house.lot("h1", "HAM", 1000, hours=1),
        house.lot("h2", "HAM", 1000, hours=2),
        house.lot("b1", "BACON", 1000, hours=3),
    )
    key = house.put_bytes(encode_order(ORDER))
    house.work()
    found = house.view(key).to_json_dict()
    timings = found.pop("timings")
    assert found == {
        "order_id": format_uuid(key),
        "status": "allocated",
        "reason": None,
        "customer": "Fünky Foods",
        "reference": "PO 7",
        "metadata": {"dock": "3", "a": 'quote " and \n'},
        "lines": [{"sku": "HAM", "quantity": "1.5"}, {"sku": "BACON", "quantity": "0.25"}],
        "allocations": [
            {"sku": sku, "lot_id": lot_id, "quantity": quantity, "expires_at": expires_at}
            for sku, lot_id, quantity, expires_at in (
                ("HAM", "h1", "1", format_instant(house.now + 3_600_000_000)),
                ("HAM", "h2", "0.5", format_instant(house.now + 7_200_000_000)),
                ("BACON", "b1", "0.25", format_instant(house.now + 10_800_000_000)),
            )
        ],
    }
    assert timings.pop("notified") is None
    instants = [parse_instant(timings[name]) for name in ("accepted", "taken", "committed")]
    assert instants == sorted(instants)
    msgspec.json.encode(found)


def test_a_rejected_order_says_why_and_holds_nothing(house: House) -> None:
    key = house.put(("HAM", 1))
    house.work()
    found = house.view(key).to_json_dict()
    assert (found["status"], found["reason"], found["allocations"]) == (
        "rejected",
        "unknown_sku",
        [],
    )


def test_an_order_without_an_outcome_is_not_found(house: House) -> None:
    assert find_order(house.store, uuid4().bytes) is None
    assert KnownOrders().find(house.store, [uuid4().bytes]) == {}


def test_the_body_hash_is_that_of_the_payload_however_many_ids_are_asked_for(
    house: House,
) -> None:
    key = house.put_bytes(encode_order(ORDER))
    house.work()
    others = [uuid4().bytes for _ in range(300)]
    found = KnownOrders().find(house.store, [*others, key])
    committed_us = house.view(key).committed_us
    assert found == {key: (body_hash(encode_order(ORDER)), "rejected", committed_us)}


def test_an_unreadable_order_has_a_hash_that_equals_none(house: House) -> None:
    key = house.put_bytes(b"\xc1 no msgpack")
    house.work()
    assert KnownOrders().find(house.store, [key])[key][:2] == (b"", "dead")
    found = house.view(key).to_json_dict()
    assert (found["status"], found["reason"], found["lines"]) == ("dead", "unreadable", [])

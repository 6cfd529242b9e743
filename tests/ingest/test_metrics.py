from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from ingest.metrics import Pages, oldest_s
from processors.tally import ATTEMPTS, OWNER, RELAY, Tally

if TYPE_CHECKING:
    from ringbuf import Ring
    from tests.ingest.conftest import Service, Start

pytestmark = pytest.mark.anyio

GOOD = b'{"customer":"Funky Foods","lines":[{"sku":"BELLY","quantity":"1.5"}]}'
OWN = b'{"order_id":"018f0000-0000-7000-8000-000000000001",' + GOOD[1:]
Samples = dict[tuple[str, tuple[str, ...]], float]


async def metrics(service: Service) -> Samples:
    """Name and values of the labels, in the order of their names -> value."""
    answer = await service.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return samples(answer.text)


def samples(text: str) -> Samples:
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of_the_ring(ring: Ring, *, relay: bool) -> Samples:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Pages(ring, relay=relay))
    return samples(generate_latest(registry).decode())


async def test_what_is_taken_in_and_refused_is_counted_by_its_reason(start: Start) -> None:
    service = await start(capacity=3, full_timeout_s=0.05)
    await service.post(GOOD)
    await service.post(b"{")
    await service.post(b"{}")
    await service.post(b" " * 70_000)
    await service.post(OWN)
    await service.post(OWN)
    await service.post(OWN.replace(b"1.5", b"2"))
    await service.client.post("/orders", content=GOOD, headers={"content-type": "text/plain"})
    await service.post(GOOD)
    await service.post(GOOD)
    found = await metrics(service)
    assert found["rasher_orders_accepted_total", ()] == 3
    assert found["rasher_accept_seconds_count", ()] == 3
    reasons = ("malformed", "invalid", "too_large", "conflict", "wrong_type", "full")
    assert [found["rasher_orders_refused_total", (reason,)] for reason in reasons] == [1] * 6
    assert found["rasher_orders_refused_total", ("draining",)] == 0
    assert found["rasher_ring_depth", ()] == found["rasher_ring_capacity", ()] == 3


async def test_the_way_through_the_application_is_counted_alike(start: Start) -> None:
    service = await start(lane="off")
    for body in (GOOD, b"{", OWN, OWN):
        await service.post(body)
    found = await metrics(service)
    assert found["rasher_orders_accepted_total", ()] == 2
    assert found["rasher_orders_refused_total", ("malformed",)] == 1


async def test_outcomes_batches_and_times_are_counted(service: Service) -> None:
    for _ in range(3):
        await service.post(GOOD)
    service.work_off()
    await service.post(OWN)
    service.work_off()
    found = await metrics(service)
    assert found["rasher_orders_completed_total", ("rejected",)] == 4
    assert found["rasher_orders_completed_total", ("allocated",)] == 0
    assert found["rasher_commit_orders_count", ()] == 2
    assert found["rasher_commit_orders_sum", ()] == 4
    assert found["rasher_commit_orders_bucket", ("1",)] == 1
    assert found["rasher_commit_orders_bucket", ("3",)] == 2
    for name, count in (("queue", 4), ("commit", 2)):
        assert found[f"rasher_{name}_seconds_count", ()] == count
        assert found[f"rasher_{name}_seconds_bucket", ("+Inf",)] == count
        assert 0 < found[f"rasher_{name}_seconds_sum", ()] < 60


async def test_buckets_never_fall(service: Service) -> None:
    await service.post(GOOD)
    answer = await service.client.get("/metrics")
    for family in text_string_to_metric_families(answer.text):
        if family.type == "histogram":
            values = [one.value for one in family.samples if one.name.endswith("_bucket")]
            bounds = [
                float(one.labels["le"]) for one in family.samples if one.name.endswith("_bucket")
            ]
            assert values == sorted(values)
            assert bounds == sorted(set(bounds))


async def test_the_oldest_order_has_the_age_it_has(service: Service) -> None:
    assert oldest_s(service.ring) == 0.0
    before = time.time()
    await service.post(GOOD)
    await service.post(GOOD)
    found = await metrics(service)
    assert 0 < found["rasher_ring_oldest_seconds", ()] <= time.time() - before
    service.reader.take(1)
    assert oldest_s(service.ring) < time.time() - before


async def test_processes_are_named_by_role_and_index(service: Service) -> None:
    found = await metrics(service)
    assert found["rasher_process_up", ("0", "front")] == 1
    assert found["rasher_process_restarts_total", ("signal", "worker")] == 0


async def test_a_relay_is_down_until_it_lives_where_it_is_wanted_and_else_not_told(
    service: Service,
) -> None:
    up = ("rasher_process_up", ("0", "relay"))
    assert up not in await metrics(service)
    assert of_the_ring(service.ring, relay=True)[up] == 0
    with service.ring.writer() as place:
        service.ring.page("writer", place.index)[OWNER] = RELAY
        for wanted in (True, False):  # at HUP it lives a little longer than it is wanted
            assert of_the_ring(service.ring, relay=wanted)[up] == 1
        assert of_the_ring(service.ring, relay=True)["rasher_process_up", ("0", "front")] == 1
    assert of_the_ring(service.ring, relay=True)[up] == 0
    assert up not in of_the_ring(service.ring, relay=False)


async def test_a_relays_attempts_and_ends_are_counted_apart_from_the_fronts(
    service: Service,
) -> None:
    with service.ring.writer() as place:
        tally = Tally(service.ring.page("writer", place.index))
        for count, word in enumerate(ATTEMPTS, 1):
            tally.count(word, count)
        tally.count("relay_signal", 6)
        tally.count("restarted_signal", 7)  # of the front that had the page before
    found = await metrics(service)
    names = ("delivered", "refused", "gone", "timeout", "error")
    assert [found["rasher_webhook_attempts_total", (name,)] for name in names] == [1, 2, 3, 4, 5]
    restarts = {key[1]: value for key, value in found.items() if "restarts" in key[0]}
    assert restarts["signal", "relay"] == 6
    assert restarts["signal", "front"] == 7
    assert restarts["reload", "relay"] == restarts["signal", "worker"] == 0

"""Poison among ordinary orders, in the whole program."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import closing

import pytest

from ringbuf import Ring
from tests.crash.wicked import FOUND
from tests.program import Client, Rasher, Start, call, verb

FLAGS = ("--processor", "tests.crash.wicked:wicked", "--order-timeout", "1", "--attempts", "2")
QUICK = ("crash", "deaf")


def order(reference: str) -> dict[str, object]:
    lines = [{"sku": "BELLY", "quantity": "1"}]
    return {"customer": "Funky Foods", "reference": reference, "lines": lines}


def post_all(run: Rasher, references: list[str]) -> dict[str, str]:
    """-> the ids by reference; each gets its 202."""
    client, ids = Client(run), {}
    with closing(client.connection):
        client.stock("100000")
        for reference in references:
            status, answer = client.call("POST", "/orders", order(reference))
            assert status == 202
            ids[reference] = str(answer["order_id"])
    return ids


def finals(run: Rasher, ids: dict[str, str]) -> dict[str, str]:
    client = Client(run)
    with closing(client.connection):
        return {one: str(client.final(order_id)["status"]) for one, order_id in ids.items()}


def poisoned(rasher: Start, kinds: tuple[str, ...], ordinary: int, *flags: str) -> None:
    run = rasher("--workers", "2", *FLAGS, *flags).ready()
    references = [str(number) for number in range(ordinary)]
    for place, kind in enumerate(kinds):
        references.insert((place + 1) * ordinary // (len(kinds) + 1), kind)
    ids = post_all(run, references)
    found = finals(run, ids)
    assert {one for one, status in found.items() if status == "dead"} == set(kinds)
    assert {status for one, status in found.items() if one not in kinds} == {"allocated"}
    for kind in kinds:
        query = "SELECT reason, cause FROM orders WHERE reference = ?"
        ((reason, cause),) = run.rows(query, kind)
        assert (reason, FOUND[kind][1] in cause) == (FOUND[kind][0], True), cause
    assert run.end(signal.SIGTERM) == 0
    assert verb(run, "audit").returncode == 0


def test_what_ends_workers_is_dead_with_how_they_ended_and_all_others_are_allocated(
    rasher: Start,
) -> None:
    poisoned(rasher, QUICK, 60)


@pytest.mark.prove
def test_every_kind_of_poison_is_found(rasher: Start) -> None:
    poisoned(rasher, tuple(FOUND), 2_000, "--attempts", "3")


@pytest.mark.prove
@pytest.mark.alone
@pytest.mark.parametrize(
    ("kind", "order_timeout_s", "others_s"), [("crash", 30, 2), ("deaf", 6, 6)]
)
def test_the_others_of_its_batch_wait_no_longer_than_promised(
    rasher: Start, kind: str, order_timeout_s: int, others_s: float
) -> None:
    """At most 2 s for a crash, one --order-timeout for a loop; with one worker, so in one batch."""
    run = rasher("--workers", "1", *FLAGS, "--order-timeout", str(order_timeout_s)).ready()
    worker = run.child("worker")
    worker.suspend()
    ids = post_all(run, [*map(str, range(30)), kind, *map(str, range(30, 60))])
    begun_us = time.time_ns() // 1000
    worker.resume()
    found = finals(run, {one: order_id for one, order_id in ids.items() if one != kind})
    assert set(found.values()) == {"allocated"}
    (last_us,) = run.column("SELECT max(committed_us) FROM orders WHERE status = 'allocated'")
    sys.stdout.write(f"\n{kind}: the others settled after {(last_us - begun_us) / 1e6:.2f} s\n")
    assert last_us - begun_us < others_s * 1e6
    assert run.end(signal.SIGINT) == 0


def test_an_order_that_waits_through_kills_of_its_worker_is_no_dead_letter(rasher: Start) -> None:
    run = rasher("--workers", "1", *FLAGS, "--order-timeout", "100").ready()
    assert call(run, "POST", "/orders", order("hold"))[0] == 202
    with run.ring() as ring:
        for kills in range(3):
            run.until(lambda: deliveries(ring) == [kills], f"in a hand after {kills} kills")  # noqa: B023
            run.child("worker").kill()
        run.until(lambda: deliveries(ring) == [3], "in the fourth hand")
        assert [item.crashes for _, item in ring.snapshot().held] == [0]
    assert run.end(signal.SIGINT) == 0


def deliveries(ring: Ring) -> list[int]:
    """Of what lies in hands: how often it came from a dead worker."""
    return [item.attempts for _, item in ring.snapshot().held]

"""`GET /deliveries` and sending once more."""

from __future__ import annotations

import pytest

from processors import deliveries
from processors.deliveries import Ended, Told
from processors.events import Event, Place
from processors.webhooks import Endpoint, shown_id
from tests.ingest.conftest import Service

pytestmark = pytest.mark.anyio

SHOP = Endpoint("shop", "http://127.0.0.1:1/", (b"s" * 24,))
BANK = Endpoint("bank", "http://127.0.0.1:2/", (b"s" * 24,))


def event(number: int) -> Event:
    key = bytes([number]) * 16
    return Event(number, key, key, 0, "order.allocated", 10**15 + number)


@pytest.fixture
def told(service: Service) -> Service:
    """Of three events each: delivered, waiting, failed."""
    service.store.commit(deliveries.enlist, [SHOP, BANK], Place(0, 0))
    for one in (SHOP, BANK):
        ended = [
            Ended(event(1), "delivered", attempts=1, status=200),
            Ended(event(2), "waiting", attempts=2, next_us=2**51, error="answered 500", status=500),
            Ended(event(3), "failed", attempts=9, error="ReadError: "),
        ]
        service.store.commit(deliveries.record, [Told(one.name, ended)])
    return service


async def test_deliveries_are_listed_newest_first_page_by_page_and_filtered(told: Service) -> None:
    answer = await told.client.get("/deliveries?limit=4")
    page = answer.json()
    assert [one["delivery_id"] for one in page["items"]] == ["6", "5", "4", "3"]
    rest = (await told.client.get(answer.links["next"]["url"])).json()
    assert [one["delivery_id"] for one in rest["items"]] == ["2", "1"]
    assert rest["next_cursor"] is None
    failed = (await told.client.get("/deliveries?state=failed&endpoint=bank")).json()["items"]
    (one,) = failed
    assert (one["endpoint"], one["attempts"], one["status"]) == ("bank", 9, None)
    assert (one["error"], one["next_attempt_at"]) == ("ReadError: ", None)
    assert one["event_id"] == shown_id(event(3).id) == one["order_id"]
    assert one["ended_at"] is not None
    waiting = (await told.client.get("/deliveries?state=waiting")).json()["items"]
    assert {one["status"] for one in waiting} == {500}
    assert waiting[0]["next_attempt_at"] is not None


@pytest.mark.parametrize("query", ["state=done", "endpoint=No+Name", "limit=0", "x=1", "cursor=x"])
async def test_what_can_not_be_asked_is_told(told: Service, query: str) -> None:
    answer = await told.client.get(f"/deliveries?{query}")
    assert (answer.status_code, answer.json()["type"]) == (422, "/docs/problems#bad-query")


@pytest.mark.parametrize("number", ["1", "2", "3"])
async def test_whatever_became_of_it_it_is_sent_once_more(told: Service, number: str) -> None:
    commits = told.ring.commits
    answer = await told.client.post(f"/deliveries/{number}/resend")
    assert (answer.status_code, answer.json()["state"]) == (202, "waiting")
    assert told.ring.commits > commits  # the relay wakes
    with told.store.reading() as connection:
        due = deliveries.due_of(connection, "shop", 2**51 - 1, 9)
    assert [str(one.row) for one in due] == [number]


@pytest.mark.parametrize("number", ["7", "0", "-1", "x", "1.0", "9" * 19, "9" * 400])
async def test_what_was_never_tried_is_not_found(told: Service, number: str) -> None:
    answer = await told.client.post(f"/deliveries/{number}/resend")
    assert answer.json()["type"] == "/docs/problems#no-such-delivery"
    assert answer.status_code == 404


async def test_an_endpoint_that_is_gone_is_told(told: Service) -> None:
    told.store.commit(deliveries.enlist, [BANK], Place(0, 0))
    answer = await told.client.post("/deliveries/1/resend")
    assert (answer.status_code, answer.json()["type"]) == (409, "/docs/problems#endpoint-gone")

"""`--durability disk`: no 202 before the order is on disk, no slot without room there."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ingest import accept as accept_module
from processors.instants import now_us
from processors.orders import REPEAT_JOURNALED_US
from ringbuf import Item, Segment
from ringbuf import journal as journal_module
from ringbuf._journal import Syncer
from ringbuf.segment import segment_paths
from tests.ingest.conftest import Raw, Service, Start

pytestmark = pytest.mark.anyio

ORDER = b'{"customer":"Funky Foods","lines":[{"sku":"BELLY","quantity":"1.5"}]}'
OWN = b'{"order_id":"018f0000-0000-7000-8000-000000000001",' + ORDER[1:]


class HeldSyncer:
    """In the place of the journal's: it syncs when the test says so."""

    made: list[HeldSyncer]

    def __init__(self) -> None:
        self.real = Syncer()
        self.waiting: list[tuple[int, int, bytes]] = []
        self.error: OSError | None = None
        self.free = False
        self.made.append(self)

    def submit(self, fd: int, offset: int, data: bytes) -> None:
        self.waiting.append((fd, offset, data))
        if self.free:
            self.let_go()

    def let_go(self) -> None:
        self.real.submit(*self.waiting.pop(0))

    def result(self) -> int | None:
        if self.error is not None:
            raise self.error
        return self.real.result()

    def fileno(self) -> int:
        return self.real.fileno()

    def close(self) -> None:
        self.real.close()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], HeldSyncer]]:
    """The syncer of the service that is started next; at the end nothing is held any more, or the
    service of a test that failed would wait for it."""
    HeldSyncer.made = []
    monkeypatch.setattr(journal_module, "Syncer", HeldSyncer)
    yield lambda: HeldSyncer.made[-1]
    for syncer in HeldSyncer.made:
        syncer.free = True
        if syncer.waiting:
            syncer.let_go()


def journaled(service: Service) -> list[Item]:
    found: list[Item] = []
    for path in segment_paths(Path(service.settings.data_dir, "journal")):
        with Segment.open(path) as segment:
            found += segment.items()
    return found


async def sent(service: Service, data: bytes) -> Raw:
    raw = await service.raw()
    await raw.send(data)
    return raw


async def test_what_is_answered_is_on_disk_with_what_the_slot_holds(start: Start) -> None:
    service = await start(durability="disk")
    assert (await service.post(ORDER)).status_code == 202
    assert (await service.post(OWN)).status_code == 202
    (waiting, found) = service.ring.snapshot().waiting, journaled(service)
    assert [(one.key, one.sequence, one.header, one.payload) for one in found] == [
        (one.key, one.sequence, one.header, one.payload) for one in waiting
    ]


@pytest.mark.parametrize("lane", ["on", "off"])
@pytest.mark.parametrize("body", [ORDER, OWN], ids=["our id", "own id"])
async def test_no_answer_before_the_sync_has_returned(
    start: Start, held: Callable[[], HeldSyncer], lane: str, body: bytes
) -> None:
    service = await start(durability="disk", lane=lane)
    raw = await sent(service, service.posting(body))
    await service.until(lambda: held().waiting)
    assert service.ring.depth == 1
    for _ in range(50):
        await asyncio.sleep(0)
    assert not raw.reader._buffer  # type: ignore[attr-defined]
    held().let_go()
    assert (await raw.answer())[0] == 202


async def test_orders_that_come_during_a_sync_share_the_next_one(
    start: Start, held: Callable[[], HeldSyncer]
) -> None:
    service = await start(durability="disk")
    first = await sent(service, service.posting(ORDER))
    await service.until(lambda: held().waiting)
    others = [await sent(service, service.posting(ORDER)) for _ in range(9)]
    await service.until(lambda: service.ring.depth == 10)
    assert len(held().waiting) == 1
    held().let_go()
    assert (await first.answer())[0] == 202
    await service.until(lambda: held().waiting)
    held().let_go()
    assert [(await other.answer())[0] for other in others] == [202] * 9
    assert not held().waiting


async def test_a_client_that_hangs_up_during_the_sync_has_its_order_in(
    start: Start, held: Callable[[], HeldSyncer]
) -> None:
    service = await start(durability="disk")
    raw = await sent(service, service.posting(ORDER))
    await service.until(lambda: held().waiting)
    await raw.hang_up()
    await service.until(lambda: not service.server.server_state.connections)
    held().let_go()
    await service.until(lambda: service.acceptor.tally.page[1] == 1)
    assert len(journaled(service)) == 1


@pytest.mark.parametrize("lane", ["on", "off"])
async def test_answers_stay_in_order_behind_a_sync(
    start: Start, held: Callable[[], HeldSyncer], lane: str
) -> None:
    service = await start(durability="disk", lane=lane)
    livez = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    raw = await sent(service, service.posting(ORDER) + livez)
    await service.until(lambda: held().waiting)
    await raw.send(livez)
    held().let_go()
    assert [(await raw.answer())[0] for _ in range(3)] == [202, 200, 200]


async def test_the_first_error_of_a_sync_is_told_once_and_nothing_is_answered_after_it(
    start: Start, held: Callable[[], HeldSyncer]
) -> None:
    service = await start(durability="disk")
    raw = await sent(service, service.posting(ORDER))
    await service.until(lambda: held().waiting)
    later = await sent(service, service.posting(ORDER))
    await service.until(lambda: service.ring.depth == 2)
    held().error = OSError(errno.EIO, "Input/output error")
    held().let_go()
    await service.until(lambda: service.errors)
    refused = await service.post(ORDER)
    assert refused.status_code == 503
    assert service.ring.depth == 2
    assert len(service.errors) == 1
    assert not raw.reader._buffer  # type: ignore[attr-defined]
    assert not later.reader._buffer  # type: ignore[attr-defined]


@pytest.mark.parametrize("lane", ["on", "off"])
async def test_a_closed_ring_keeps_every_front_from_answering(
    start: Start, held: Callable[[], HeldSyncer], lane: str
) -> None:
    service = await start(durability="disk", lane=lane)
    raw = await sent(service, service.posting(ORDER))
    await service.until(lambda: held().waiting)
    service.ring.close()  # by another process, which is not sure of what is on disk
    held().let_go()
    await service.until(lambda: service.acceptor.tally.page[1] == 1)
    for _ in range(50):
        await asyncio.sleep(0)
    assert not raw.reader._buffer  # type: ignore[attr-defined]
    service.ring.reopen()
    await raw.hang_up()


async def test_a_repeat_is_on_disk_under_a_record_of_its_own_before_it_is_answered(
    start: Start, held: Callable[[], HeldSyncer]
) -> None:
    service = await start(durability="disk")
    first = await sent(service, service.posting(OWN))
    await service.until(lambda: held().waiting)
    second = await sent(service, service.posting(OWN))
    held().let_go()
    assert (await first.answer())[0] == 202
    await service.until(lambda: held().waiting)
    assert not second.reader._buffer  # type: ignore[attr-defined]
    held().let_go()
    status, headers, _ = await second.answer()
    assert (status, headers["idempotency-replayed"]) == (202, "true")
    assert [item.sequence for item in journaled(service)] == [0, 0]
    assert service.ring.depth == 1


async def test_after_the_slot_there_is_no_503_however_long_the_sync_takes(
    start: Start, held: Callable[[], HeldSyncer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept_module, "COMPARE_S_MAX", 0.1)
    service = await start(durability="disk", full_timeout_s=0.1)
    raws = [await sent(service, service.posting(OWN)) for _ in range(2)]  # and its repeat
    await service.until(lambda: held().waiting)
    for raw in raws:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(raw.reader.read(1), 0.3)
    held().let_go()
    await service.until(lambda: held().waiting)
    held().let_go()
    assert [(await raw.answer())[0] for raw in raws] == [202, 202]


async def test_a_repeat_of_a_settled_order_takes_no_place_of_the_ring(start: Start) -> None:
    service = await start(durability="disk")
    assert (await service.post(ORDER)).status_code == 202
    assert (await service.post(OWN)).status_code == 202
    service.work_off()
    assert (await service.post(OWN)).headers["idempotency-replayed"] == "true"
    assert [item.sequence for item in journaled(service)] == [0, 1, accept_module.NO_SEQUENCE]


async def test_a_repeat_of_what_was_committed_long_ago_is_answered_without_a_record(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await start(durability="disk")
    assert (await service.post(OWN)).status_code == 202
    service.work_off()
    monkeypatch.setattr(accept_module, "now_us", lambda: now_us() + REPEAT_JOURNALED_US)
    again = await service.post(OWN)
    assert (again.status_code, again.headers["idempotency-replayed"]) == (202, "true")
    assert again.json()["status"] == "rejected"
    assert len(journaled(service)) == 1
    other = OWN.replace(b"Foods", b"Goods")
    assert (await service.post(other)).status_code == 422
    service.ring.close()  # by another process, which is not sure of what is on disk
    with pytest.raises(httpx.RemoteProtocolError):
        await service.post(OWN)
    service.ring.reopen()


async def test_a_repeat_of_what_waits_for_long_is_on_disk_once_more(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await start(durability="disk")
    assert (await service.post(OWN)).status_code == 202
    monkeypatch.setattr(accept_module, "now_us", lambda: now_us() + REPEAT_JOURNALED_US)
    again = await service.post(OWN)
    assert (again.status_code, again.json()["status"]) == (202, "queued")
    assert [item.sequence for item in journaled(service)] == [0, 0]


async def test_a_repeat_of_what_was_committed_long_ago_and_never_released_has_no_record(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await start(durability="disk")
    assert (await service.post(OWN)).status_code == 202
    (item,) = service.ring.snapshot().waiting
    service.work_off()
    service.writer.put(item.payload, item.key, item.header, accepted_ns=item.accepted_ns)
    monkeypatch.setattr(accept_module, "now_us", lambda: now_us() + REPEAT_JOURNALED_US)
    again = await service.post(OWN)
    assert (again.status_code, again.json()["status"]) == (202, "rejected")
    assert len(journaled(service)) == 1


def no_space(*_: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_without_room_nothing_is_taken_in_and_it_goes_on_by_itself(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await start(durability="disk", capacity=1000)
    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "make_segment", no_space)
        statuses = set[int]()
        while statuses <= {202}:  # what is there already is used up first
            answer = await service.post(ORDER)
            statuses.add(answer.status_code)
        depth = service.ring.depth
        assert answer.status_code == 503
        assert "the journal has no room (--data-dir): [Errno 28]" in answer.json()["detail"]
        assert answer.headers["retry-after"] == "2"
        assert (await service.client.get("/readyz")).status_code == 503
        assert (await service.post(OWN)).status_code == 503
        assert service.ring.depth == depth == len(journaled(service))
    await service.until(lambda: service.acceptor.journal and not service.acceptor.journal.trouble)
    assert (await service.post(ORDER)).status_code == 202
    assert (await service.client.get("/readyz")).json() == {"status": "ready", "degraded": []}
    assert not service.errors


async def test_an_order_that_waits_for_a_slot_waits_with_its_room_in_the_journal(
    start: Start,
) -> None:
    service = await start(durability="disk", capacity=1)
    assert (await service.post(ORDER)).status_code == 202
    raws = [await sent(service, service.posting(ORDER)) for _ in range(3)]
    await service.parked(3)
    assert len(journaled(service)) == 1
    for raw in raws:
        service.reader.release(service.reader.take(1))
        assert (await raw.answer())[0] == 202
    assert len(journaled(service)) == 4


async def test_while_it_recovers_a_front_refuses_orders_and_is_not_ready(start: Start) -> None:
    service = await start(durability="disk")
    service.acceptor.recovering = True
    answer = await service.post(ORDER)
    assert answer.status_code == 503
    assert "of before a power loss are put back first" in answer.json()["detail"]
    assert (await service.client.get("/readyz")).status_code == 503
    assert (await service.client.get("/livez")).status_code == 200
    service.acceptor.recovering = False
    assert (await service.post(ORDER)).status_code == 202


async def test_syncs_are_measured(start: Start) -> None:
    service = await start(durability="disk")
    await service.post(ORDER)
    text = (await service.client.get("/metrics")).text
    assert "rasher_journal_sync_seconds_count" in text

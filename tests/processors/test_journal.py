"""The journal beside recovery: recycled, spilled, audited, and read for what memory damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from processors.audit import run_audit
from processors.journal import journal_dir, make_journal_dir
from processors.known import database_id
from processors.mending import mender
from processors.pipeline import fefo
from processors.recovery import Recovery
from processors.recycling import Recycler
from processors.schema import format_uuid
from processors.settings import Settings
from processors.spill import spill
from processors.stop import Stop
from processors.store import Store, StoreUnavailable
from processors.visits import tidy
from processors.worker import BaconWorker, Rules
from ringbuf import Identity, Ring, Segment
from ringbuf.segment import (
    PAGE_BYTES,
    encode_group,
    encode_record,
    make_segment,
    segment_paths,
)
from tests.processors.kit import House
from tests.processors.left import (
    PAYLOAD,
    damaged_segment,
    header_of,
    items,
    records,
    write,
)


@pytest.fixture
def settings(house: House) -> Settings:
    found = Settings(data_dir=str(house.folder), database=house.url)
    make_journal_dir(found)
    return found


def test_what_was_damaged_in_memory_is_read_again_from_the_journal(
    settings: Settings, house: House
) -> None:
    house.stock(house.lot("L1", "A", 9000))
    keys = [house.put_bytes(PAYLOAD) for _ in range(3)]
    some = [
        encode_record(one.key, one.payload, one.header, sequence=one.sequence, accepted_ns=7)
        for one in house.ring.snapshot().waiting
    ]
    write(settings, house, some[:2], header_of(house, epoch=house.ring.epoch))
    for slot, part in ((0, "payload"), (1, "key"), (2, "payload")):
        flip(house, slot, part)
    house.ring.close()
    with Stop() as stop, house.ring.reader(0) as reader:
        mend = mender(journal_dir(settings), house.ring.epoch, stop)
        worker = BaconWorker(house.ring, house.store, fefo(), Rules(), stop, mend=mend)
        worker.run(reader)
        assert not reader.held()
    assert [house.view(key).status for key in keys] == ["allocated", "allocated", "dead"]
    assert house.audit().ok


def flip(house: House, slot: int, part: str) -> None:
    """A bit of a waiting slot, as damaged memory would."""
    (item,) = [one for one in house.ring.snapshot().waiting if one.sequence == slot]
    wanted = item.key if part == "key" else item.payload
    path = house.folder / "test.ring"
    at = house.ring.mapping.slots_at + slot * house.ring.slot_bytes
    data = path.read_bytes()[at : at + house.ring.slot_bytes]
    with path.open("r+b") as file:
        file.seek(at + data.index(wanted) + len(wanted) // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))


# ---- recycling -----------------------------------------------------------------------------------


def test_a_segment_goes_when_all_of_it_is_known_and_not_before(
    settings: Settings, house: House
) -> None:
    path = write(settings, house, records(70))
    keys = [item.key for item in items([path])]
    recycler = Recycler(journal_dir(settings), house.store)
    for key in keys[:-1]:
        house.put_bytes(PAYLOAD, key)
    house.work()
    assert recycler.step() == 0
    assert path.exists()
    house.put_bytes(PAYLOAD, keys[-1])
    house.work()
    assert recycler.step() == 1
    assert not segment_paths(journal_dir(settings))


def test_no_segment_goes_before_a_commit_of_our_own(
    settings: Settings, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(settings, house, records(1))
    (item,) = items([path])
    house.put_bytes(PAYLOAD, item.key)
    house.work()

    def fails(_: Store) -> None:
        raise StoreUnavailable("away")

    recycler = Recycler(journal_dir(settings), house.store)
    with monkeypatch.context() as patch:
        patch.setattr("processors.recycling.commit_something", fails)
        with pytest.raises(StoreUnavailable):
            recycler.step()
    assert path.exists()
    assert recycler.step() == 1


def test_what_a_living_process_writes_stays_until_it_is_sealed(
    settings: Settings, house: House
) -> None:
    path = write(settings, house, [], header_of(house))  # this process is its writer
    recycler = Recycler(journal_dir(settings), house.store)
    assert recycler.step() == 0
    path.rename(path.with_suffix(".sealed"))
    assert recycler.step() == 1


def test_a_writer_of_another_boot_is_dead_whoever_has_its_number(
    settings: Settings, house: House
) -> None:
    write(settings, house, [], header_of(house, boot_id=bytes(16)))
    assert Recycler(journal_dir(settings), house.store).step() == 1


def test_what_the_dead_left_half_made_goes_and_what_the_living_make_does_not(
    settings: Settings, house: House
) -> None:
    directory = journal_dir(settings)
    for name, header in (("1", header_of(house)), ("2", header_of(house, writer=1))):
        (directory / name).with_suffix(".new").write_bytes(header.encode())
    (directory / "3.new").touch()  # it takes no room, and says nothing of its maker
    assert Recycler(directory, house.store).step() == 0
    assert sorted(path.name for path in directory.iterdir()) == ["1.new", "3.new"]
    tidy(settings, empty=False)
    assert not list(directory.iterdir())


def test_a_step_asks_about_a_bounded_number_and_goes_on_where_it_stopped(
    settings: Settings, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    header, offset, groups = header_of(house, writer=1), PAGE_BYTES, list[bytes]()
    for number in range(5):
        groups.append(encode_group(header.serial, offset, offset, records(10, first=10 * number)))
        offset += len(groups[-1])
    fd, path = make_segment(journal_dir(settings), header, groups)
    os.close(fd)
    for item in items([path]):
        house.put_bytes(PAYLOAD, item.key)
    house.work()
    recycler = Recycler(journal_dir(settings), house.store)
    asked: list[int] = []
    original = Recycler._all_known

    def all_known(self: Recycler, identities: list[Identity]) -> bool:
        asked.append(len(identities))
        return original(self, identities)

    monkeypatch.setattr(Recycler, "_all_known", all_known)
    assert [recycler.step(items_max=20) for _ in range(4)] == [0, 0, 1, 0]
    assert asked == [10] * 5


# ---- spilling ------------------------------------------------------------------------------------


def test_a_spill_holds_hands_and_slots_in_their_order(settings: Settings, house: House) -> None:
    keys = [house.put(("A", 1000)) for _ in range(9)]
    with house.ring.reader(3) as reader:
        reader.take(4)
    assert spill(settings, [house.ring], database_id(house.store)) == 9
    (path,) = segment_paths(journal_dir(settings))
    with Segment.open(path) as segment:
        assert segment.header.epoch == house.ring.epoch
        found = list(segment.items())
    assert [item.key for item in found] == keys
    assert [item.sequence for item in found] == list(range(9))


def test_an_empty_ring_is_not_spilled(settings: Settings, house: House) -> None:
    assert spill(settings, [house.ring], bytes(16)) == 0
    assert not segment_paths(journal_dir(settings))


def test_what_was_spilled_is_put_back_when_the_ring_is_gone_and_not_while_it_is_there(
    settings: Settings, house: House, tmp_path: Path
) -> None:
    keys = [house.put(("A", 1000)) for _ in range(9)]
    spill(settings, [house.ring], database_id(house.store))
    assert Recovery(settings, house.ring, {house.ring.epoch}).done
    with Ring.create(tmp_path / "another.ring", capacity=9, slot_bytes=4096) as ring:
        recovery = Recovery(settings, ring, {ring.epoch})
        recovery.look(house.store)
        recovery.step(0)
        assert [item.key for item in ring.snapshot().waiting] == keys
        headers = {item.header for item in ring.snapshot().waiting}
        assert headers == {item.header for item in house.ring.snapshot().waiting}


# ---- the audit -----------------------------------------------------------------------------------


def test_the_audit_counts_what_the_next_start_puts_back_as_there(
    settings: Settings, house: House, tmp_path: Path
) -> None:
    path = write(settings, house, records(2))
    ledger = tmp_path / "ledger"
    ledger.write_text("".join(f"{format_uuid(item.key)} 202\n" for item in items([path])))
    assert not house.audit(ledger).ok
    report = run_audit([house.ring], house.store, ledger, journal_dir(settings))
    assert report.ok
    assert report.counts["in the journal, to be put back"] == 2


def test_the_audit_misses_what_is_in_the_journal_of_this_ring_alone(
    settings: Settings, house: House
) -> None:
    write(settings, house, records(1), header_of(house, epoch=house.ring.epoch))
    report = run_audit([house.ring], house.store, None, journal_dir(settings))
    assert [one.rule for one in report.violations] == ["journal"]
    assert "neither in the ring nor in a hand nor in the database" in report.violations[0].detail


def test_the_audit_tells_of_damage(settings: Settings, house: House) -> None:
    damaged_segment(settings, house)
    report = run_audit([house.ring], house.store, None, journal_dir(settings))
    assert [one.rule for one in report.violations] == ["journal"]

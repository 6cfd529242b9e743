"""Each rule of the audit against a database in which just that was tampered with."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest

from processors import audit
from processors.audit_report import RULES, VIOLATIONS_SHOWN_MAX, Report
from processors.inventory import adjust_lot
from processors.schema import Adjustment, format_uuid
from processors.settings import Settings, load_settings
from processors.store import StoreError
from tests.processors.kit import House, on_sqlite
from tests.processors.test_audit_deliveries import OF_DELIVERIES
from tests.processors.test_audit_expiry import TAMPERED_STOCK

SOME_ID = "f7b0bd8e-5b47-4c0b-9d3e-6f1f0b8f3f55"


@pytest.fixture
def settled(house: House) -> House:
    """Two skus, four lots of which one expired and one is spent; orders of every outcome."""
    house.stock(
        house.lot("old", "HAM", 9000, hours=-1),
        house.lot("first", "HAM", 1000, hours=1),
        house.lot("second", "HAM", 5000, hours=2),
        house.lot("bacon", "BACON", 5000, hours=2),
    )
    house.put(("HAM", 1500), ("BACON", 250), key=b"A" * 16)
    house.put(("HAM", 250), key=b"B" * 16)
    house.put(("HAM", 10**9), key=b"C" * 16)
    house.put_bytes(b"\xc1", key=b"D" * 16)
    house.work()
    adjust_lot(house.store, "second", Adjustment(-30, "spoilage"))
    return house


def test_an_untouched_house_passes_with_its_counts(settled: House) -> None:
    report = settled.audit()
    assert report.ok
    assert next(report.lines()) == "audit: ok (4 orders, 4 lots, 9 movements)"
    assert report.counts["orders"] == 4
    assert report.counts["orders allocated"] == 2
    assert report.counts["orders rejected"] == 1
    assert report.counts["orders dead"] == 1
    assert report.counts["lots"] == 4
    assert report.counts["movements"] == 9
    assert report.counts["allocations"] == 4
    assert report.counts["outbox events"] == 4


HAM = "(SELECT id FROM skus WHERE sku = 'HAM')"
OF_B = "order_id = CAST('BBBBBBBBBBBBBBBB' AS BLOB)"
B = "id = CAST('BBBBBBBBBBBBBBBB' AS BLOB)"

FAR = 2**62

TAMPERED = [
    ("balance", "second has 9 available", "UPDATE lots SET available = 9000 WHERE lot_id='second'"),
    ("balance", "below 0", "UPDATE lots SET available = -1 WHERE lot_id = 'second'"),
    ("balance", "received 1.001", "UPDATE lots SET received = 1001 WHERE lot_id = 'first'"),
    ("balance", "never received", "DELETE FROM movements WHERE kind = 'receive' AND lot = 4"),
    (
        "balance",
        "below 0",
        "UPDATE movements SET delta = -9000 WHERE kind = 'adjust'",
    ),
    ("balance", "allocates -0.25", f"UPDATE movements SET delta = 250 WHERE {OF_B}"),
    ("balance", "not this sku's", f"UPDATE movements SET lot = 4 WHERE {OF_B}"),
    ("balance", "belongs to no sku", "UPDATE lots SET sku_id = 99 WHERE lot_id = 'old'"),
    ("sequence", "movement 7 follows 5", f"DELETE FROM movements WHERE {OF_B}"),
    ("sequence", "follows", f"UPDATE movements SET seq = 99 WHERE sku_id = {HAM} AND seq = 7"),
    ("sequence", "its row says 99", "UPDATE skus SET seq = 99 WHERE sku = 'HAM'"),
    ("sequence", "belongs to no sku", "UPDATE movements SET sku_id = 99 WHERE kind = 'adjust'"),
    ("fefo", f"expired at {FAR} us", f"UPDATE movements SET at_us = {FAR}"),
    ("fefo", "expired at", f"UPDATE movements SET lot = 1 WHERE {OF_B}"),
    ("fefo", "no lot has any", "UPDATE movements SET delta = 0 WHERE kind = 'receive' AND lot = 4"),
    (
        "fefo",
        "lot first was the first",
        "UPDATE lots SET expires_us = expires_us + 36000000000"
        " WHERE lot_id = 'none' OR lot_id = 'second'; UPDATE movements SET delta = -999"
        " WHERE lot = 2 AND kind = 'allocate'",
    ),
    (
        "fefo",
        "was the first",
        "UPDATE lots SET expires_us = expires_us + 1 WHERE lot_id = 'old';"
        " UPDATE movements SET at_us = (SELECT expires_us - 5 FROM lots WHERE lot_id = 'old')"
        f" WHERE {OF_B}",
    ),
    ("covered", "wants 0.25 HAM and holds 0.249", f"UPDATE movements SET delta=-249 WHERE {OF_B}"),
    ("covered", "holds nothing", f"DELETE FROM movements WHERE {OF_B}"),
    ("covered", "wants 0.251 HAM", f"UPDATE orders SET lines = '[[\"HAM\",251]]' WHERE {B}"),
    ("covered", "can't be read", f"UPDATE orders SET lines = 'x' WHERE {B}"),
    ("covered", "wants nothing", f"UPDATE orders SET lines = NULL WHERE {B}"),
    (
        "nothing-held",
        "holds 0.25 HAM",
        f"UPDATE orders SET status='rejected', reason='x' WHERE {B}",
    ),
    ("nothing-held", "is dead and", f"UPDATE orders SET status = 'dead', reason = 'x' WHERE {B}"),
    ("outcome", "has the status lost", f"UPDATE orders SET status = 'lost' WHERE {B}"),
    ("outcome", "with the reason why", f"UPDATE orders SET reason = 'why' WHERE {B}"),
    ("outcome", "reason None", "UPDATE orders SET reason = NULL WHERE status = 'rejected'"),
    ("once", "holds HAM and does not exist", f"DELETE FROM orders WHERE {B}"),
    (
        "once",
        "2 orders came out of slot 0",
        "UPDATE orders SET ring_sequence = 0 WHERE ring_sequence < 2",
    ),
    ("outbox", "its events: none", f"DELETE FROM outbox WHERE {OF_B}"),
    (
        "outbox",
        "order.allocated, order.allocated",
        "INSERT INTO outbox (order_id, round, type,"
        f" created_us) SELECT order_id, round, type, created_us FROM outbox WHERE {OF_B}",
    ),
    ("outbox", "order.dead", f"UPDATE outbox SET type = 'order.dead' WHERE {OF_B}"),
    ("outbox", "is allocated", f"UPDATE outbox SET round = 1 WHERE {OF_B}"),
    ("outbox", "is not there", f"UPDATE outbox SET order_id = x'00' WHERE {OF_B}"),
]
# What SQLite finds by itself.
DAMAGED = [
    ("database", "CHECK constraint failed", "UPDATE lots SET available = -1 WHERE lot_id = 'old'"),
    ("database", "a row of lots names a row of skus", "UPDATE lots SET sku_id=99 WHERE id = 1"),
]


@pytest.mark.parametrize(("rule", "message", "statements"), TAMPERED)
def test_what_was_tampered_with_is_found(
    settled: House, rule: str, message: str, statements: str
) -> None:
    find_tampering(settled, rule, message, statements)


@on_sqlite
@pytest.mark.parametrize(("rule", "message", "statements"), DAMAGED)
def test_what_the_database_itself_finds_is_found(
    settled: House, rule: str, message: str, statements: str
) -> None:
    find_tampering(settled, rule, message, statements)


def find_tampering(settled: House, rule: str, message: str, statements: str) -> None:
    settled.tamper(*statements.split(";"))
    report = settled.audit()
    assert not report.ok
    found = [violation.detail for violation in report.violations if violation.rule == rule]
    assert any(message in detail for detail in found), list(report.lines())


def test_every_rule_has_a_test_that_breaks_it() -> None:
    of_stock = {rule for rule, _, _ in TAMPERED_STOCK}
    elsewhere = {"ring", "journal", "ledger", *OF_DELIVERIES, *of_stock}
    assert {rule for rule, _, _ in [*TAMPERED, *DAMAGED]} | elsewhere == set(RULES)


def test_a_lot_that_expired_at_the_moment_was_not_the_first_to_use(settled: House) -> None:
    settled.tamper(
        "UPDATE lots SET expires_us = (SELECT min(at_us) FROM movements WHERE kind = 'allocate')"
        " WHERE lot_id = 'old'"
    )
    assert settled.audit().ok


@on_sqlite
def test_a_page_of_nonsense_in_the_database_is_found(settled: House) -> None:
    settled.store.close()
    settled.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    settled.store.close()
    with Path(settled.folder, "rasher.db").open("r+b") as file:
        file.seek(4096 * 3)
        file.write(b"\xff" * 4096)
    report = settled.audit()
    assert report.by_rule["database"]


def test_an_item_both_committed_and_in_a_hand_is_fine_and_counted(settled: House) -> None:
    settled.put(("HAM", 250), key=b"B" * 16)
    settled.put(("HAM", 250))
    with settled.ring.reader(0) as reader:
        reader.take(1, 0)
        report = settled.audit()
    assert report.ok
    assert report.counts["in the ring"] == 1
    assert report.counts["in hands"] == 1
    assert report.counts["in ring or hands, already committed"] == 1


def test_an_item_in_two_hands_is_found(settled: House, monkeypatch: pytest.MonkeyPatch) -> None:
    settled.put(("HAM", 1))
    with settled.ring.reader(0) as reader:
        (item,) = reader.take(1, 0)
        snapshot = settled.ring.snapshot()
        snapshot.held.append((1, item))
        monkeypatch.setattr(settled.ring, "snapshot", lambda: snapshot)
        report = settled.audit()
    assert report.by_rule == {"ring": 1}
    assert "hands 0 and 1" in report.violations[0].detail


# ---- the ledger -----------------------------------------------------------------------------


def ledger_of(house: House, *lines: str) -> Path:
    path = house.folder / "ledger"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def text_of(key: bytes) -> str:
    return format_uuid(key)


def test_an_answered_order_may_be_in_the_database_the_ring_or_a_hand(settled: House) -> None:
    held = settled.put(("HAM", 1))
    waiting = settled.put(("HAM", 1))
    with settled.ring.reader(0) as reader:
        reader.take(1, 0)
        report = settled.audit(
            ledger_of(
                settled,
                *(f"{text_of(key)} 202" for key in (b"A" * 16, held, waiting)),
                f"{text_of(b'B' * 16)} 200",
                f"{uuid4()} 0",
                f"{text_of(b'C' * 16)} 0",
                f"{uuid4()} 503",
            )
        )
    assert report.ok
    assert report.counts["ledger: answered"] == 4
    assert report.counts["ledger: without an answer, there"] == 1
    assert report.counts["ledger: without an answer, not there"] == 1
    assert report.counts["ledger: refused with 503"] == 1


@pytest.mark.parametrize("status", [200, 202])
def test_an_answered_order_that_is_gone_is_found(settled: House, status: int) -> None:
    gone = uuid4()
    report = settled.audit(ledger_of(settled, f"{gone} {status}"))
    assert report.by_rule == {"ledger": 1}
    assert f"order {gone} was answered {status} and is gone" in report.violations[0].detail


@pytest.mark.parametrize("line", ["nonsense", SOME_ID, f"{SOME_ID} 2o2", "x" * 5000])
def test_a_line_that_is_none_is_found(settled: House, line: str) -> None:
    report = settled.audit(ledger_of(settled, line))
    assert report.by_rule["ledger"] >= 1
    assert "line 1 is no `order_id status_code`" in report.violations[0].detail


def test_what_is_written_to_the_ledger_after_the_audit_began_is_not_judged(
    settled: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = ledger_of(settled, f"{text_of(b'A' * 16)} 202")
    inner = settled.ring.snapshot
    half = f"{uuid4()}"

    def snapshot() -> object:
        with ledger.open("a") as file:
            file.write(f"{uuid4()} 202\n{half}")
        return inner()

    with ledger.open("a") as file:
        file.write(half[:9])
    monkeypatch.setattr(settled.ring, "snapshot", snapshot)
    report = settled.audit(ledger)
    assert report.ok
    assert report.counts["ledger: answered"] == 1


def test_a_ledger_longer_than_a_chunk_is_read_to_its_end(settled: House) -> None:
    lines = [f"{text_of(b'A' * 16)} 202"] * 1000
    report = settled.audit(ledger_of(settled, *lines, f"{uuid4()} 202"))
    assert report.counts["ledger: answered"] == 1001
    assert report.by_rule == {"ledger": 1}


# ---- the report and the verb ----------------------------------------------------------------


def test_the_list_of_violations_is_capped_and_their_number_is_not() -> None:
    report = Report()
    for number in range(VIOLATIONS_SHOWN_MAX + 7):
        report.violate("fefo", f"violation {number}")
    lines = list(report.lines())
    assert lines[0].startswith(f"audit: FAILED, {VIOLATIONS_SHOWN_MAX + 7} violations (")
    assert len(lines) == VIOLATIONS_SHOWN_MAX + 2
    assert lines[-1] == "  fefo: and 7 more like these"


def settings_of(house: House) -> Settings:
    settings, rest = load_settings(["--data-dir", str(house.folder), "--database", house.url], {})
    assert rest == []
    return settings


def test_the_verb_finds_the_ring_by_the_data_dir(
    settled: House, capsys: pytest.CaptureFixture[str]
) -> None:
    settled.put(("HAM", 1))
    (settled.folder / "ring.path").write_text(f"{settled.ring.path}\n")
    assert audit.main(settings_of(settled), []) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("audit: ok (4 orders")
    assert [line.split() for line in out if "in the ring" in line] == [["1", "in", "the", "ring"]]


def test_the_verb_says_what_is_wrong_and_exits_1(
    settled: House, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = ledger_of(settled, f"{uuid4()} 202")
    assert audit.main(settings_of(settled), ["--ledger", str(ledger)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("audit: FAILED, 1 violations (4 orders, 4 lots, 9 movements)")
    assert "\n  ledger: order " in out


def test_a_ring_that_can_not_be_read_is_a_violation(
    settled: House, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = settled.folder / "broken.ring"
    broken.write_bytes(b"nonsense" * 1000)
    (settled.folder / "ring.path").write_text(f"{broken}\n")
    assert audit.main(settings_of(settled), []) == 1
    assert "ring: it can't be read" in capsys.readouterr().out


def test_without_a_database_the_verb_fails_and_makes_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, _ = load_settings(["--data-dir", str(tmp_path / "none")], {})
    assert audit.main(settings, []) == 1
    assert "there is none" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("args", [["--ledger"], ["file"], ["--ledger", "/no/such/file"]])
def test_wrong_usage_exits_2(
    house: House, args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.main(settings_of(house), args) == 2
    assert capsys.readouterr().err.startswith("audit: ")


def test_a_store_error_is_no_pass(
    house: House, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> object:
        raise StoreError("no such driver")

    monkeypatch.setattr("processors.audit.Store.open", refuse)
    assert audit.main(settings_of(house), []) == 2
    assert "no such driver" in capsys.readouterr().err

"""A ring that other settings left, on processes and on the real program."""

from __future__ import annotations

import signal
import socket
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path

import pytest

from tests.program import PATIENCE_S, Client, Start, verb
from tests.supervisor.kit import kill_everything


def test_what_other_settings_left_is_moved_before_anybody_can_order(
    stand_in: Start, ring_dir: Path
) -> None:
    first = stand_in("--capacity", "10", "--workers", "2", worker="hold").ready()
    first.put(13)
    first.until(lambda: sum(first.held()) == 13, "everything in hands")
    first.put(10)
    kill_everything(first)
    path = first.ring_path()
    second = stand_in("--capacity", "3", "--slot-bytes", "1024", "--batch", "1", "--workers", "1")
    second.ready()
    said = "\n".join(second.log.said)
    assert said.index("moving 23 orders of other settings out of") < said.index("moved all orders")
    assert said.index("moved all orders") < said.index("ready on")
    assert not path.exists()
    assert [entry.name for entry in ring_dir.iterdir()] == [second.ring_path().name]
    assert second.end(signal.SIGTERM) == 0
    assert second.log.match("no order is left")


def test_nobody_can_connect_while_the_new_ring_has_no_room(stand_in: Start) -> None:
    first = stand_in("--workers", "1", worker="hold").ready()
    first.put(8)
    kill_everything(first)
    old = first.ring_path()
    second = stand_in("--capacity", "5", "--port", str(first.port), worker="idle")
    second.log.match("moving 8 orders")
    second.until(lambda: second.left() == 5, "a full ring")
    second.until(lambda: second.children("worker"), "a worker")
    assert not second.children("front")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", first.port), PATIENCE_S)
    assert second.end(signal.SIGINT) == 0
    new = second.ring_path()
    assert second.log.match(
        f"stopped; 8 orders remain in {new}, {old}, .*/journal for the next start"
    )
    assert old.exists()
    third = stand_in("--capacity", "7", "--workers", "1").ready()
    assert third.log.count("moved all orders out of") == 2
    assert third.end(signal.SIGTERM) == 0
    assert third.log.match("no order is left")


def test_a_drain_ends_what_a_move_began(stand_in: Start, ring_dir: Path) -> None:
    first = stand_in("--workers", "1", worker="hold").ready()
    first.put(40)
    kill_everything(first)
    second = stand_in("--capacity", "1", "--batch", "1", "--workers", "1")
    second.log.match("moving 40 orders")
    assert second.end(signal.SIGTERM) == 0
    assert second.log.match("no order is left")
    assert not list(ring_dir.iterdir())


def test_an_order_that_fits_no_new_slot_refuses_the_start_and_stays(stand_in: Start) -> None:
    first = stand_in("--workers", "1", worker="hold").ready()
    with first.ring() as ring, ring.writer() as writer:
        writer.put(b"x" * 3000, bytes(16), b"y" * 10)
    kill_everything(first)
    second = stand_in("--slot-bytes", "1024", "--workers", "1")
    assert second.end() == 3
    assert len(second.log.said) == 1
    assert "--slot-bytes 1024: " in second.log.said[0]
    assert (
        "an order of 3010 bytes, at most 960 fit; at least --slot-bytes 3136"
        in (second.log.said[0])
    )
    assert first.left() == 1
    third = stand_in("--slot-bytes", "3136", "--workers", "1").ready()
    assert third.end(signal.SIGTERM) == 0
    assert third.log.match("no order is left")


def test_a_ring_of_an_unknown_layout_is_refused_and_kept(stand_in: Start) -> None:
    first = stand_in("--workers", "1", worker="hold").ready()
    first.put(3)
    kill_everything(first)
    path = first.ring_path()
    with path.open("r+b") as file:
        file.seek(8)
        file.write((77).to_bytes(4, "little"))
    content = path.read_bytes()
    second = stand_in("--workers", "1")
    assert second.end() == 3
    assert f"{path}: a ring of layout 77 found, 2 wanted; the file stays" in second.log.said[-1]
    assert path.read_bytes() == content
    assert second.ring_path() == path


# ---- the real program ----------------------------------------------------------------------------


def test_every_answered_order_survives_moves_that_are_killed_half_way(
    rasher: Start, tmp_path: Path
) -> None:
    run = rasher("--workers", "1", "--capacity", "30").ready()
    client, ledger = Client(run), tmp_path / "ledger.txt"
    with closing(client.connection):
        client.stock("1000")
        run.child("worker").send_signal(signal.SIGSTOP)
        ids = [client.order() for _ in range(25)]
    ledger.write_text("".join(f"{order_id} 202\n" for order_id in ids))
    kill_everything(run)
    # While the database is locked no worker makes room.
    with closing(sqlite3.connect(run.data_dir / "rasher.db")) as database:
        database.execute("BEGIN EXCLUSIVE")
        run = rasher("--workers", "1", "--capacity", "4")
        run.log.match("moving 25 orders of other settings")
        run.until(lambda: run.left() == 4, "a full ring")
        kill_everything(run)
    audit = verb(run, "audit", "--ledger", str(ledger))
    assert (audit.returncode, "25 ledger: answered" in audit.stdout) == (0, True), audit
    run = rasher("--workers", "2").ready()
    client = Client(run)
    with closing(client.connection):
        assert client.all_allocated(ids)
    assert run.end(signal.SIGTERM) == 0
    audit = verb(run, "audit", "--ledger", str(ledger))
    assert (audit.returncode, "25 orders allocated" in audit.stdout) == (0, True), audit
    committed = run.column("SELECT id FROM orders ORDER BY ring_sequence")
    assert [str(uuid.UUID(bytes=order_id)) for order_id in committed] == ids

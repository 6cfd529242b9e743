"""The process tree over stand-in children: what dies, what is started again, what is left."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ringbuf import Ring, Segment
from ringbuf.segment import segment_paths
from tests.program import PATIENCE_S, Rasher, Start, outlasting
from tests.supervisor.kit import kill_everything


def answering_pid(rasher: Rasher) -> int:
    """The pid that the stand-in front says on a new connection."""
    with socket.create_connection(("127.0.0.1", rasher.port), PATIENCE_S) as connection:
        return int(connection.makefile().readline())


def put_until(rasher: Rasher, condition: Callable[[list[int]], bool]) -> None:
    """Puts orders one by one until the hands hold what they should."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition(rasher.held()):
        assert time.monotonic() < deadline
        rasher.put(1)


def test_every_process_shows_its_role_and_index(stand_in: Start) -> None:
    rasher = stand_in("--fronts", "2", "--workers", "2").ready()
    assert rasher.process.cmdline()[0].strip() == "rasher supervisor"
    assert sorted(rasher.children()) == [
        "rasher front 0",
        "rasher front 1",
        "rasher worker 0",
        "rasher worker 1",
    ]


def test_the_first_line_tells_where_and_what_to_try(stand_in: Start, data_dir: Path) -> None:
    rasher = stand_in("--fronts", "2", "--workers", "1", "--capacity", "7").ready()
    line = rasher.log.match("ready on").string
    url = f"http://127.0.0.1:{rasher.port}"
    assert f"ready on {url}: fronts 2, workers 1, capacity 7, durability disk" in line
    assert f"data in {data_dir}; try: curl -i {url}/readyz" in line


def test_a_clean_drain_leaves_no_ring_behind(
    stand_in: Start, data_dir: Path, ring_dir: Path
) -> None:
    rasher = stand_in().ready()
    rasher.put(50)
    assert rasher.end(signal.SIGTERM) == 0
    assert rasher.log.match("no order is left")
    assert not list(ring_dir.iterdir())
    assert sorted(path.name for path in data_dir.iterdir()) == ["journal", "rasher.pid"]
    assert not list((data_dir / "journal").iterdir())


def test_a_second_one_on_the_data_dir_is_refused_naming_the_pid(
    stand_in: Start, data_dir: Path
) -> None:
    first = stand_in().ready()
    second = stand_in()
    assert second.end() == 3
    assert second.log.said == [f"rasher: --data-dir {data_dir}: in use by pid {first.popen.pid}"]
    assert first.children("front")


def test_a_stale_pid_file_is_no_obstacle(stand_in: Start, data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "rasher.pid").write_text(f"{os.getpid()}\n")
    rasher = stand_in().ready()
    assert (data_dir / "rasher.pid").read_text() == f"{rasher.popen.pid}\n"


def test_a_taken_port_is_refused_with_the_address_and_leaves_no_ring(
    stand_in: Start, taken_port: int, ring_dir: Path
) -> None:
    rasher = stand_in("--port", str(taken_port))
    assert rasher.end() == 3
    address = f"--host 127.0.0.1 --port {taken_port}: can't listen on http://127.0.0.1:{taken_port}"
    assert rasher.log.said == [f"rasher: {address}: Address already in use"]
    assert not list(ring_dir.iterdir())


# ---- deaths --------------------------------------------------------------------------------------


def test_a_killed_front_is_replaced_and_no_connection_is_refused(stand_in: Start) -> None:
    rasher = stand_in().ready()
    before = rasher.child("front")
    assert answering_pid(rasher) == before.pid
    before.kill()
    assert answering_pid(rasher) not in (before.pid, rasher.popen.pid)
    assert rasher.log.match(rf"front 0: pid {before.pid} was ended by SIGKILL .* starts now")


def test_a_killed_workers_index_goes_to_its_replacement_with_what_it_held(stand_in: Start) -> None:
    rasher = stand_in("--workers", "2", worker="hold").ready()
    put_until(rasher, lambda held: held[1] > 0)
    with Ring.attach(rasher.ring_path()) as ring:
        held = {item.key for index, item in ring.snapshot().held if index == 1}
        before = rasher.child("worker", 1)
        before.kill()
        rasher.replaced(before, "worker", 1)
        rasher.log.match("worker 1 is ready")
        assert held <= {item.key for index, item in ring.snapshot().held if index == 1}


def test_children_die_with_their_supervisor(stand_in: Start) -> None:
    rasher = stand_in("--fronts", "2", front="deaf", worker="deaf").ready()
    children = list(rasher.children().values())
    rasher.signal(signal.SIGKILL)
    assert children
    assert not outlasting(children)


def test_children_leave_a_terminals_signals_to_the_supervisor(stand_in: Start) -> None:
    rasher = stand_in().ready()
    before = answering_pid(rasher)
    for child in rasher.children().values():
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGQUIT)
    assert answering_pid(rasher) == before
    assert not rasher.log.count("ended")


def test_ctrl_c_in_a_terminal_ends_it_cleanly(stand_in: Start) -> None:
    rasher = stand_in().ready()
    os.killpg(rasher.popen.pid, signal.SIGINT)
    assert rasher.end() == 0
    assert not rasher.log.count("Traceback|KeyboardInterrupt|SIGINT")


def test_a_worker_that_never_gets_ready_is_told_each_time_and_tried_ever_slower(
    stand_in: Start,
) -> None:
    rasher = stand_in("--workers", "1", worker="die")
    for count, when in enumerate(("now", "in 0.25 s", "in 0.5 s"), start=1):
        line = rasher.log.match("worker 0: pid", count).string
        assert "ended with exit code 9" in line
        assert line.endswith(f"before it was ready; another starts {when}")
    assert not rasher.log.count("ready on")
    assert rasher.end(signal.SIGTERM) == 0


# ---- stopping ------------------------------------------------------------------------------------


def test_a_drain_past_its_time_says_how_many_remain_and_keeps_the_ring(stand_in: Start) -> None:
    rasher = stand_in("--graceful-timeout", "0.5", "--workers", "1", worker="hold").ready()
    rasher.put(5)
    assert rasher.end(signal.SIGTERM) == 0
    assert rasher.log.match("stopped; 5 orders remain in .*ring, .*journal for the next start")
    assert rasher.left() == 5


def test_a_front_that_does_not_end_is_killed_at_the_end_of_the_drain(stand_in: Start) -> None:
    rasher = stand_in("--graceful-timeout", "0.5", front="deaf").ready()
    assert rasher.end(signal.SIGTERM) == 0
    assert rasher.log.match("killing front 0")
    assert rasher.log.match("no order is left")


def test_a_worker_that_is_killed_while_draining_is_replaced_until_all_is_done(
    stand_in: Start,
) -> None:
    rasher = stand_in("--workers", "1", worker="hold").ready()
    rasher.put(3)
    rasher.signal(signal.SIGTERM)
    rasher.log.match("front 0: pid .* exit code 0")
    before = rasher.child("worker")
    before.kill()
    after = rasher.replaced(before, "worker")
    assert after.pid != before.pid
    rasher.log.match("worker 0 is ready")
    assert rasher.left() == 3


def test_interrupt_keeps_what_is_left_for_the_next_start(stand_in: Start) -> None:
    first = stand_in("--workers", "1", worker="hold").ready()
    first.put(5)
    assert first.end(signal.SIGINT) == 0
    assert first.log.match("stopped; 5 orders remain")
    path = first.ring_path()
    second = stand_in("--workers", "1").ready()
    assert second.log.match(f"going on with the ring {path}, orders in it: 5")
    assert second.end(signal.SIGTERM) == 0
    assert not path.exists()


def test_interrupt_removes_a_ring_that_is_empty(stand_in: Start, ring_dir: Path) -> None:
    rasher = stand_in().ready()
    assert rasher.end(signal.SIGINT) == 0
    assert not list(ring_dir.iterdir())


def test_a_second_interrupt_does_not_wait_for_a_deaf_worker(stand_in: Start) -> None:
    rasher = stand_in("--workers", "1", worker="deaf").ready()
    rasher.signal(signal.SIGINT)
    rasher.log.match("stopping")
    assert rasher.end(signal.SIGINT) == 0
    assert rasher.log.match("killing .*worker 0")


# ---- starting again ------------------------------------------------------------------------------


def test_what_everybody_left_when_killed_is_drained_by_the_next(stand_in: Start) -> None:
    first = stand_in("--workers", "2", worker="hold").ready()
    first.put(20)
    kill_everything(first)
    assert first.left() == 20
    second = stand_in("--workers", "2").ready()
    assert second.end(signal.SIGTERM) == 0
    assert second.log.match("no order is left")


def test_hands_of_more_workers_than_now_go_to_worker_0(stand_in: Start) -> None:
    first = stand_in("--workers", "3", worker="hold").ready()
    put_until(first, lambda held: held[1] > 0 and held[2] > 0)
    kill_everything(first)
    second = stand_in("--workers", "1").ready()
    assert second.log.match(r"adopting \[1, 2\]")
    assert second.end(signal.SIGTERM) == 0
    assert second.log.match("no order is left")


def test_whoever_of_a_killed_run_still_lives_is_ended_before_a_hand_is_given_out(
    stand_in: Start,
) -> None:
    first = stand_in("--workers", "1", worker="hold").ready()
    first.put(3)
    first.until(lambda: first.held()[0] == 3, "everything in the hand")
    kill_everything(first)
    code = (
        "import sys; from ringbuf import Ring\n"
        "hand = Ring.attach(sys.argv[1]).reader(0); print(len(hand.held()), flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(first.ring_path())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as straggler:
        assert straggler.stdout is not None
        assert straggler.stdout.readline() == b"3\n"
        second = stand_in("--workers", "1").ready()
        assert straggler.wait(PATIENCE_S) == -signal.SIGKILL
    assert second.log.match(rf"ended reader 0 \(pid {straggler.pid}\) of the run before")
    assert second.end(signal.SIGTERM) == 0


def test_other_settings_replace_an_empty_ring(stand_in: Start) -> None:
    first = stand_in("--capacity", "10").ready()
    kill_everything(first)
    path = first.ring_path()
    second = stand_in("--capacity", "20").ready()
    assert not path.exists()
    with Ring.attach(second.ring_path()) as ring:
        assert ring.capacity == 20


def test_a_damaged_ring_is_told_and_left_alone(stand_in: Start) -> None:
    first = stand_in("--workers", "1", worker="hold").ready()
    first.put(3)
    kill_everything(first)
    path = first.ring_path()
    with path.open("r+b") as file:
        file.write(b"\xff" * 64)
    second = stand_in("--workers", "1").ready()
    assert second.log.match(f"can't go on with the ring .*the file stays: {path}")
    assert path.exists()
    assert second.ring_path() != path


def test_another_data_dirs_ring_is_not_touched(stand_in: Start, tmp_path: Path) -> None:
    first = stand_in("--workers", "1", worker="hold").ready()
    first.put(3)
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "ring.path").write_text((first.data_dir / "ring.path").read_text())
    second = stand_in("--data-dir", str(copy))
    assert second.end() == 3
    assert f"belongs to the data dir {first.data_dir} and holds 3 orders" in second.log.said[-1]
    assert first.child("worker").is_running()


def test_a_lost_ring_file_is_drained_and_ends_with_4(stand_in: Start, data_dir: Path) -> None:
    rasher = stand_in("--workers", "1").ready()
    rasher.put(3)
    rasher.ring_path().unlink()
    assert rasher.end() == 4
    assert rasher.log.match("error .* the ring's file is gone or another")
    assert not segment_paths(data_dir / "journal")


@pytest.mark.parametrize("durability", ["memory", "disk"])
def test_what_no_worker_finishes_after_the_ring_file_was_lost_is_on_disk(
    stand_in: Start, data_dir: Path, durability: str
) -> None:
    rasher = stand_in(
        "--workers", "1", "--graceful-timeout", "0.5", "--durability", durability, worker="hold"
    ).ready()
    rasher.put(3)
    path = rasher.ring_path()
    path.unlink()
    path.write_text("somebody else's\n")
    assert rasher.end() == 4
    assert rasher.log.match(f"stopped; 3 orders remain in {data_dir}/journal for the next start")
    (spilled,) = segment_paths(data_dir / "journal")
    with Segment.open(spilled) as segment:
        assert len(list(segment.items())) == 3
    assert path.read_text() == "somebody else's\n"


# ---- the database --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["a directory", "no SQLite database"])
def test_a_database_that_is_none_is_refused_with_the_reason(
    stand_in: Start, tmp_path: Path, ring_dir: Path, kind: str
) -> None:
    path = tmp_path / "db"
    path.mkdir() if kind == "a directory" else path.write_text("Dear diary, this is no database.")
    rasher = stand_in("--database", f"sqlite:///{path}")
    assert rasher.end() == 3
    assert rasher.log.said == [f"rasher: --database sqlite:///{path}: {path} is {kind}"]
    assert not list(ring_dir.iterdir())


def test_a_locked_database_is_waited_for_while_orders_are_taken(
    stand_in: Start, data_dir: Path
) -> None:
    data_dir.mkdir()
    with sqlite3.connect(data_dir / "rasher.db") as connection:
        connection.execute("BEGIN EXCLUSIVE")
        rasher = stand_in("--workers", "1", database="real")
        assert rasher.log.match("database is not available.* tried again every 5 s")
        rasher.until(lambda: rasher.children("front"), "a front without database")
        assert not rasher.children("worker")
        connection.rollback()
    connection.close()
    assert rasher.log.match("the database is ready")
    rasher.ready()
    assert rasher.child("worker").is_running()


# ---- the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--capacity", "0"], "--capacity 0: out of range, must be 1 to 1,000,000 slots"),
        (["--capacti", "5"], "--capacti: no such flag, did you mean --capacity?"),
        (["dance"], "dance: no such verb, there are audit, backup, status, ring, lots, "),
        (["--processor", "no.such:thing"], "--processor no.such:thing: ModuleNotFoundError: "),
        (["--processor", "json:decoder"], "--processor json:decoder: it is not callable"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(stand_in: Start, argv: list[str], text: str) -> None:
    rasher = stand_in(*argv)
    assert rasher.end() == 2
    assert len(rasher.log.said) == 1
    assert rasher.log.said[0].startswith(f"rasher: {text}")


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["version"], ["--port", "0", "version"]])
def test_help_and_version_need_no_settings(words: list[str]) -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "supervisor.py", *words],
        cwd=root,
        env={**os.environ, "RASHER_CAPACITY": "no number"},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    assert done.stdout
    assert not done.stderr


def test_json_logs_are_json_in_every_process(stand_in: Start) -> None:
    rasher = stand_in("--log-format", "json")
    rasher.log.match('"message":"ready on')
    assert rasher.end(signal.SIGTERM) == 0
    records = [json.loads(line) for line in rasher.log.said]
    assert {"at", "level", "process", "pid", "logger", "message"} <= records[0].keys()

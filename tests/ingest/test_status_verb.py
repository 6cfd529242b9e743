"""`rasher status` of the real program, whatever state it and its surroundings are in."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from ingest import door, status_verb
from ingest.status_verb import ANSWER_S_MAX, LOOK_S_MAX
from processors.settings import Settings
from tests.crash.test_locked_database import nobody_reads, nobody_writes
from tests.ingest.certificate import make_certificate
from tests.partners import SECRET
from tests.postgres import Postgres
from tests.processors.test_status import tree
from tests.program import PATIENCE_S, Rasher, Start, call, verb

ALL_S_MAX = LOOK_S_MAX + ANSWER_S_MAX
# Beside the waits: the program's own start, on a machine with other work.
WITHIN_S = ALL_S_MAX + 10.0
Lock = Callable[[Rasher], AbstractContextManager[None]]


def status(run: Rasher) -> tuple[int, Any]:
    """-> exit code and what is said, which was there in time."""
    words = run.words_of("--database")
    database = words[1] if words else f"sqlite:///{run.data_dir}/rasher.db"
    begun = time.monotonic()
    found = status_verb.look(Settings(str(run.data_dir), database))
    assert time.monotonic() - begun < WITHIN_S
    return 0 if found.ready else 1, msgspec.json.decode(msgspec.json.encode(found))


def program(run: Rasher, *words: str) -> tuple[int, str]:
    """The same by the program itself."""
    begun = time.monotonic()
    done = verb(run, "status", *words, *run.words_of("--database"))
    assert time.monotonic() - begun < WITHIN_S
    assert done.stderr == ""
    return done.returncode, done.stdout


def ordering(run: Rasher, count: int) -> None:
    """Without ids, which would have to be looked for."""
    body = {"customer": "Funky Foods", "lines": [{"sku": "BELLY", "quantity": "1.5"}]}
    for _ in range(count):
        assert call(run, "POST", "/orders", body)[0] == 202


def worker_stopped(run: Rasher, orders: int) -> psutil.Process:
    """With that many orders waiting."""
    worker = run.child("worker")
    worker.send_signal(signal.SIGSTOP)
    ordering(run, orders)
    return worker


def test_a_running_system_is_told_whole(rasher: Start) -> None:
    partner = ("--webhook-url", "http://127.0.0.1:1/", "--webhook-secret", SECRET)
    run = rasher("--workers", "2", "--capacity", "7", *partner).ready()
    run.until(lambda: "rasher relay" in run.children(), "the relay at work")
    ordering(run, 1)
    run.until(lambda: run.column("SELECT status FROM orders") == ["rejected"], "it settled")
    code, said = program(run, "--json")
    told = json.loads(said)
    assert code == 0
    assert (told["running"], told["ready"], told["reason"]) == (True, True, None)
    assert (told["pid"], told["problems"]) == (run.popen.pid, {})
    assert told["url"] == f"http://127.0.0.1:{run.port}"
    ring = {"path": str(run.ring_path()), "capacity": 7, "depth": 0, "oldest_s": None}
    assert told["ring"] == {**ring, "closed": False, "moving": 0}
    assert told["hands"] == {}
    names = [f"rasher {one['role']} {one['index']}" for one in told["processes"]]
    pids = [one["pid"] for one in told["processes"]]
    assert names == ["rasher front 0", "rasher worker 0", "rasher worker 1", "rasher relay 0"]
    children = run.children()
    assert pids == [children[name.replace("relay 0", "relay")].pid for name in names]
    assert all(one["alive"] for one in told["processes"])
    files = [path.stat().st_size for path in (run.data_dir / "journal").iterdir()]
    assert told["journal"] == {"segments": len(files), "bytes": sum(files)}
    assert (told["database"]["dead_letters"], told["database"]["outbox_pending"]) == (0, 1)
    assert told["database"]["outbox_oldest_s"] > 0
    code, lines = program(run)
    assert code == 0
    for pattern in (
        rf"running +pid {run.popen.pid} since 20..-",
        rf"ready +yes, on http://127.0.0.1:{run.port}\n",
        r"ring +0 of 7 wait\n",
        rf"worker 1 +pid {pids[2]}\n",
        r"outbox +1 to be told, the oldest for \d",
    ):
        assert re.search(pattern, lines), lines


def test_looking_changes_nothing_running_stopped_or_killed(rasher: Start) -> None:
    run = rasher("--workers", "1").ready()
    worker_stopped(run, 3)
    # The front opens the database when it is first asked how it is.
    assert call(run, "GET", "/readyz")[0] == 200
    looked_at(run, ready=True)
    for process in (run.process, *run.children().values()):
        process.kill()
    run.end()
    told = looked_at(run, ready=False)
    assert (told["running"], told["reason"]) == (False, "not running")
    assert told["ring"]["depth"] == 3
    assert [one["alive"] for one in told["processes"]] == [False, False]
    again = rasher("--workers", "1").ready()
    again.until(lambda: not again.left(), "all settled")
    assert again.end(signal.SIGTERM) == 0
    told = looked_at(again, ready=False)
    assert (told["ring"], told["processes"], told["database"]["dead_letters"]) == (None, [], 0)


def looked_at(run: Rasher, *, ready: bool) -> Any:
    """-> what is told, while neither data dir nor ring changed."""
    before = files(run)
    code, said = program(run, "--json")
    assert files(run) == before
    told = json.loads(said)
    assert (code, told["ready"]) == (0 if ready else 1, ready)
    return told


def files(run: Rasher) -> dict[str, tuple[int, ...]]:
    """But for when SQLite's index was written: a front that is asked how it is reads through it."""
    found = tree(run.data_dir) | tree(Path(run.words_of("--ring-dir")[1]))
    return {path: one[:2] if path.endswith("-shm") else one for path, one in found.items()}


def test_a_system_that_never_ran_is_not_running(tmp_path: Path, launch: Any) -> None:
    code = status_verb.main(Settings(str(tmp_path / "var"), f"sqlite:///{tmp_path}/no.db"), [])
    assert code == 1
    assert list(tmp_path.iterdir()) == []


def test_one_that_drains_is_not_ready(rasher: Start) -> None:
    run = rasher("--workers", "1", "--graceful-timeout", "60").ready()
    worker = worker_stopped(run, 4)
    run.signal(signal.SIGTERM)
    run.log.match("front 0: pid .* exit code 0")
    code, told = status(run)
    assert (code, told["running"], told["ring"]["closed"]) == (1, True, True)
    assert told["reason"] == "it is stopping, 4 orders are still in"
    code, lines = program(run)
    assert code == 1
    assert "ready        no: it is stopping, 4 orders are still in\n" in lines
    assert "ring         4 of 100 wait, the oldest for " in lines
    worker.send_signal(signal.SIGCONT)
    assert run.end() == 0
    code, lines = program(run)
    assert code == 1
    assert lines.splitlines()[1:3] == ["ready        no: not running", "ring         none"]


def test_one_whose_ring_is_full_for_too_long_says_so_itself(rasher: Start) -> None:
    run = rasher("--workers", "1", "--capacity", "2", "--full-timeout", "0.1").ready()
    worker = worker_stopped(run, 2)
    run.until(lambda: status(run)[0] == 1, "it is full for too long")
    _, told = status(run)
    assert re.match(r"the ring has been full for .* s \(--full-timeout\)", told["reason"])
    assert (told["ring"]["depth"], told["degraded"]) == (2, [])
    assert told["ring"]["oldest_s"] > 0.1
    worker.send_signal(signal.SIGCONT)
    assert run.end(signal.SIGTERM) == 0


def test_a_front_that_hangs_does_not_keep_the_answer(rasher: Start) -> None:
    run = rasher().ready()
    run.child("front").send_signal(signal.SIGSTOP)
    code, told = status(run)
    assert (code, told["running"]) == (1, True)
    where = f"http://127.0.0.1:{run.port}"
    assert told["reason"] == f"no front answers on {where} within {ANSWER_S_MAX:g} s"
    assert told["database"]["dead_letters"] == 0
    assert program(run)[0] == 1


@pytest.mark.parametrize(
    ("lock", "told"),
    [(nobody_writes, "reachable"), (nobody_reads, f"no answer within {ALL_S_MAX:g} s")],
)
def test_a_locked_database_is_told_and_the_rest_as_well(
    rasher: Start, lock: Lock, told: str
) -> None:
    run = rasher("--workers", "1", "--order-timeout", "8").ready()
    ordering(run, 1)
    run.until(lambda: not run.left(), "it settled")
    with lock(run):
        ordering(run, 2)
        run.until(lambda: ", degraded: database\n" in program(run)[1], "the database named")
        code, said = program(run)
        assert code == 0
        assert f"\ndatabase     {told}\n" in said
        assert re.search(r"\nin hands +[12] in hand 0\n", said)
        assert re.search(r"\njournal +[1-9][0-9,]+ bytes in [1-9]", said)
    run.until(lambda: status(run)[1]["degraded"] == [], "it is back")
    assert run.end(signal.SIGTERM) == 0


def test_a_server_that_is_away_is_told_and_the_rest_as_well(
    rasher: Start, own_postgres: Postgres
) -> None:
    run = rasher("--database", own_postgres.url(own_postgres.database())).ready()
    assert status(run)[1]["database"]["dead_letters"] == 0
    own_postgres.stop()
    code, told = status(run)
    assert (code, told["running"], told["ready"]) == (0, True, True)
    assert told["degraded"] == ["database"]
    assert "Connection refused" in told["problems"]["database"]
    code, lines = program(run)
    assert code == 0
    assert re.search("ready +yes, .*, degraded: database\n", lines)
    assert re.search("database +the database is not available: .*Connection refused", lines)
    own_postgres.start()


def test_a_server_that_is_silent_is_not_waited_for_long(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://rasher@127.0.0.1:{silent.getsockname()[1]}/rasher"
        begun = time.monotonic()
        told = status_verb.look(Settings(str(tmp_path), url))
        assert time.monotonic() - begun < WITHIN_S
    assert told.database is None
    assert re.search("timeout|no answer within", told.problems["database"])


def test_a_part_that_hangs_or_fails_is_told_and_the_others_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()

    def hangs(*_: object) -> None:
        over.wait(PATIENCE_S)

    def fails(*_: object) -> None:
        raise KeyError("what\nis this")

    monkeypatch.setattr(status_verb, "LOOK_S_MAX", 0.05)
    monkeypatch.setattr(status_verb, "ANSWER_S_MAX", 0.05)
    monkeypatch.setattr(status_verb, "look_at_rings", hangs)
    monkeypatch.setattr(status_verb, "look_at_journal", fails)
    told = status_verb.look(Settings(str(tmp_path), f"sqlite:///{tmp_path}/no.db"))
    over.set()
    assert told.problems["ring"] == "no answer within 0.05 s"
    assert told.problems["journal"] == r"'what\nis this'"
    assert told.problems["database"].startswith("there is no database")
    assert told.reason == "not running"


def test_a_ring_file_that_is_gone_is_not_ready(rasher: Start) -> None:
    run = rasher().ready()
    path = run.ring_path()
    run.signal(signal.SIGSTOP)  # or it would end within a second
    path.unlink()
    code, told = status(run)
    assert (code, told["running"], told["ring"]) == (1, True, None)
    assert told["reason"] == f"{path}: there is no ring of {run.data_dir}"
    assert told["database"]["dead_letters"] == 0
    run.signal(signal.SIGCONT)
    assert run.end() == 4
    assert status(run)[1]["reason"] == "not running"


def test_a_ring_that_can_not_be_read_from_here_is_told_beside_what_the_service_says(
    rasher: Start,
) -> None:
    run = rasher().ready()
    with run.ring_path().open("r+b") as file:
        magic = file.read(8)
        file.seek(0)
        file.write(b"\0" * 8)
        file.flush()
        code, told = status(run)
        assert (code, told["ready"], told["ring"]) == (0, True, None)
        assert str(run.ring_path()) in told["problems"]["ring"]
        assert [one["role"] for one in told["processes"]][:2] == ["front", "worker"]
        file.seek(0)
        file.write(magic)
    assert run.end(signal.SIGTERM) == 0


def test_a_service_behind_tls_is_found_without_its_flags(rasher: Start, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    run = rasher("--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)).ready()
    code, told = status(run)
    assert (code, told["url"]) == (0, f"https://127.0.0.1:{run.port}")
    assert run.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_a_process_is_found_where_it_listens(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip("needs IPv6, which this machine has not")
    with listener:
        port = listener.getsockname()[1]
        found = list(door.listening(os.getpid()))
        wanted = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        assert (wanted, port) in found
    assert (wanted, port) not in list(door.listening(os.getpid()))


def test_who_listens_nowhere_is_told(tmp_path: Path) -> None:
    with pytest.raises(door.NoAnswer, match="does not listen yet"):
        door.ask(os.getpid(), 0.1, tls=False)


@contextmanager
def answering(status: int, body: bytes) -> Iterator[int]:
    """A service of this process that says that -> its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/readyz"
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        yield server.server_address[1]
        thread.join()


@pytest.mark.parametrize(
    ("code", "body", "reason", "degraded"),
    [
        (200, b'{"status":"ready","degraded":["ring"]}', None, ["ring"]),
        (503, b'{"detail":"it is full"}', "it is full", []),
        (503, b"", "/readyz answers 503", []),
        (200, b"[]", "/readyz answers 200", []),
        (404, b'{"detail":null}', "/readyz answers 404", []),
    ],
)
def test_what_the_service_says_counts(
    code: int, body: bytes, reason: str | None, degraded: list[str]
) -> None:
    with answering(code, body) as port:
        said = door.ask(os.getpid(), PATIENCE_S, tls=False)
    assert said == door.Answer(f"http://127.0.0.1:{port}", reason, degraded)


def test_a_start_that_waits_for_its_database_is_not_ready(
    rasher: Start, own_postgres: Postgres
) -> None:
    database = own_postgres.url(own_postgres.database())
    own_postgres.stop()
    run = rasher("--database", database)
    run.log.match("Connection refused.*tried again every")
    code, told = status(run)
    assert (code, told["running"], told["ring"]["depth"]) == (1, True, 0)
    assert told["reason"] == "no front lives: it is starting, or its log says why"
    own_postgres.start()
    run.ready()
    assert status(run)[0] == 0


def test_wrong_usage_is_two(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        status_verb.main(Settings(str(tmp_path), f"sqlite:///{tmp_path}/no.db"), ["now"])
    assert ended.value.code == 2

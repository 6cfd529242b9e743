"""The relay in its tree: partners are told whatever is killed, replaced or stopped meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from standardwebhooks.webhooks import Webhook

from processors.policy import begin
from processors.relay_process import NICENESS
from processors.settings import WebhookSettings
from processors.tree import RELAY, CloseRing, Install, Ready, Send, Start, State
from processors.webhooks import Endpoint
from tests.partners import SECRET
from tests.program import ROOT, Client, Rasher, verb
from tests.program import Start as StartProgram
from tests.supervisor.kit import (
    F0,
    NOTHING,
    SETTINGS,
    W0,
    W1,
    after,
    asked,
    ended,
    kill_everything,
    running,
    tick,
)

TOLD = WebhookSettings(endpoints=(Endpoint("shop", "http://h/", (b"s" * 24,)),))
WITH = replace(SETTINGS, webhooks=TOLD)


class Shop(ThreadingHTTPServer):
    """Verifies and keeps what it is told: (id, type, order); `status`: what it answers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.heard: list[tuple[str, str, str]] = []
        self.status = 200
        self.free = threading.Event()
        self.free.set()

    @property
    def orders(self) -> set[str]:
        return {order for _, _, order in self.heard}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Shop

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        Webhook(SECRET).verify(body, {name.lower(): text for name, text in self.headers.items()})
        content = json.loads(body)
        told = self.headers["webhook-id"], content["type"], content["data"]["order_id"]
        self.server.heard.append(told)
        self.server.free.wait(20)
        self.send_response(self.server.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def listening() -> Iterator[Shop]:
    shop = Shop()
    thread = threading.Thread(target=shop.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield shop
    finally:
        shop.free.set()
        shop.shutdown()
        thread.join()
        shop.server_close()


def write(path: Path, **shops: Shop) -> None:
    path.write_text(
        "".join(
            f'[[webhooks]]\nname = "{name}"\nsecret = "{SECRET}"\n'
            f'url = "http://127.0.0.1:{shop.server_address[1]}/"\n'
            for name, shop in shops.items()
        )
    )


def test_partners_are_told_whatever_is_killed_replaced_or_stopped(
    rasher: StartProgram, tmp_path: Path
) -> None:
    config = tmp_path / "rasher.toml"
    with listening() as shop, listening() as bank:
        write(config, shop=shop)
        run = rasher("--config", str(config), "--workers", "1").ready()
        client = Client(run)
        client.stock("1000")
        orders = {client.order() for _ in range(10)}
        run.until(lambda: shop.orders == orders, "everything is told")

        # Killed with a message under way: it is told again under its id.
        shop.free.clear()
        count = len(shop.heard)
        orders.add(client.order())
        run.until(lambda: len(shop.heard) > count, "one is under way")
        relay = run.child("relay")
        relay.kill()
        run.replaced(relay, "relay")
        shop.free.set()
        run.until(lambda: len(shop.heard) > count + 1, "it is told again")
        assert len(set(shop.heard)) == len(orders)
        assert shop.heard[count] == shop.heard[count + 1]

        # Another endpoint from HUP on, with the rest of the tree replaced as well.
        write(config, shop=shop, bank=bank)
        client.connection.close()  # no front has to wait for it
        run.signal(signal.SIGHUP)
        run.log.match("relay is ready", 2)  # after the kill, and now
        later = {client.order() for _ in range(5)}
        client.connection.close()
        run.until(lambda: bank.orders == later, "the new one is told of what came since")
        run.until(lambda: shop.orders == orders | later, "the other of everything")

        # None is left: the relay ends, and nothing is missed by who comes back by the same name.
        write(config)
        run.signal(signal.SIGHUP)
        run.until(lambda: "rasher relay" not in run.children(), "there is no relay")
        assert run.end(signal.SIGTERM) == 0
    assert len(set(shop.heard)) == len(orders | later)


def test_what_a_stop_left_untold_the_next_start_tells(rasher: StartProgram, tmp_path: Path) -> None:
    config = tmp_path / "rasher.toml"
    with listening() as shop:
        write(config, shop=shop)
        flags = ("--config", str(config), "--workers", "1")
        run = rasher(*flags).ready()
        shop.free.clear()
        client = Client(run)
        orders = {client.order() for _ in range(20)}
        client.connection.close()
        run.until(lambda: shop.heard, "some are under way")
        assert run.end(signal.SIGTERM) == 0  # although nothing was answered
        shop.free.set()
        run = rasher(*flags).ready()
        run.until(lambda: shop.orders == orders, "everything is told")
        assert len({one for one, _, _ in shop.heard}) == len(orders)


def metric(run: Rasher, name: str) -> float:
    """Of one with its labels, as it is written; 0 for none."""
    with urllib.request.urlopen(f"http://127.0.0.1:{run.port}/metrics") as answer:
        found = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines())
    return float(found.get(name, 0))


def restarts(run: Rasher, cause: str) -> float:
    return metric(run, f'rasher_process_restarts_total{{cause="{cause}",role="relay"}}')


LEFT_BEHIND = """
import sys
from ringbuf import Ring
with Ring.attach(sys.argv[1]) as ring, ring.writer():
    print("in", flush=True)
    sys.stdin.read()
"""


def test_the_relay_has_a_place_in_the_ring_and_is_counted_there(
    rasher: StartProgram, tmp_path: Path
) -> None:
    config = tmp_path / "rasher.toml"
    up = 'rasher_process_up{index="0",role="relay"}'
    delivered = 'rasher_webhook_attempts_total{outcome="delivered"}'

    def recorded(run: Rasher) -> set[int]:
        with run.ring() as ring:
            return {one.pid for one in ring.participants() if one.alive()}

    with listening() as shop:
        write(config, shop=shop)
        run = rasher("--config", str(config), "--workers", "1").ready()
        client = Client(run)
        with closing(client.connection):
            orders = {client.order() for _ in range(3)}
        run.until(lambda: metric(run, delivered) == 3, "three are counted")
        first = run.child("relay")
        assert first.pid in recorded(run)
        assert f"(the relay): pid {first.pid}" in verb(run, "ring").stdout
        assert (metric(run, up), restarts(run, "signal")) == (1, 0)
        first.kill()
        second = run.replaced(first, "relay")
        run.until(lambda: (metric(run, up), restarts(run, "signal")) == (1, 1), "it is back")
        run.signal(signal.SIGHUP)
        third = run.replaced(second, "relay")
        run.until(lambda: third.pid in recorded(run), "its turn has come")
        assert not {first.pid, second.pid} & recorded(run)
        run.until(lambda: restarts(run, "reload") == 1, "it is counted")
        kill_everything(run)

        # As a relay that outlives its supervisor: the next one ends it, whatever its own ring.
        words = [sys.executable, "-c", LEFT_BEHIND, str(run.ring_path())]
        with subprocess.Popen(
            words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as left:
            assert left.stdout is not None
            assert left.stdout.readline() == b"in\n"
            run = rasher("--config", str(config), "--workers", "1", "--capacity", "50").ready()
            assert left.wait(0) == -signal.SIGKILL
        assert run.log.count(rf"ended writer \d+ \(pid {left.pid}\) of the run before")
        client = Client(run)
        with closing(client.connection):
            orders.add(client.order())
        run.until(lambda: shop.orders == orders, "everything is told")
        run.until(lambda: metric(run, delivered) == 1, "a new ring counts anew")
        assert run.end(signal.SIGTERM) == 0


def test_the_relay_yields_and_the_thread_that_has_the_write_lock_does_not(
    rasher: StartProgram, tmp_path: Path
) -> None:
    config = tmp_path / "rasher.toml"
    with listening() as shop:
        write(config, shop=shop)
        run = rasher("--config", str(config), "--workers", "1").ready()
        client = Client(run)
        order = client.order()
        client.connection.close()
        run.until(lambda: shop.orders == {order}, "it is told")
        found = nicenesses(run.child("relay").pid)
        usual = os.getpriority(os.PRIO_PROCESS, run.child("worker").pid)
        assert min(found) == usual
        assert found.count(usual) == 1
        assert set(found) - {usual} == {min(usual + NICENESS, 19)}
        assert run.end(signal.SIGTERM) == 0


def nicenesses(pid: int) -> list[int]:
    """Of its threads."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [os.getpriority(os.PRIO_PROCESS, int(task.name)) for task in tasks]


# ---- the policy ----------------------------------------------------------------------------------


def telling(**changes: Any) -> State:
    """A tree with a relay in which everybody is ready."""
    state = begin(WITH, 0.0, migrated=True)
    kids = {key: replace(kid, phase="ready") for key, kid in state.kids.items()}
    return replace(state, kids=kids, announced=True, **changes)


def hup(now: float, *, relay: bool) -> Any:
    return replace(asked(signal.SIGHUP, now), relay=relay)


def test_there_is_a_relay_while_somebody_is_to_be_told() -> None:
    _, done = after(begin(WITH, 0.0, migrated=True), tick(0.0))
    assert done == [Start(F0), Start(W0), Start(W1), Start(RELAY)]
    _, done = after(begin(WITH, 0.0, migrated=False), tick(0.0))
    assert done == [Start(F0)]  # it needs the database
    none = replace(TOLD.endpoints[0], disabled=True)
    disabled = replace(SETTINGS, webhooks=WebhookSettings(endpoints=(none,)))
    assert RELAY not in begin(disabled, 0.0, migrated=True).kids


def test_a_relay_that_dies_is_started_again_and_not_while_draining() -> None:
    _, done = after(telling(), ended(RELAY, 50.0), tick(50.0))
    assert done == [Start(RELAY)]
    state, _ = after(telling(), asked(signal.SIGTERM, 100.0))
    _, done = after(state, ended(RELAY, 101.0), tick(102.0))
    assert done == []


def test_the_relay_ends_last_when_the_tree_drains() -> None:
    state, done = after(telling(), asked(signal.SIGTERM, 100.0))
    assert done == [Send(F0, signal.SIGTERM)]
    state, done = after(state, ended(F0, 101.0, clean=True))
    assert done == [CloseRing()]
    state, done = after(state, ended(W0, 102.0, clean=True), ended(W1, 103.0, clean=True))
    assert done == [Send(RELAY, signal.SIGTERM)]
    state, done = after(state, tick(104.0))
    assert (state.phase, done) == ("draining", [])
    state, done = after(state, ended(RELAY, 105.0, clean=True))
    assert (state.phase, done) == ("ended", [])


def test_a_stop_asks_the_relay_and_a_deadline_kills_it() -> None:
    state, done = after(telling(), asked(signal.SIGINT, 100.0))
    assert Send(RELAY, signal.SIGTERM) in done
    _, done = after(state, tick(103.0))
    assert Send(RELAY, signal.SIGKILL) in done


def test_hup_replaces_the_relay_behind_its_gate() -> None:
    state, done = after(telling(queue=()), hup(1.0, relay=True))
    for key in (F0, W0, W1):
        assert done[-1] == Start(key, heir=True)
        state, _ = after(state, Ready(now=2.0, left=NOTHING, key=key, heir=True))
        state, done = after(state, ended(key, 3.0, clean=True))
    assert done[-1] == Start(RELAY, heir=True)
    state, done = after(state, Ready(now=4.0, left=NOTHING, key=RELAY, heir=True))
    assert done == [Send(RELAY, signal.SIGTERM)]
    state, done = after(state, ended(RELAY, 5.0, clean=True))
    assert done == [Install(RELAY)]
    assert state.kids[RELAY].phase == "starting"


def test_hup_makes_a_relay_and_lets_it_go_as_the_settings_have_it() -> None:
    state, _ = after(running(), hup(1.0, relay=True))
    assert state.kids[RELAY].phase == "down"
    assert Start(RELAY) in after(state, tick(1.0))[1]
    state, done = after(telling(), hup(1.0, relay=False))
    assert Send(RELAY, signal.SIGTERM) in done
    assert RELAY not in state.queue
    back, _ = after(state, hup(2.0, relay=True))
    assert Start(RELAY) in after(back, ended(RELAY, 9.0, clean=True), tick(9.0))[1]
    gone, done = after(state, ended(RELAY, 9.0, clean=True), tick(9.0))
    assert RELAY not in gone.kids
    assert Start(RELAY) not in done

"""A morning's orders all at once, while people correct the stock by hand."""

from __future__ import annotations

import json
import random
import signal
import threading
from contextlib import ExitStack, closing
from pathlib import Path

from tests.program import EXPIRY, Client, Rasher, Start, verb
from tests.wire import post, status

SKUS = 10
LOTS = 2_000
LOT_POUNDS = 1_000
ORDERS = 300
ORDER_POUNDS = 1_500
ADJUST_EVERY_S = 0.01
ADJUST_POUNDS_MAX = 30


def enter_lots(run: Rasher, file: Path) -> None:
    days = random.Random(1)
    lines = [
        {
            "lot_id": f"L{number:04}",
            "sku": f"SKU-{number % SKUS}",
            "quantity": str(LOT_POUNDS),
            # Few days, so that many lots tie and the lot id decides.
            "expires_at": EXPIRY.replace("-01-01", f"-01-{days.randint(1, 9):02}"),
        }
        for number in range(LOTS)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert verb(run, "lots", "add", "--file", str(file)).returncode == 0


class Adjuster(threading.Thread):
    """Corrects a random lot every 10 ms by up to 30 lb, in thousandths, and keeps the sum."""

    def __init__(self, run: Rasher) -> None:
        super().__init__()
        self.run_ = run
        self.over = threading.Event()
        self.thousandths = 0
        self.refused = 0
        self.done = 0

    def run(self) -> None:
        choose = random.Random(2)
        client = Client(self.run_)
        with closing(client.connection):
            while not self.over.wait(ADJUST_EVERY_S):
                delta = choose.choice((-1, 1)) * choose.randint(1, ADJUST_POUNDS_MAX * 1000)
                path = f"/lots/L{choose.randrange(LOTS):04}/adjustments"
                text = f"{delta / 1000:.3f}"
                code, answer = client.call("POST", path, {"delta": text, "reason": "count"})
                assert code in (201, 409), answer  # 409: the lot is spent by now
                self.thousandths += delta if code == 201 else 0
                self.refused += code == 409
                self.done += 1


def test_totals_are_exact_to_the_thousandth_while_lots_are_adjusted(
    rasher: Start, tmp_path: Path
) -> None:
    run = rasher("--workers", "2").ready()
    enter_lots(run, tmp_path / "lots.ndjson")
    adjuster = Adjuster(run)
    adjuster.start()
    try:
        with ExitStack() as stack:
            clients = [
                stack.enter_context(post(run, number, f"SKU-{number % SKUS}", ORDER_POUNDS))
                for number in range(ORDERS)
            ]
            assert [status(client) for client in clients] == [202] * ORDERS
        run.until(lambda: run.column("SELECT count(*) FROM orders") == [ORDERS], "all decided")
        run.until(lambda: adjuster.done >= 100 or not adjuster.is_alive(), "100 adjustments")
    finally:
        adjuster.over.set()
        adjuster.join()
    assert adjuster.done >= 100
    assert run.end(signal.SIGTERM) == 0
    assert run.column("SELECT DISTINCT status FROM orders") == ["allocated"]
    taken = ORDERS * ORDER_POUNDS * 1000
    left = LOTS * LOT_POUNDS * 1000 + adjuster.thousandths - taken
    assert run.column("SELECT sum(available) FROM lots") == [left]
    # The audit replays every movement of every sku: each order from the lots that expire first.
    audit = verb(run, "audit")
    assert (audit.returncode, audit.stdout.startswith("audit: ok")) == (0, True), audit.stdout

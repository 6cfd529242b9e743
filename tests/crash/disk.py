"""Clients of a program whose disk fails, and what is left when the machine's power fails, too."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
import uuid
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from processors.audit import run_audit
from processors.audit_report import Report
from processors.pipeline import Processor, Retry, load_processor
from processors.recovery import Recovery
from processors.settings import WorkSettings, load_settings
from processors.stop import Stop
from processors.store import Store, migrate
from processors.worker import BaconWorker, Rules
from ringbuf import Participant, Ring, Segment
from ringbuf.segment import segment_paths
from tests.program import JSON, PATIENCE_S

NO_ANSWER, REFUSED = 0, 503
CONNECTIONS = 8


@dataclass
class Ledger:
    """What clients were told, as `rasher audit` reads it."""

    path: Path
    statuses: Counter[int] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, order_id: str | None, status: int) -> None:
        """No id: nobody knows under which it may be there."""
        with self._lock:
            self.statuses[status] += 1
            if order_id is not None:
                if status == REFUSED:
                    self.refused.append(order_id)
                with self.path.open("a", encoding="ascii") as file:
                    file.write(f"{order_id} {status}\n")


def post_orders(port: int, ledger: Ledger, each: int, connections: int = CONNECTIONS) -> None:
    """So many on each connection, one after the other; a connection that ends is not made again."""
    threads = [
        threading.Thread(target=_post_some, args=(port, ledger, each)) for _ in range(connections)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _post_some(port: int, ledger: Ledger, count: int) -> None:
    with closing(new_connection(port)) as connection:
        for number in range(count):
            if order(connection, ledger, own_id=number % 2 == 0).status == NO_ANSWER:
                return


def new_connection(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)


class Answer(NamedTuple):
    status: int
    content: Any = None
    headers: Mapping[str, str] = {}


def order(connection: http.client.HTTPConnection, ledger: Ledger, *, own_id: bool = True) -> Answer:
    """Posts one -> the answer, its status NO_ANSWER where none came."""
    order_id = str(uuid.uuid4()) if own_id else None
    body: dict[str, object] = {"order_id": order_id} if own_id else {}
    body |= {"customer": "Funky Foods", "lines": [{"sku": "BELLY", "quantity": "1.5"}]}
    try:
        connection.request("POST", "/orders", json.dumps(body), JSON)
        response = connection.getresponse()
        content = json.loads(response.read())
    except (OSError, http.client.HTTPException):
        ledger.note(order_id, NO_ANSWER)
        return Answer(NO_ANSWER)
    ledger.note(order_id or content.get("order_id"), response.status)
    return Answer(response.status, content, dict(response.headers))


def without_power(data_dir: Path, folder: Path, *, spilled_by: int) -> Path:
    """A copy of the data dir as if the power had failed before that process, the supervisor, wrote
    down what was left in memory."""
    image = folder / "image"
    shutil.rmtree(image, ignore_errors=True)
    shutil.copytree(data_dir, image, ignore=shutil.ignore_patterns("*-shm", "ring.path", "*.new"))
    for path in segment_paths(image / "journal"):
        with Segment.open(path) as segment:
            writer = segment.header.writer
        if Participant.from_identity("writer", 0, writer).pid == spilled_by:
            path.unlink()
    return image


def recover(image: Path, ring_dir: Path, ledger: Path) -> Report:
    """What an audit says when all that the journal gives back was worked off."""
    words = ["--data-dir", str(image), "--ring-dir", str(ring_dir)]
    settings = load_settings(words, {})[0]
    migrate(settings.database)
    path = ring_dir / "recovery.ring"
    with ExitStack() as stack:
        stack.callback(path.unlink)
        ring = stack.enter_context(Ring.create(path, label=settings.data_dir))
        store = Store.open(settings.database)
        stack.callback(store.close)
        recovery = Recovery(settings, ring, {ring.epoch})
        if not recovery.done:
            recovery.look(store)
        while not recovery.done:
            recovery.step(PATIENCE_S)
        ring.close()
        processor = load_processor(WorkSettings().processor)
        stop = stack.enter_context(Stop())
        reader = stack.enter_context(ring.reader(0))
        BaconWorker(ring, store, processor, Rules(), stop).run(reader)
        return run_audit([ring], store, ledger)


def counts_of(statuses: Counter[int]) -> str:
    return ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items()))


def held_up() -> Processor:
    """A processor whose orders stay in hand: a worker that takes its time, in every stop."""

    def process(_connection: object, _works: object, _now_us: int) -> NoReturn:
        raise Retry(60)

    return process

"""The examples as their users have them: installed, and named by --processor."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.program import Client, Start

EXAMPLES = Path(__file__).resolve().parents[2] / "docs/examples"
PIP = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder that both are installed into."""
    folder = tmp_path_factory.mktemp("site")
    copies = tmp_path_factory.mktemp("sources")
    for name in ("courier", "shipping_quote"):
        copy = copies / name
        copy.mkdir()
        for file in (EXAMPLES / name).iterdir():
            if file.is_file():
                (copy / file.name).write_bytes(file.read_bytes())
        words = ["--no-deps", "--no-build-isolation", "--target", str(folder), str(copy)]
        subprocess.run([*PIP, *words], check=True)
    return str(folder)


class Depot(BaseHTTPRequestHandler):
    """A courier that takes everything; `places`: what was asked for."""

    places: list[str] = []

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.places.append(self.path)
        self.send_response(201)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def depot() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Depot) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.prove
def test_installed_a_processor_works_in_the_program(
    rasher: Start, installed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", installed)
    run = rasher("--processor", "shipping_quote:processor").ready()
    client = Client(run)
    with closing(client.connection):
        client.stock("100")
        assert client.all_allocated([client.order() for _ in range(20)])
    assert run.rows("SELECT count(*), min(cents), max(cents) FROM shipping_quotes") == [
        (20, 590, 590)
    ]
    run.end(signal.SIGTERM)
    print("20 orders, 20 quotes")


@pytest.mark.prove
def test_installed_an_integration_works_in_the_program(
    rasher: Start, installed: str, depot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", installed)
    monkeypatch.setenv("COURIER_URL", depot)
    run = rasher("--processor", "courier:processor").ready()
    client = Client(run)
    with closing(client.connection):
        client.stock("100")
        ids = [client.order() for _ in range(20)]
        assert client.all_allocated(ids)
    run.end(signal.SIGTERM)
    assert set(Depot.places) >= {f"/reservations/{one}" for one in ids}
    print(f"20 orders, {len(Depot.places)} reservations")

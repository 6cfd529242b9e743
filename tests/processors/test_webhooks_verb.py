"""`rasher webhooks`, called as the supervisor calls it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from msgspec.structs import replace

from processors import deliveries
from processors.deliveries import Ended, Told
from processors.events import Event, Place
from processors.settings import Settings, WebhookSettings
from processors.webhooks import Endpoint
from processors.webhooks_verb import main
from tests.processors.kit import House, on_sqlite

pytestmark = on_sqlite
SHOP = Endpoint("shop", "http://user:word@127.0.0.1:1/?token=x", (b"s" * 24,))


@pytest.fixture
def settings(house: House) -> Settings:
    house.store.commit(deliveries.enlist, [SHOP], Place(0, 0))
    key = b"A" * 16
    ended = Ended(Event(1, key, key, 0, "order.dead", 1), "failed", attempts=3, error="no")
    house.store.commit(deliveries.record, [Told("shop", [ended], Place(1, 0))])
    told = WebhookSettings(endpoints=(SHOP,))
    return Settings(str(house.folder), house.url, webhooks=told)


def test_endpoints_are_listed_with_how_they_stand_and_no_secret(
    settings: Settings, house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    new = replace(SHOP, name="new")
    off = replace(SHOP, name="off", disabled=True)
    house.store.commit(deliveries.enlist, [SHOP, off], Place(0, 0))
    house.store.commit(deliveries.record, [Told("shop", [], None, "it answered 410")])
    more = replace(settings, webhooks=WebhookSettings(endpoints=(SHOP, new, off)))
    assert main(more, ["list"]) == 0
    told = capsys.readouterr().out
    assert "shop  http://127.0.0.1:1/…  disabled since 2" in told
    assert "it answered 410  waiting 0, failed 1" in told
    assert "new: it is told of nothing yet" in told
    assert "disabled in the settings" in told
    assert "word" not in told
    assert main(more, ["enable", "shop"]) == 0
    assert main(replace(settings, webhooks=WebhookSettings()), ["list"]) == 0
    assert "shop  http://127.0.0.1:1/…  gone from the settings" in capsys.readouterr().out


def test_what_was_told_is_shown_and_sent_again(
    settings: Settings, house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(settings, ["show", "--state", "failed", "--endpoint", "shop"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["error"] == "no"
    assert main(settings, ["resend", json.loads(line)["delivery_id"]]) == 0
    assert house.rows("SELECT state, attempts FROM deliveries") == [("waiting", 3)]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["resend", "7"], "no delivery 7"),
        (["enable", "none"], "no endpoint none was ever told of anything"),
        (["test", "none"], "the settings have no endpoint none, there are: shop"),
    ],
)
def test_what_is_not_there_is_told(
    settings: Settings, words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(settings, words) == 1
    assert reason in capsys.readouterr().err


def test_wrong_usage_is_two(settings: Settings) -> None:
    for words in ([], ["show", "--state", "done"], ["show", "--limit", "0"], ["resend", "x"]):
        with pytest.raises(SystemExit) as ended:
            main(settings, words)
        assert ended.value.code == 2


@contextmanager
def answering(status: int) -> Iterator[tuple[str, list[Any]]]:
    """An endpoint's url, and what it is told."""
    heard: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/", heard
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "code", "said"), [(204, 0, "delivered: "), (500, 1, "again: answered 500")]
)
def test_a_test_message_is_sent_and_its_answer_told(
    settings: Settings, status: int, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(status) as (url, heard):
        told = WebhookSettings(endpoints=(replace(SHOP, url=url),))
        assert main(replace(settings, webhooks=told), ["test", "shop"]) == code
    assert [one["type"] for one in heard] == ["webhook.test"]
    assert said in capsys.readouterr().out

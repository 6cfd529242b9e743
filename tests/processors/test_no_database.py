"""Commands that look at a database say where there is none, and leave no empty one behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ingest import dead_letter_verb
from processors import lots_verb, webhooks_verb
from processors.settings import Settings, WebhookSettings
from processors.webhooks import Endpoint

SHOP = Endpoint("shop", "http://127.0.0.1:1/", (b"s" * 24,))


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (webhooks_verb.main, "list"),
        (webhooks_verb.main, "show"),
        (webhooks_verb.main, "enable shop"),
        (webhooks_verb.main, "resend 1"),
        (dead_letter_verb.main, "list"),
        (dead_letter_verb.main, "show 018f4e6a-0000-7000-8000-000000000000"),
        (lots_verb.main, "list"),
    ],
)
def test_no_database_is_no_database_afterwards(
    main: Callable[[Settings, list[str]], int],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "rasher.db"
    settings = Settings(str(tmp_path), f"sqlite:///{file}")
    assert main(settings, words.split()) == 1
    assert f"there is no database: {file}" in capsys.readouterr().err
    assert not file.exists()


def test_a_message_is_tried_without_one(tmp_path: Path) -> None:
    file = tmp_path / "rasher.db"
    told = WebhookSettings(endpoints=(SHOP,))
    settings = Settings(str(tmp_path), f"sqlite:///{file}", webhooks=told)
    assert webhooks_verb.main(settings, ["test", "shop"]) == 1
    assert not file.exists()

"""Endpoints as the settings have them, ids and signatures."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from processors.settings import Settings, SettingsError, load_settings, reload_webhooks
from processors.webhooks import ENDPOINTS_MAX, event_id, shown_id, shown_url, sign

SECRET = "whsec_" + "c2Vj" * 10
TABLE = f"""[[webhooks]]
name = "shop"
url = "https://user:word@shop.example/hook?token=x"
secret = "{SECRET}"
"""


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def given(text: str, *argv: str) -> Settings:
    Path("rasher.toml").write_text(text)
    return load_settings(argv, {})[0]


def refusal(text: str, *argv: str) -> str:
    with pytest.raises(SettingsError) as caught:
        given(text, *argv)
    assert "c2Vj" not in str(caught.value)
    return str(caught.value)


def test_tables_of_the_file_and_the_flags_make_endpoints() -> None:
    flags = ("--webhook-url", "http://127.0.0.1:1/", "--webhook-secret", SECRET)
    more = TABLE.replace("shop", "bank") + 'events = ["order.*"]\ndisabled = true\n'
    own, shop, bank = given(TABLE + more, *flags).webhooks.endpoints
    assert (own.name, own.url, own.disabled) == ("default", "http://127.0.0.1:1/", False)
    assert (shop.name, shop.secrets) == ("shop", (b"sec" * 10,))
    assert shop.wants("stock.low")
    assert bank.disabled
    assert bank.wants("order.dead")
    assert not bank.wants("stock.low")


def test_a_secret_may_lie_in_a_file_and_be_one_of_two() -> None:
    Path("new").write_text("whsec_" + "bmV3" * 8 + "\n")
    text = TABLE.replace(f'"{SECRET}"', f'["@new", "{SECRET}"]')
    (shop,) = given(text).webhooks.endpoints
    assert shop.secrets == (b"new" * 8, b"sec" * 10)


def test_no_secret_is_shown() -> None:
    settings = given(TABLE)
    assert "sec" not in repr(settings.webhooks).replace("whsec", "")
    assert shown_url(settings.webhooks.endpoints[0].url) == "https://shop.example/…"
    assert "word" not in repr(settings.webhooks.endpoints)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("webhooks = 1", "webhooks in rasher.toml must be tables, each headed [[webhooks]]"),
        (TABLE + TABLE, "two webhooks in rasher.toml are called shop"),
        (TABLE.replace('"shop"', '"Shop"'), "name must be 1 to 32 of a-z 0-9 -"),
        (TABLE.replace("https:", "ftp:"), "(shop): url must be http:// or https://"),
        (TABLE.replace("shop.example", ""), "(shop): url must be http:// or https://"),
        (TABLE.replace("/hook", "/ho ok"), "(shop): url must be http:// or https://"),
        (TABLE.replace("whsec_", ""), "secret must be whsec_ and base64 of 24 to 64 bytes"),
        (TABLE.replace(SECRET, "whsec_!!"), "secret must be whsec_ and base64"),
        (TABLE.replace(SECRET, "whsec_" + "bmV3"), "or @FILE with that; it has 3 bytes"),
        (TABLE.replace(SECRET, "@none"), "secret @none: No such file or directory"),
        (TABLE.replace(f'"{SECRET}"', "[]"), "secret has 0 texts, must be 1 or 2"),
        (TABLE + "events = []", "events is empty: leave it out for all of them"),
        (TABLE + 'events = ["order.gone"]', "events 'order.gone': there are order.allocated"),
        (TABLE + "disabled = 1", "disabled must be true or false"),
        (TABLE + "evnts = []", "no such key: evnts, there are name, url, secret, events, disabled"),
        ("".join(TABLE.replace('"shop"', f'"s{at}"') for at in range(33)),
         f"33 webhooks in rasher.toml: at most {ENDPOINTS_MAX}"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_the_key(text: str, reason: str) -> None:
    assert reason in refusal(text)


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--webhook-url", "http://h/"], "--webhook-url needs --webhook-secret"),
        (["--webhook-secret", SECRET], "--webhook-secret needs --webhook-url"),
        (["--webhook-url", "x", "--webhook-secret", SECRET], "url must be http:// or https://"),
        (["--webhook-url", "http://h/", "--webhook-secret", "c2Vj"], "secret must be whsec_"),
        (["--webhook-url", "http://h/", "--webhook-secret="], "--webhook-secret: must be whsec_"),
    ],
)
def test_the_flags_belong_together(argv: list[str], reason: str) -> None:
    assert reason in refusal("", *argv)


def test_the_file_is_read_again_and_a_broken_one_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = given(TABLE)
    Path("rasher.toml").write_text(TABLE.replace("shop.example", "other.example"))
    changed = reload_webhooks(settings)
    assert changed.webhooks.endpoints[0].url.startswith("https://user:word@other.example")
    Path("rasher.toml").write_text(TABLE.replace("whsec_", ""))
    assert reload_webhooks(changed) == changed
    assert "webhooks stay as they are" in caplog.text
    Path("rasher.toml").unlink()
    assert reload_webhooks(changed).webhooks.endpoints == ()


def test_an_event_has_one_id_and_no_other_event_has_it() -> None:
    key = bytes(range(16))
    seen = {event_id(key, number, kind) for number in range(3) for kind in ("", "stock.low")}
    assert len(seen) == 6
    assert event_id(key, 1) == event_id(key, 1)
    shown = shown_id(event_id(key, 1))
    assert shown[14] == "8"
    assert shown[19] in "89ab"


def test_a_signature_is_that_of_the_standard() -> None:
    """The example of the specification's reference libraries."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = sign([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

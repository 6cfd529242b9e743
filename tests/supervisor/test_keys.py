"""Keys and certificates while the program runs: HUP, broken files, the verbs that call it."""

from __future__ import annotations

import http.client
import json
import signal
from pathlib import Path

import pytest

from ingest.caller import service_url
from ingest.listen import listen
from processors import keys_verb
from processors.datadir import CannotStart
from processors.settings import HttpSettings, Settings
from supervisor import main
from tests.ingest.certificate import make_certificate, trusting
from tests.ingest.keyring import bearer, make_keys
from tests.program import EXPIRY, JSON, PATIENCE_S, Rasher, Start

ORDER = {"customer": "c", "lines": [{"sku": "A", "quantity": "1"}]}
LOT = {"lot_id": "L", "sku": "A", "quantity": "5", "expires_at": EXPIRY}
OVER = "nobody is left to be replaced"


class Caller:
    """Calls over TLS, each on a connection of its own: none keeps a front that is replaced."""

    def __init__(self, run: Rasher, certificate: Path) -> None:
        self.run = run
        self.context = trusting(certificate)

    def __call__(self, token: str, path: str = "/orders", body: object = ORDER) -> int:
        connection = http.client.HTTPSConnection(
            "localhost", self.run.port, timeout=PATIENCE_S, context=self.context
        )
        try:
            connection.request("POST", path, json.dumps(body), {**JSON, **bearer(token)})
            return connection.getresponse().status
        finally:
            connection.close()


def test_keys_and_certificates_are_read_again_at_hup_and_broken_ones_change_nothing(
    rasher: Start,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    keys = tmp_path / "keys.json"
    tokens = make_keys(keys, shop="submit", boss="admin")
    certificate, private = make_certificate(tmp_path)
    files = ("--ssl-certfile", str(certificate), "--ssl-keyfile", str(private))
    run = rasher("--keys", str(keys), *files, "--workers", "1").ready()
    call = Caller(run, certificate)
    settings = Settings("/d", "sqlite:////d", http=HttpSettings(keys=str(keys)))

    # Nothing counts before HUP, everything after it.
    assert call(tokens["boss"], "/lots", LOT) == 201
    assert call(tokens["shop"], "/lots", LOT) == 403
    assert call(tokens["shop"]) == 202
    assert keys_verb.main(settings, ["revoke", "shop"]) == 0
    assert keys_verb.main(settings, ["add", "web", "--scope", "submit"]) == 0
    web = capsys.readouterr().out.strip()
    assert (call(tokens["shop"]), call(web)) == (202, 401)
    run.signal(signal.SIGHUP)
    run.log.match(OVER)
    assert (call(tokens["shop"]), call(web)) == (401, 202)

    # Broken files are told and replace nobody; a front that is started anew has the keys of before.
    good = certificate.read_text()
    keys.write_text("{")
    certificate.write_text("broken")
    run.signal(signal.SIGHUP)
    run.log.match("error .* the keys stay as they are: --keys .*truncated")
    run.log.match(r"error +front 0 +--ssl-certfile .*cert.pem --ssl-keyfile")
    run.log.match("error .* the replacement of front 0: .* ended with exit code 2")
    assert (call(tokens["shop"]), call(web)) == (401, 202)
    certificate.write_text(good)
    front = run.child("front")
    front.kill()
    run.replaced(front, "front")
    assert (call(tokens["shop"]), call(web)) == (401, 202)

    assert run.end(signal.SIGTERM) == 0
    assert set(run.column("SELECT owner FROM orders")) == {"shop", "web"}


def test_any_address_is_listened_on_with_keys_and_only_loopback_without() -> None:
    with listen(HttpSettings(host="0.0.0.0", port=0, keys="/k"), bound_only=True) as listener:
        assert listener.getsockname()[0] == "0.0.0.0"
    with pytest.raises(CannotStart, match="no loopback address, which needs --keys"):
        listen(HttpSettings(host="0.0.0.0", port=0))


@pytest.mark.parametrize(
    ("http", "expected"),
    [
        (HttpSettings(), "http://127.0.0.1:8000"),
        (HttpSettings(host="::1", port=9), "http://[::1]:9"),
        (HttpSettings(host="0.0.0.0", keys="/k"), "http://127.0.0.1:8000"),
        (HttpSettings(host="::", ssl_certfile="/c"), "https://[::1]:8000"),
    ],
)
def test_verbs_call_where_the_service_listens(http: HttpSettings, expected: str) -> None:
    assert service_url(Settings("/d", "sqlite:////d", http=http)) == expected


def test_another_address_without_keys_is_refused_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--host", "0.0.0.0", "--port", "0"]) == 2
    assert capsys.readouterr().err.startswith("rasher: --host 0.0.0.0: needs --keys FILE")


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--keys", "/none"], "--keys /none: No such file or directory"),
        (["--ssl-certfile", "/none"], "--ssl-certfile /none: No such file or directory"),
    ],
)
def test_what_cannot_be_used_is_told_at_the_start_with_2(
    rasher: Start, argv: list[str], reason: str
) -> None:
    run = rasher(*argv)
    assert run.end() == 2
    assert run.log.match(f"^rasher: {reason}")

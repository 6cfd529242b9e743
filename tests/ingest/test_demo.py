"""`rasher demo`, small, and the parts of it that only look."""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib.util
import tomllib
from pathlib import Path

import aiohttp
import msgspec
import pytest

from ingest import demo_partners
from ingest.demo import main
from ingest.demo_partners import Partner, all_listening, partners
from ingest.demo_view import Lines, Sample, gauges
from processors.settings import BARE, Settings

pytestmark = pytest.mark.anyio

SMALL = ["--seconds", "1", "--customers", "150", "--lots", "40"]
SAMPLE = Sample(
    at_s=3.2, accepted_per_s=512.4, done_per_s=498.0, depth=100, capacity=100, waiting=387,
    p50_ms=740.0, p99_ms=980.0, stock=3211, stock_of=6000, sold_out=7, skus=20, wanted=900,
    delivered={"healthy": 900, "slow": 31},
)  # fmt: skip


@pytest.fixture
def settings(ring_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The demo's folder lies in the test's."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    ring = msgspec.structs.replace(BARE.ring, ring_dir=str(ring_dir))
    return msgspec.structs.replace(BARE, ring=ring)


def test_it_ends_with_the_audits_verdict_and_leaves_nothing(
    settings: Settings, ring_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(settings, SMALL) == 0
    said = capsys.readouterr().out
    assert "audit: ok" in said
    assert "150 customers want in" in said
    assert "is killed" in said
    assert [*tmp_path.iterdir(), *ring_dir.iterdir()] == []


def test_a_service_that_does_not_start_is_told_with_its_reason(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ring = msgspec.structs.replace(settings.ring, ring_dir=str(tmp_path / "nowhere"))
    assert main(msgspec.structs.replace(settings, ring=ring), SMALL) == 3
    assert "nowhere" in capsys.readouterr().err


def test_a_plot_without_its_library_is_refused_before_anything_starts(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(settings, ["--plot", "demo.png"]) == 2
    assert "matplotlib" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--seconds", "121"], ["--customers", "0"], ["--lots", "1e9"]])
def test_what_is_out_of_range_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        main(BARE, words)
    assert refusal.value.code == 2


def test_partners_are_invited_only_where_something_would_tell_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(demo_partners, "RELAYED", False)
    assert partners() == []
    monkeypatch.setattr(demo_partners, "RELAYED", True)
    assert [one.name for one in partners()] == ["healthy", "slow", "failing"]


def invited(partner: Partner) -> dict[str, str]:
    """Its entry in the settings' file."""
    (entry,) = tomllib.loads(partner.as_toml())["webhooks"]
    return dict(entry)


def signed(partner: Partner, event: str, body: bytes) -> dict[str, str]:
    """Headers as of Standard Webhooks; the signature in front is another secret's."""
    key = base64.b64decode(invited(partner)["secret"].removeprefix("whsec_"))
    digest = hmac.digest(key, f"{event}.17.".encode() + body, hashlib.sha256)
    signature = f"v1,b2xk v1,{base64.b64encode(digest).decode()}"
    return {"webhook-id": event, "webhook-timestamp": "17", "webhook-signature": signature}


async def test_partners_count_what_they_took_and_believe_good_signatures_alone() -> None:
    healthy, failing = Partner("healthy"), Partner("failing", status=500)
    async with all_listening([healthy, failing]), aiohttp.ClientSession() as session:

        async def tell(partner: Partner, event: str, body: bytes, **headers: str) -> int:
            own = {**signed(partner, event, b"{}"), **headers}
            async with session.post(invited(partner)["url"], data=body, headers=own) as answer:
                return answer.status

        assert [await tell(healthy, event, b"{}") for event in "aba"] == [204] * 3
        assert await tell(healthy, "c", b"{ }") == 401
        assert await tell(failing, "a", b"{}") == 500
    assert (healthy.delivered, healthy.forged, failing.delivered) == (2, 1, 0)


def test_lines_have_a_heading_once_and_a_column_for_each_partner(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = Lines(list(SAMPLE.delivered))
    lines.show(SAMPLE)
    lines.show(SAMPLE)
    heading, first, second = capsys.readouterr().out.splitlines()
    assert len(heading) == len(first) <= 100
    assert first == second
    assert first.split()[-5:] == ["980", "3,211", "7", "900", "31"]


def test_gauges_have_a_row_for_each_partner() -> None:
    table = gauges(SAMPLE)
    assert getattr(table, "row_count", 0) == 4 + len(SAMPLE.delivered)

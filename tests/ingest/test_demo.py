"""`rasher demo`, small, and the parts of it that only look."""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib.util
from pathlib import Path

import msgspec
import pytest

from ingest import demo_partners
from ingest.demo import main
from ingest.demo_partners import Partner, partners
from ingest.demo_view import Lines, Sample, gauges
from processors.settings import BARE, Settings

SMALL = ["--seconds", "2", "--customers", "150", "--lots", "40"]
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


def test_a_partner_believes_one_good_signature_among_others() -> None:
    partner = Partner("healthy")
    key = base64.b64decode(partner.as_toml().split('"whsec_')[1].split('"')[0])
    good = base64.b64encode(hmac.digest(key, b"msg_1.17.{}", hashlib.sha256)).decode()
    assert partner.signed("msg_1", "17", b"{}", f"v1,b2xk v1,{good}")
    assert not partner.signed("msg_1", "17", b"{ }", f"v1,{good}")
    assert not partner.signed("msg_1", "17", b"{}", "")


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

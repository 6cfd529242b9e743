from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from processors.flags import FLAGS, NUMBERS, Flag
from processors.settings import (
    JournalSettings,
    Settings,
    SettingsError,
    cores,
    default_of,
    load_settings,
)
from processors.usage import usage


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def settings(*argv: str, **environ: str) -> Settings:
    return load_settings(argv, environ)[0]


def refusal(*argv: str, **environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(argv, environ)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def by_flag(flag: Flag, text: str) -> object:
    """What one flag sets its field to."""
    value: object = settings(f"{flag.option}={text}", *WITH.get(flag.name, []))
    for part in flag.place.split("."):
        value = getattr(value, part)
    return value


SIGNED = "whsec_" + "c2Vj" * 8
# What a flag can't be given without.
WITH = {
    "ssl-keyfile": ["--ssl-certfile=/c"],
    "webhook-url": [f"--webhook-secret={SIGNED}"],
    "webhook-secret": ["--webhook-url=http://h/"],
}
SAMPLES = {
    "webhook-url": ("https://h:8/p?q=1", "https://h:8/p?q=1"),
    "webhook-secret": (SIGNED, SIGNED),
    "host": ("127.0.0.2", "127.0.0.2"),
    "lane": ("off", "off"),
    "keys": ("/k", "/k"),
    "ssl-certfile": ("/c", "/c"),
    "ssl-keyfile": ("/k", "/k"),
    "proxy-headers": ("off", "off"),
    "forwarded-allow-ips": ("10.0.0.0/8, ::1", "10.0.0.0/8, ::1"),
    "ring-dir": ("/run", "/run"),
    "low-stock": ("12.5", "12.5"),
    "processor": ("my.line:make", "my.line:make"),
    "data-dir": ("/tmp/d", "/tmp/d"),
    "database": ("sqlite:////tmp/x.db", "sqlite:////tmp/x.db"),
    "durability": ("memory", "memory"),
    "damaged-journal": ("skip", "skip"),
    "journal-bytes": (str(2**31), 2**31),
    "log-level": ("error", "error"),
    "log-format": ("json", "json"),
}


def test_the_defaults_are_those_of_the_contract(tmp_path: Path) -> None:
    found = settings()
    assert (found.http.host, found.http.port, found.http.fronts) == ("127.0.0.1", 8000, 1)
    assert (found.http.max_connections, found.http.max_body_bytes) == (4096, 65536)
    assert (found.ring.ring_dir, found.ring.capacity) == ("/dev/shm", 100)
    assert (found.ring.slot_bytes, found.ring.full_timeout_s) == (16384, 10)
    assert (found.work.workers, found.work.batch) == (max(1, cores() - 1), 64)
    assert (found.work.attempts, found.work.processor) == (3, "processors.pipeline:fefo")
    assert (found.durability, found.graceful_timeout_s) == ("disk", 30)
    assert (found.log.level, found.log.format) == ("info", "text")
    assert found.data_dir == str(tmp_path / "var")
    assert found.database == f"sqlite:///{tmp_path}/var/rasher.db"


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_every_flag_fills_its_own_field(flag: Flag) -> None:
    text, value = SAMPLES.get(flag.name, (f"{flag.high:.0f}", flag.high))
    assert by_flag(flag, text) == value
    if flag.name != "durability":
        assert by_flag(flag, text) != default_of(flag)


@pytest.mark.parametrize(
    "flag", [flag for flag in FLAGS if flag.kind in NUMBERS], ids=lambda flag: flag.name
)
def test_a_number_out_of_range_is_told_with_value_range_and_flag(flag: Flag) -> None:
    for value in (flag.low - 64, flag.high + 64):
        text = refusal(f"{flag.option}={value:.0f}")
        assert f"{flag.option} {value:.0f}: out of range" in text
        assert f"{flag.low:,} to {flag.high:,}" in text
    for value in (flag.low, flag.high):
        assert by_flag(flag, f"{value:.0f}") == value


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_a_default_is_in_its_own_range(flag: Flag) -> None:
    if flag.name not in ("data-dir", "database", "ring-dir") and default_of(flag) != "":
        assert by_flag(flag, str(default_of(flag))) == default_of(flag)


def test_flag_over_variable_over_file_over_default() -> None:
    assert settings().ring.capacity == 100
    Path("rasher.toml").write_text("capacity = 5\n")
    assert settings().ring.capacity == 5
    assert settings(RASHER_CAPACITY="6").ring.capacity == 6
    assert settings("--capacity", "7", RASHER_CAPACITY="6").ring.capacity == 7
    assert settings("--capacity", "7", "--capacity=8").ring.capacity == 8


def test_the_file_may_have_another_name_and_must_exist_then() -> None:
    Path("other.toml").write_text("log-format = 'json'\nfull-timeout = 0.5\n")
    assert settings("--config", "other.toml").log.format == "json"
    assert settings(RASHER_CONFIG="other.toml").ring.full_timeout_s == 0.5
    assert refusal("--config", "none.toml") == "--config none.toml: there is no such file"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("capaciti = 5", "rasher.toml: no such key: capaciti, did you mean capacity?"),
        ("data_dir = 'x'", "rasher.toml: no such key: data_dir, did you mean data-dir?"),
        ("capacity = true", "capacity in rasher.toml must be 1 to 1,000,000 slots (--capacity)"),
        ("capacity = [1]", "capacity in rasher.toml must be 1 to 1,000,000 slots (--capacity)"),
        ("[ring]\ncapacity = 1", "rasher.toml: no such key: ring"),
        ("low-stock = 0", "low-stock = 0 in rasher.toml (--low-stock): must be more than 0"),
        (f"low-stock = 0x{'f' * 5000}", "low-stock = … in rasher.toml (--low-stock): must be at"),
        (f"port = 0x{'f' * 5000}", "port = … in rasher.toml (--port): out of range"),
        ("capacity = 0", "capacity = 0 in rasher.toml (--capacity): out of range, must be "),
        ("capacity = 1.5", "capacity = 1.5 in rasher.toml (--capacity): must be a whole number"),
        ("full-timeout = nan", "full-timeout = nan in rasher.toml (--full-timeout): must be a num"),
        ("host = 5", "host = 5 in rasher.toml (--host): must be an IP"),
        ("capacity =", "rasher.toml (--config): "),
    ],
)
def test_a_bad_file_is_refused_with_its_reason(text: str, reason: str) -> None:
    Path("rasher.toml").write_text(text)
    assert refusal().startswith(reason)


@pytest.mark.parametrize("text", ["'12.5'", "12.5", "'12.500'"])
def test_low_stock_is_a_text_or_a_number(text: str) -> None:
    Path("rasher.toml").write_text(f"low-stock = {text}\n[low-stock-of]\nHAM = 3\n")
    assert settings().stock.thresholds == {"": 12500, "HAM": 3000}


def test_an_unknown_variable_is_refused_with_a_guess() -> None:
    assert refusal(RASHER_CAPACTY="5").startswith(
        "RASHER_CAPACTY: no such variable, did you mean RASHER_CAPACITY?"
    )
    assert settings(RASHER_SANITIZE="address", RASHERS="x").ring.capacity == 100


def test_what_is_no_setting_is_left_for_the_verb() -> None:
    argv = ["--data-dir", "/d", "audit", "--ledger", "f", "--port=0", "-v", "--", "x"]
    found, rest = load_settings(argv, {})
    assert rest == ["audit", "--ledger", "f", "-v", "--", "x"]
    assert (found.data_dir, found.http.port) == ("/d", 0)


@pytest.mark.parametrize(
    ("text", "number"),
    [("5", 5), ("0.25", 0.25), ("007", 7)],
)
def test_seconds_may_have_a_fraction(text: str, number: float) -> None:
    assert settings("--full-timeout", text).ring.full_timeout_s == number


@pytest.mark.parametrize(
    "text", ["", " 5", "5 ", "1_0", "1e3", "0x5", "\u0665", "nan", "inf", "1.", "+5"]
)
def test_a_number_is_ascii_digits_and_nothing_else(text: str) -> None:
    assert "must be a number, 0 to 3,600 seconds" in refusal(f"--full-timeout={text}")
    assert "must be a whole number, 1 to 1,000,000 slots" in refusal(f"--capacity={text}")


def test_a_whole_number_has_no_fraction() -> None:
    assert refusal("--capacity", "1.0").startswith("--capacity 1.0: must be a whole number")


@pytest.mark.parametrize("argv", [["--port"], ["--port", "--host", "::1"]])
def test_a_flag_without_value_is_told_with_its_range(argv: list[str]) -> None:
    assert refusal(*argv) == "--port needs a value: 0 to 65,535 (--port)"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_hosts_are_taken(host: str) -> None:
    assert settings("--host", host).http.host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5"])
def test_any_other_address_needs_keys_and_the_refusal_names_both_flags(host: str) -> None:
    assert refusal("--host", host).startswith(f"--host {host}: needs --keys FILE")
    assert refusal(RASHER_HOST=host).startswith(f"--host {host}: needs --keys FILE")
    assert settings("--host", host, "--keys", "k").http.host == host


@pytest.mark.parametrize("host", ["example.com", "", "127.1", "0.0.0.0/0"])
def test_what_is_no_address_is_refused_naming_the_flag(host: str) -> None:
    text = refusal(f"--host={host}", "--keys=k")
    assert text == f"--host {host}: must be an IP address or localhost"


def test_a_file_is_made_absolute_and_its_links_are_kept(tmp_path: Path) -> None:
    Path("real").touch()
    Path("link").symlink_to("real")
    found = settings("--keys", "link", "--ssl-certfile", "link", "--ssl-keyfile", "link").http
    assert {found.keys, found.ssl_certfile, found.ssl_keyfile} == {str(tmp_path / "link")}


def test_a_private_key_without_its_certificate_is_refused() -> None:
    assert refusal("--ssl-keyfile", "/k") == "--ssl-keyfile /k: needs --ssl-certfile"


@pytest.mark.parametrize("text", ["*", "127.0.0.1", "10.0.0.0/8,::1", " 10.1.2.3 , fd00::/8"])
def test_proxies_are_addresses_and_networks(text: str) -> None:
    assert settings("--forwarded-allow-ips", text).http.forwarded_allow_ips == text


@pytest.mark.parametrize("text", ["", "proxy", "10.0.0.1/8", "127.0.0.1,", "*,::1", "10.0.0.0/33"])
def test_other_proxies_are_refused(text: str) -> None:
    assert "must be IP addresses, networks, or *" in refusal(f"--forwarded-allow-ips={text}")


def test_the_key_that_verbs_show_is_no_setting() -> None:
    assert settings(RASHER_TOKEN="rsk_") == settings()


def test_slot_bytes_must_be_a_multiple_of_64() -> None:
    text = refusal("--slot-bytes", "1000")
    assert text.startswith("--slot-bytes 1000: must be a multiple of 64")
    assert text.endswith("the next one is 1024")


def test_there_are_two_durabilities() -> None:
    assert settings().durability == "disk"
    assert refusal("--durability", "tape") == "--durability tape: must be disk or memory"


def test_a_segment_holds_whole_pages_and_several_of_the_largest_orders() -> None:
    assert refusal("--segment-bytes", "70000").endswith("the next one is 73728")
    text = refusal("--segment-bytes", "65536", "--slot-bytes", "32768")
    assert text == "--segment-bytes 65536: must be at least four times --slot-bytes 32768"


def test_the_journal_may_hold_the_segments_of_every_front_and_of_those_that_replace_them() -> None:
    text = refusal("--journal-bytes", str(2**27), "--fronts", "10")
    assert text.startswith(f"--journal-bytes {2**27}: must be at least {24 * 2**24}")
    assert settings("--journal-bytes", str(2**27), "--segment-bytes", "65536").journal == (
        JournalSettings(segment_bytes=65536, total_bytes=2**27)
    )


def test_the_database_follows_the_data_dir() -> None:
    assert settings("--data-dir", "/d").database == "sqlite:////d/rasher.db"


def test_a_relative_database_is_made_absolute(tmp_path: Path) -> None:
    assert settings("--database", "sqlite:///a.db?x=1").database == f"sqlite:///{tmp_path}/a.db?x=1"


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///?x=1"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    assert "--database" in refusal("--database", url)


@pytest.mark.parametrize(
    "url",
    ["postgresql://u:p@h:5432/d", "postgresql+psycopg:///d?host=/run", "postgresql://[::1]/d"],
)
def test_postgresql_is_a_database(url: str) -> None:
    assert settings("--database", url).database == url


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:secret@h/d",
        "postgresql+psycopg2://u:secret@h/d",
        "postgresql://u:secret@h",
        "postgresql://u:secret@h/",
        "postgresql://u:sec/ret@h/d",
        "postgresql://u:secret@h:port/d",
        "postgresql://u:secret@[h/d",
    ],
)
def test_another_database_is_refused_without_its_password(url: str) -> None:
    text = refusal("--database", url)
    assert text.startswith(f"--database {url.partition(':')[0]}: must be")
    assert "secret" not in text
    assert "sec/" not in text


def test_a_data_dir_reached_by_a_link_is_the_same_data_dir(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert settings("--data-dir", "link") == settings("--data-dir", "real")


@pytest.mark.parametrize(
    "text",
    ["", "module", "module:", ":factory", "a:b:c", "a b:c", "a-b:c", "a..b:c", "a:b.c", "1a:b"],
)
def test_a_processor_is_package_module_factory(text: str) -> None:
    assert f"--processor {text}: must be package.module:factory" in refusal(f"--processor={text}")


def test_the_settings_survive_json() -> None:
    found = settings("--full-timeout", "0.5", "--workers", "3")
    assert msgspec.json.decode(msgspec.json.encode(found), type=Settings) == found


def test_help_tells_every_flag_with_variable_range_and_default() -> None:
    text = usage({"audit": "proves"})
    for flag in FLAGS:
        entry = text[text.index(f"  {flag.option} ") :].split("\n")[:2]
        assert flag.help in entry[0]
        assert flag.range_text in entry[1]
        assert entry[1].endswith(f"[{flag.variable}]")
    assert max(map(len, text.splitlines())) <= 100
    assert re.search(r"^  audit +proves$", text, re.MULTILINE)

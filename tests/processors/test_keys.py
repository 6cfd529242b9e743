"""The file of keys, and the verb that changes it."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from processors import keys, keys_verb
from processors.keys import (
    FILE_BYTES_MAX,
    KEYS_MAX,
    Key,
    KeysError,
    change_keys,
    load_keys,
    new_key,
    read_keys,
    reload_keys,
)
from processors.settings import HttpSettings, Settings, SettingsError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def settings(path: Path | str) -> Settings:
    return Settings(data_dir="/d", database="sqlite:////d", http=HttpSettings(keys=str(path)))


def adding(*names: str) -> list[Key]:
    return [new_key(name, ["submit"])[0] for name in names]


def verb(path: Path, *args: str) -> int:
    return keys_verb.main(settings(path), args)


def names(path: Path) -> list[str]:
    return [key.name for key in read_keys(path)]


# ---- the file ------------------------------------------------------------------------------------


def test_a_token_has_256_random_bits_and_only_its_hash_is_kept(path: Path) -> None:
    key, token = new_key("shop", ["read", "submit", "read"])
    assert token.startswith(f"rsk_{key.id}_")
    assert len(token) == len("rsk_01234567_") + 43
    assert new_key("shop", ["submit"])[1] != token
    assert (key.sha256, key.scopes) == (sha256(token.encode()).hexdigest(), ["read", "submit"])
    change_keys(path, lambda _: [key])
    assert token[13:] not in path.read_text()
    assert read_keys(path) == [key]


@pytest.mark.parametrize("mask", [0o000, 0o077, 0o777])
def test_the_file_is_its_owners_alone(path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        change_keys(path, lambda _: adding("shop"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("step", ["fchmod", "fsync", "rename"])
def test_a_change_that_ends_halfway_leaves_the_old_file_whole(
    path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_keys(path, lambda _: adding("shop"))

    def ends(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if step == "rename":
            patch.setattr(Path, "replace", ends)
        else:
            patch.setattr(os, step, ends)
        with pytest.raises(KeysError, match="No space left"):
            change_keys(path, lambda old: old + adding("web"))
    assert names(path) == ["shop"]
    change_keys(path, lambda old: old + adding("web"))
    assert names(path) == ["shop", "web"]
    assert [one.name for one in path.parent.iterdir()] == ["keys.json"]


def test_keys_that_are_added_at_the_same_time_are_all_there(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        each = [
            pool.submit(change_keys, path, lambda old, n=n: old + adding(f"k{n}"))  # type: ignore[misc]
            for n in range(16)
        ]
        for one in each:
            one.result()
    assert sorted(names(path)) == sorted(f"k{number}" for number in range(16))


def test_a_link_to_the_file_stays_a_link(path: Path, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere" / "real.json"
    real.parent.mkdir()
    path.symlink_to(real)
    change_keys(path, lambda _: adding("shop"))
    assert path.is_symlink()
    assert names(real) == ["shop"]


def test_root_leaves_the_file_to_the_account_that_reads_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_keys(path, lambda _: adding("shop"))
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    monkeypatch.setattr(os, "fchown", lambda _, *ids: given.append(ids))
    change_keys(path, lambda old: old)
    assert given == [(path.stat().st_uid, path.stat().st_gid)]


GOOD = {"id": "0" * 8, "name": "a", "scopes": ["submit"], "created": "x", "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Input data was truncated"),
        (b"[]", "Expected `object`, got `array`"),
        (b"\xff", "malformed"),
        (b'{"keys":[{}]}', "missing required field `id`"),
        ([GOOD | {"extra": 1}], "unknown field `extra`"),
        ([GOOD | {"id": "0" * 8 + "\n"}], r"\$.keys\[0\].id"),
        ([GOOD | {"id": "X" * 8}], r"\$.keys\[0\].id"),
        ([GOOD | {"name": "a b"}], r"\$.keys\[0\].name"),
        ([GOOD | {"name": "a" * 65}], r"\$.keys\[0\].name"),
        ([GOOD | {"scopes": []}], r"\$.keys\[0\].scopes"),
        ([GOOD | {"scopes": ["root"]}], "'root'"),
        ([GOOD | {"sha256": "0" * 63}], r"\$.keys\[0\].sha256"),
        ([GOOD, GOOD], "two keys have the id 00000000"),
        ([GOOD | {"id": f"{n:08x}"} for n in range(KEYS_MAX + 1)], f"length <= {KEYS_MAX}"),
        (b" " * (FILE_BYTES_MAX + 1), f"longer than {FILE_BYTES_MAX} bytes"),
    ],
)
def test_a_file_that_is_not_right_is_refused_whole(
    path: Path, content: bytes | list[object], reason: str
) -> None:
    text = content if isinstance(content, bytes) else msgspec.json.encode({"keys": content})
    path.write_bytes(text)
    with pytest.raises(KeysError, match=reason) as caught:
        read_keys(path)
    assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(KeysError):  # and it is not written over
        change_keys(path, lambda _: [])
    assert path.read_bytes() == text


def test_no_more_keys_are_written_than_are_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "KEYS_MAX", 1)
    with pytest.raises(KeysError, match="2 keys, at most 1 fit"):
        change_keys(path, lambda _: adding("a", "b"))
    assert not path.exists()


# ---- at the start and at HUP ---------------------------------------------------------------------


def test_without_the_flag_there_are_no_keys(path: Path) -> None:
    assert load_keys(settings("")) is None


def test_a_start_without_the_file_is_refused_and_says_what_makes_it(path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--keys .*No such file.*rasher keys add"):
        load_keys(settings(path))


def test_a_file_without_keys_lets_nobody_in_and_says_so(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change_keys(path, lambda _: [])
    assert load_keys(settings(path)) == []
    assert "nobody is let in" in caplog.text


def test_at_hup_a_broken_file_changes_nothing_and_is_said(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change_keys(path, lambda _: adding("shop"))
    before = load_keys(settings(path))
    for break_it in (lambda: path.write_text("{"), path.unlink):
        break_it()
        with caplog.at_level(logging.ERROR):
            assert reload_keys(settings(path), before) is before
    assert caplog.text.count("the keys stay as they are: --keys") == 2
    change_keys(path, lambda _: [])
    assert reload_keys(settings(path), before) == []


# ---- the verb ------------------------------------------------------------------------------------


def test_add_prints_the_token_alone_and_its_hash_is_what_sha256sum_says(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verb(path, "add", "shop", "--scope", "submit", "--scope", "read") == 0
    told = capsys.readouterr()
    (key,) = read_keys(path)
    given = told.out.strip().encode()
    said = subprocess.run(["sha256sum"], input=given, capture_output=True, check=True)
    assert said.stdout.split()[0].decode() == key.sha256
    assert (key.name, key.scopes, key.created[-1]) == ("shop", ["read", "submit"], "Z")
    assert "shown this once" in told.err
    assert told.out.strip() not in told.err


def test_a_second_key_of_a_name_is_made_on_purpose_only(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verb(path, "add", "shop", "--scope", "submit") == 0
    assert verb(path, "add", "shop", "--scope", "read") == 1
    assert "--another" in capsys.readouterr().err
    assert verb(path, "add", "shop", "--scope", "submit", "--another") == 0
    assert names(path) == ["shop", "shop"]


def test_list_shows_everything_but_the_hashes(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verb(path, "add", "shop", "--scope", "submit")
    (key,) = read_keys(path)
    capsys.readouterr()
    assert verb(path, "list") == 0
    assert capsys.readouterr().out.split() == [key.id, key.created, "submit", "shop"]
    assert verb(path, "list", "--json") == 0
    shown = msgspec.json.decode(capsys.readouterr().out)
    assert shown == {n: getattr(key, n) for n in ("id", "name", "scopes", "created")}


def test_revoke_takes_an_id_or_all_of_a_name(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("shop", "shop", "web", "web"):
        verb(path, "add", name, "--scope", "submit", "--another")
    first = read_keys(path)[0]
    assert verb(path, "revoke", first.id) == 0
    assert names(path) == ["shop", "web", "web"]
    assert verb(path, "revoke", "web") == 0
    assert names(path) == ["shop"]
    assert verb(path, "revoke", "web") == 1
    assert "no key has the id or the name web" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["add", "shop"],
        ["add", "a b", "--scope", "submit"],
        ["add", "0123abcd", "--scope", "submit"],
        ["add", "shop", "--scope", "root"],
    ],
)
def test_wrong_usage_is_2_and_writes_nothing(path: Path, args: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        verb(path, *args)
    assert ended.value.code == 2
    assert not path.exists()


def test_the_verb_wants_to_know_which_file() -> None:
    with pytest.raises(SettingsError, match="needs --keys FILE, or RASHER_KEYS"):
        keys_verb.main(settings(""), ["list"])


def test_a_file_in_no_directory_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verb(tmp_path / "none" / "keys.json", "add", "shop", "--scope", "submit") == 1
    assert "No such file or directory" in capsys.readouterr().err

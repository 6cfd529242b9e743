"""Keys for tests: a file of them, and what their owners send."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from ingest.keys import Keyring
from processors.keys import Key, Scope, change_keys, new_key

# One that is the same in every run, for tests that remember what they tried.
TOKEN = "rsk_01234567_" + "s" * 43
READING = "rsk_89abcdef_" + "r" * 43


def fixed_keyring() -> Keyring:
    """TOKEN is shop's, who may order, READING office's, who may not."""
    told = [(TOKEN, "shop", "submit"), (READING, "office", "read")]
    return Keyring(
        Key(token[4:12], name, _scopes(scopes), "", sha256(token.encode()).hexdigest())
        for token, name, scopes in told
    )


def make_keys(path: Path, **scopes: str) -> dict[str, str]:
    """make_keys(path, shop="submit", all="submit read") writes the file -> the tokens by name."""
    made = {name: new_key(name, _scopes(text)) for name, text in scopes.items()}
    change_keys(path, lambda _: [key for key, _ in made.values()])
    return {name: token for name, (_, token) in made.items()}


def bearer(token: str) -> dict[str, str]:
    """The header that shows a key."""
    return {"authorization": f"Bearer {token}"}


def _scopes(text: str) -> list[Scope]:
    return text.split()  # type: ignore[return-value]

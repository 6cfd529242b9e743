"""Keys for tests: a file of them, and what their owners send."""

from __future__ import annotations

from pathlib import Path

from processors.keys import Scope, change_keys, new_key


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

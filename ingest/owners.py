"""Whose orders a request may see."""

from __future__ import annotations

from ingest.exchange import Scope


def only_of(_scope: Scope) -> str | None:
    """The name of the one owner whose orders it may list and cancel; None: everybody's. The one
    place to ask for lists, recalls and cancels."""
    return None

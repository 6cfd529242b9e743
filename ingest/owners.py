"""Whose orders a request may see, and whose it may cancel. An order is its key's name's.

What somebody else's order is to a request that may not see it: not there, 404.
"""

from __future__ import annotations

from ingest.exchange import Scope
from ingest.keys import ADMIN, READ
from ingest.origin import IDENTITY


def only_of(scope: Scope) -> str | None:
    """The one owner whose orders it may look at; None: everybody's."""
    return _unless(scope, READ, ADMIN)


def cancels_only_of(scope: Scope) -> str | None:
    """The one owner whose orders it may cancel; None: everybody's."""
    return _unless(scope, ADMIN)


def sees(scope: Scope, owner: str | None) -> bool:
    """Whether it may look at an order of that owner, None: of nobody's key."""
    only = only_of(scope)
    return only is None or only == owner


def _unless(scope: Scope, *scopes: str) -> str | None:
    identity = scope.get(IDENTITY)
    if identity is None or not identity.scopes.isdisjoint(scopes):
        return None
    return str(identity.name)

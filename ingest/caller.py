"""How our own verbs call a running service: where it is, and with which key.

The key is taken from the environment, not from a flag, which every user of the machine could read.
"""

from __future__ import annotations

import os

from ingest.listen import scheme, url
from processors.settings import TOKEN_VARIABLE, Settings


def service_url(settings: Settings) -> str:
    """Where a service with these settings listens; to be called, not to be listened on."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.http.host, settings.http.host)  # noqa: S104
    return url((host, settings.http.port), scheme(settings.http))


def key_headers() -> dict[str, str]:
    """What a request bears when RASHER_TOKEN is set."""
    token = os.environ.get(TOKEN_VARIABLE, "")
    return {"authorization": f"Bearer {token}"} if token else {}

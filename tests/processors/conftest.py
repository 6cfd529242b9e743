from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.databases import make_database
from tests.postgres import Postgres
from tests.processors.kit import House


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a new database with Rasher's schema."""
    if request.param == "sqlite":
        return make_database(tmp_path / "rasher.db")
    template = request.getfixturevalue("migrated")
    server: Postgres = request.getfixturevalue("postgres")
    return server.url(server.database(template))


@pytest.fixture
def house(url: str, tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path, url=url)
    yield house
    house.close()

"""Every test's world: a folder of its own, no network, no settings; and databases to work on."""

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from sqlalchemy import Engine, Table, select

from etl.db import schema
from etl.db.engine import open_database, reading
from etl.db.tables import metadata
from tests.support import postgres

Rows = Callable[[Table], list[dict[str, Any]]]

_POSTGRES_URL = os.environ.get(postgres.URL_VARIABLE)
_LOOPBACK = {"localhost", "127.0.0.1", "::1", None}

# The same examples each time, and none kept: a test's outcome depends on the code alone.
settings.register_profile("tests", derandomize=True, database=None, deadline=None)
settings.load_profile("tests")


@pytest.fixture(autouse=True)
def _own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder to be in, another for a home, and none of the caller's settings."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(home))
    for name in os.environ:
        if name.startswith(("LINQ_", "PG", "XDG_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What leaves this machine fails the test, whatever the code does about exceptions."""
    getaddrinfo = socket.getaddrinfo

    def refuse_remote(host: Any) -> None:
        if host not in _LOOPBACK:
            pytest.fail(f"a test reached for the network: {host}")

    def guarded(name: str) -> Callable[..., Any]:
        original = getattr(socket.socket, name)

        def connect(self: socket.socket, address: Any) -> Any:
            if self.family != socket.AF_UNIX:
                refuse_remote(address[0])
            return original(self, address)

        return connect

    def resolve(host: Any, *args: Any, **kwargs: Any) -> Any:
        refuse_remote(host.decode() if isinstance(host, bytes) else host)
        return getaddrinfo(host, *args, **kwargs)

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, guarded(name))
    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a server for the tests' databases; without one they are skipped."""
    try:
        with postgres.server(_POSTGRES_URL) as url:
            yield url
    except postgres.NoPostgresError as reason:
        give_up = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        give_up(f"no PostgreSQL: {reason}")


@pytest.fixture(scope="session")
def migrated(postgres_server: str) -> Iterator[str]:
    """A database with the schema, for all tests that do not alter it: a new one takes longer."""
    with postgres.database(postgres_server) as url:
        opened = open_database(url)
        schema.upgrade(opened)
        opened.dispose()
        yield url


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a SQLite file, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "linq.db"
    opened = open_database(f"sqlite:///{path}")
    schema.upgrade(opened)
    opened.dispose()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of each kind: a new and empty one, or where a test asks for it, the engine's."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'linq.db'}"
    elif "engine" in request.fixturenames:
        yield request.getfixturevalue("migrated")
    else:
        with postgres.database(request.getfixturevalue("postgres_server")) as url:
            yield url


@pytest.fixture
def engine(database_url: str, migrated_file: Path, tmp_path: Path) -> Iterator[Engine]:
    """The database opened, with the schema that the migrations make and no rows."""
    if database_url.startswith("sqlite"):
        shutil.copy(migrated_file, tmp_path / "linq.db")
    opened = open_database(database_url)
    if opened.dialect.name == "postgresql":
        with opened.begin() as connection:
            names = ", ".join(metadata.tables)
            connection.exec_driver_sql(f"TRUNCATE {names} RESTART IDENTITY CASCADE")
    yield opened
    opened.dispose()


@pytest.fixture
def rows(engine: Engine) -> Rows:
    """Reads a whole table, in the order of its key; not the digests, which nobody reads."""

    def read(table: Table) -> list[dict[str, Any]]:
        columns = [column for column in table.columns if column.name != "digest"]
        with reading(engine) as connection:
            found = connection.execute(select(*columns).order_by(*table.primary_key))
            return [dict(row) for row in found.mappings()]

    return read

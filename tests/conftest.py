"""What every test gets: an empty folder, no network, no configuration; and databases to use."""

import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from sqlalchemy import Connection, Engine, Table, delete, insert, inspect, select
from sqlalchemy.engine import make_url

from etl.db import leases, schema
from etl.db.engine import open_engine, reading
from etl.db.tables import data_dictionary, metadata, run_fences
from tests.support import mysql, postgres
from tests.support.builders import Row, Rows
from tests.support.marks import cannot_run

_POSTGRES_URL = os.environ.get(postgres.URL_VARIABLE)
_MYSQL_URL = os.environ.get(mysql.URL_VARIABLE)
_DATABASE_TESTS = Path(__file__).parent / "db"
_FOLDERS = {"postgresql": _DATABASE_TESTS, "mysql": _DATABASE_TESTS / "store"}
_LOOPBACK = {"localhost", "127.0.0.1", "::1", None}

# The same examples each time and none saved, so that a test's outcome depends on the code alone.
settings.register_profile("tests", derandomize=True, database=None, deadline=None)
settings.load_profile("tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """To save time, only tests of the database run on servers; the others with the slow ones.

    Of these, only the tests of the store run on MySQL.
    """
    for item in items:
        parameters = getattr(item, "callspec", None)
        folder = _FOLDERS.get(parameters.params.get("database_url", "")) if parameters else None
        if folder and not item.path.is_relative_to(folder):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, with an empty home and none of the caller's variables."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(home))
    for name in os.environ:
        if name.startswith(("LINQ_", "OTEL_", "PG", "XDG_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True, scope="session")
def _default_signals() -> None:
    """Undo a caller's nohup or `&`, which ignore these signals here and in each child process."""
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that connects to another machine, even if the code catches the exception."""
    getaddrinfo = socket.getaddrinfo

    def refuse_remote(host: Any) -> None:
        if host not in _LOOPBACK:
            pytest.fail(f"a test connected to another machine: {host}")

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
    """The URL of a server for test databases; without one the tests that need it are skipped."""
    try:
        with postgres.server(_POSTGRES_URL) as url:
            yield url
    except postgres.NoPostgresError as reason:
        cannot_run(f"no PostgreSQL: {reason}")


@pytest.fixture(scope="session")
def newest_postgres_server() -> Iterator[str]:
    """The URL of a server of the newest version, which few systems have installed."""
    try:
        with postgres.private_server(postgres.packaged_binaries()) as started:
            yield started.url
    except postgres.NoPostgresError as reason:
        cannot_run(f"no PostgreSQL 18: {reason}")


@pytest.fixture(scope="session")
def migrated(postgres_server: str) -> Iterator[str]:
    """A migrated database, shared by all tests that keep its schema: a new one takes longer."""
    with postgres.database(postgres_server) as url:
        opened = open_engine(url)
        schema.upgrade(opened)
        opened.dispose()
        yield url


@pytest.fixture(scope="session")
def mysql_server() -> Iterator[str]:
    """The URL of a server for test databases; without one the tests that need it are skipped."""
    try:
        with mysql.server(_MYSQL_URL) as url:
            yield url
    except mysql.NoMySqlError as reason:
        cannot_run(f"no MariaDB or MySQL: {reason}")


@pytest.fixture(scope="session")
def migrated_mysql(mysql_server: str) -> Iterator[str]:
    """As `migrated`, in MariaDB or MySQL."""
    with mysql.database(mysql_server) as url:
        opened = open_engine(url)
        schema.upgrade(opened)
        opened.dispose()
        yield url


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy."""
    path = tmp_path_factory.mktemp("migrated") / "linq.db"
    opened = open_engine(f"sqlite:///{path}")
    schema.upgrade(opened)
    opened.dispose()
    return path


@pytest.fixture(params=["sqlite", "postgresql", "mysql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """One database of each kind: new and empty, or the migrated one if the test uses `engine`."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'linq.db'}"
        return
    servers, migrated = {
        "postgresql": ("postgres_server", "migrated"),
        "mysql": ("mysql_server", "migrated_mysql"),
    }[request.param]
    if "engine" in request.fixturenames:
        yield request.getfixturevalue(migrated)
        return
    support = mysql if request.param == "mysql" else postgres
    with support.database(request.getfixturevalue(servers)) as url:
        yield url


@pytest.fixture
def engine(database_url: str, migrated_file: Path, tmp_path: Path) -> Iterator[Engine]:
    """The database, opened: migrated and without rows."""
    if database_url.startswith("sqlite"):
        shutil.copy(migrated_file, tmp_path / "linq.db")
    opened = open_engine(database_url)
    # A session that an earlier, failed test left open would block what follows.
    if opened.dialect.name == "postgresql":
        with opened.begin() as connection:
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            _delete_rows(connection)
            for sequence in inspect(connection).get_sequence_names():
                connection.exec_driver_sql(f"ALTER SEQUENCE {sequence} RESTART")
    if opened.dialect.name == "mysql":
        url = make_url(database_url)
        mysql.end_sessions(url, str(url.database))
        _empty_mysql(opened)
    yield opened
    opened.dispose()


def _empty_mysql(engine: Engine) -> None:
    """Empty the tables that were used: a look at them is faster than to change them."""
    with engine.begin() as connection:
        # A table whose counter never moved has no rows.
        used = connection.exec_driver_sql(
            "SELECT table_name FROM information_schema.tables "
            "WHERE table_schema = DATABASE() AND auto_increment > 1"
        ).scalars()
        counted = set(used)
        _delete_rows(connection)
    with engine.begin() as connection:
        for table in counted:
            connection.exec_driver_sql(f"ALTER TABLE {table} AUTO_INCREMENT = 1")


def _delete_rows(connection: Connection) -> None:
    """Empty the tables; TRUNCATE would take twenty times as long."""
    for table in reversed(metadata.sorted_tables):
        if table is not data_dictionary:
            connection.execute(delete(table))
    connection.execute(insert(run_fences), {"run_id": leases.WRITERS, "fence": 0})


@pytest.fixture
def rows(engine: Engine) -> Rows:
    """Read a whole table in the order of its key, without digests."""

    def read(table: Table) -> list[Row]:
        columns = [column for column in table.columns if column.name != "digest"]
        with reading(engine) as connection:
            found = connection.execute(select(*columns).order_by(*table.primary_key))
            return [dict(row) for row in found.mappings()]

    return read

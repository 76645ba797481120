"""Processes that stall in a transaction, databases that go away: no other run is held up."""

import os
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from etl.sandbox import Sandbox, World, build_world
from tests.support import postgres
from tests.support.builders import A, B
from tests.support.command import (
    HoldingSandbox,
    Ended,
    ended,
    environment,
    execute,
    held,
    linq_etl,
    running,
    select,
    stored,
    wait_until,
)
from tests.support.marks import cannot_run

pytestmark = pytest.mark.slow  # Each test starts processes.

LEASE = "10"  # seconds, the shortest
COPYING = "application_name LIKE 'linq-etl/%' AND query LIKE 'COPY%'"


@pytest.fixture
def world() -> World:
    return build_world(chats_per_number=60)


@pytest.fixture
def sandbox(world: World) -> Iterator[Sandbox]:
    with Sandbox(world) as api:
        yield api


@pytest.fixture
def server(postgres_server: str) -> Iterator["Server"]:
    """A server whose processes these tests may stop."""
    if os.environ.get(postgres.URL_VARIABLE):
        cannot_run("the server is not the tests' own")
    with postgres.database(postgres_server) as url:
        yield Server(postgres_server, url)


class Server:
    """A database of the tests' own server, and ways to break it."""

    def __init__(self, server_url: str, url: str) -> None:
        self.url = url
        self._server_url = server_url
        self._name = make_url(url).database

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """End all sessions of the database, and refuse new ones."""
        execute(self._server_url, f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS false")
        execute(
            self._server_url,
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            f"WHERE datname = '{self._name}'",
        )
        try:
            yield
        finally:
            execute(self._server_url, f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS true")

    @contextmanager
    def copying(self, process: subprocess.Popen[str]) -> Iterator[int]:
        """While the run writes a batch: the process of its session, which waits for a lock."""
        with psycopg.connect(self.url) as other:
            other.execute("LOCK TABLE chats IN SHARE MODE")
            waiting = f"SELECT pid FROM pg_stat_activity WHERE {COPYING}"
            wait_until(lambda: select(self.url, waiting), process)
            ((session,),) = select(self.url, waiting)
            yield session

    def runs(self) -> list[tuple[str, str | None]]:
        return select(self.url, "SELECT status, error_kind FROM sync_runs ORDER BY id")


def settings(sandbox: Sandbox, url: str, *numbers: str, **others: str) -> dict[str, str]:
    return environment(sandbox, url, *numbers, LINQ_ETL_SYNC__LEASE_SECONDS=LEASE, **others)


@pytest.fixture
def migrated_server(server: Server, sandbox: Sandbox) -> Server:
    assert linq_etl("db", "upgrade", env=settings(sandbox, server.url)).code == 0
    return server

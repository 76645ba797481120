"""Processes that stall in a transaction, databases that go away: no other run is held up."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Protocol

import psycopg
import pymysql
import pytest
from sqlalchemy import make_url

from etl.sandbox import Sandbox, World, build_world
from tests.support import mysql, postgres
from tests.support.builders import A, B
from tests.support.command import (
    HoldingSandbox,
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
from tests.support.mysql import NoMySqlError
from tests.support.private_mysql import PrivateServer, private_server

pytestmark = pytest.mark.slow  # Each test starts processes.

LOG = Path("log")
INSERTING = """
    SELECT id FROM information_schema.processlist
    WHERE db = database() AND info LIKE 'INSERT INTO chats %' AND time_ms > 100
"""
LEASE = "10"  # seconds, the shortest
COPYING = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE 'linq-etl/%'
        AND query LIKE 'COPY%' AND wait_event_type = 'Lock'
"""


@pytest.fixture
def world() -> World:
    return build_world(chats_per_number=60)


@pytest.fixture
def sandbox(world: World) -> Iterator[Sandbox]:
    with Sandbox(world) as api:
        yield api


@pytest.fixture(params=["postgresql", "mysql"])
def server(request: pytest.FixtureRequest) -> Iterator["Server"]:
    """A server whose processes these tests may stop."""
    if request.param == "mysql":
        try:
            with private_server() as started:
                started.execute("CREATE DATABASE linq")
                yield MySqlServer(started)
        except NoMySqlError as reason:
            cannot_run(f"no MariaDB or MySQL: {reason}")
        return
    if os.environ.get(postgres.URL_VARIABLE):
        cannot_run("the server is not the tests' own")
    postgres_server = request.getfixturevalue("postgres_server")
    with postgres.database(postgres_server) as url:
        yield PostgresServer(postgres_server, url)


class Server(Protocol):
    """A database of the tests' own server, and ways to break it."""

    url: str

    def refusing(self) -> AbstractContextManager[None]:
        """End all sessions of the database, and refuse new ones."""

    def copying(self, process: subprocess.Popen[str]) -> AbstractContextManager[int]:
        """While the run writes a batch: its session, which waits for a lock."""

    def stopped(self, session: int) -> AbstractContextManager[None]:
        """The session does not answer."""


class MySqlServer:
    """A server that is killed and started again."""

    def __init__(self, server: PrivateServer) -> None:
        self.url = f"{server.url}linq"
        self._server = server
        self.refusing = server.away

    @contextmanager
    def copying(self, process: subprocess.Popen[str]) -> Iterator[int]:
        with closing(mysql.connect(self.url)) as other, other.cursor() as cursor:
            other.begin()
            cursor.execute("SELECT * FROM chats FOR UPDATE")  # Also where a row would go.
            wait_until(lambda: select(self.url, INSERTING), process)
            ((session,),) = select(self.url, INSERTING)
            yield session
            with suppress(pymysql.err.OperationalError):  # The server was killed.
                other.rollback()

    @contextmanager
    def stopped(self, session: int) -> Iterator[None]:
        """Sessions are threads of one process."""
        with self._server.stopped():
            yield


class PostgresServer:
    """A server whose sessions are processes."""

    def __init__(self, server_url: str, url: str) -> None:
        self.url = url
        self._server_url = server_url
        self._name = make_url(url).database

    @contextmanager
    def refusing(self) -> Iterator[None]:
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
        with closing(psycopg.connect(self.url)) as other:
            other.execute("LOCK TABLE chats IN SHARE MODE")
            wait_until(lambda: select(self.url, COPYING), process)
            ((session,),) = select(self.url, COPYING)
            yield session

    @contextmanager
    def stopped(self, session: int) -> Iterator[None]:
        os.kill(session, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(session, signal.SIGCONT)


def runs(url: str) -> list[tuple[str, str | None]]:
    return select(url, "SELECT status, error_kind FROM sync_runs ORDER BY id")


@contextmanager
def logging_to(log: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A sync that logs into a file."""
    with log.open("w") as stderr, running("--log-json", "sync", env=env, stderr=stderr) as process:
        yield process
    assert "Traceback" not in log.read_text()


def settings(sandbox: Sandbox, url: str, *numbers: str, **others: str) -> dict[str, str]:
    return environment(sandbox, url, *numbers, LINQ_ETL_SYNC__LEASE_SECONDS=LEASE, **others)


# A process that stalls


def test_a_process_that_stalls_in_a_batch_blocks_no_other_run(
    server: Server, sandbox: Sandbox, world: World
) -> None:
    """A run of another number ends it once its lease has expired; awake, it ends with 7."""
    env = settings(sandbox, server.url, A)
    assert linq_etl("db", "upgrade", env=env).code == 0
    with running("sync", env=env) as stalled:
        with server.copying(stalled):
            stalled.send_signal(signal.SIGSTOP)
        other = linq_etl("sync", env=settings(sandbox, server.url, B))
        assert (other.code, runs(server.url)) == (0, [("abandoned", None), ("succeeded", None)])
        assert stored(server.url) == held(world, [B])
        stalled.send_signal(signal.SIGCONT)
        resumed = ended(stalled)
    assert resumed.code == 7
    assert "this run was taken for dead and closed" in resumed.stderr
    assert stored(server.url) == held(world, [B])
    assert linq_etl("sync", env=env).code == 0
    assert stored(server.url) == held(world)


def test_a_session_that_outlives_its_process_blocks_runs_only_while_it_stalls(
    server: Server, sandbox: Sandbox, world: World
) -> None:
    """PostgreSQL's process is stopped and cannot be ended; once it goes on, so does the run.

    MySQL's session is ended.
    """
    env = settings(sandbox, server.url, A)
    assert linq_etl("db", "upgrade", env=env).code == 0
    with running("sync", env=env) as killed, ExitStack() as stall:
        session = stall.enter_context(server.copying(killed))
        if isinstance(server, PostgresServer):
            stall.enter_context(server.stopped(session))
        killed.kill()
        killed.wait()
        with logging_to(LOG, settings(sandbox, server.url, B)) as other:
            wait_until(lambda: '"stalled_run"' in LOG.read_text(), other)
            stall.close()
            assert ended(other).code == 0
    assert linq_etl("sync", env=env).code == 0
    assert runs(server.url) == [("abandoned", None), ("succeeded", None), ("succeeded", None)]
    assert stored(server.url) == held(world)


# A database that goes away


def test_a_run_waits_for_a_database_that_is_gone(
    server: Server, sandbox: Sandbox, world: World
) -> None:
    """The batch in hand is written again, and counted once."""
    env = settings(sandbox, server.url)
    assert linq_etl("db", "upgrade", env=env).code == 0
    with logging_to(LOG, env) as process:
        with server.copying(process), server.refusing():
            wait_until(lambda: '"waiting_for_database"' in LOG.read_text(), process)
        assert ended(process).code == 0
    assert stored(server.url) == held(world)
    assert runs(server.url) == [("succeeded", None)]
    counted = "SELECT sum(chats_inserted), sum(handles_inserted) FROM sync_runs"
    chats = len(held(world)["chats"]), len(held(world)["handles"])
    assert select(server.url, counted) == [chats]


def test_a_run_gives_up_a_database_that_stays_away(
    server: Server, sandbox: Sandbox, world: World
) -> None:
    """With exit code 6. The next run closes its row and stores everything."""
    env = settings(sandbox, server.url, LINQ_ETL_DATABASE__PATIENCE="0.5")
    assert linq_etl("db", "upgrade", env=env).code == 0
    with running("sync", env=env) as process, server.copying(process), server.refusing():
        gone = ended(process)
    assert gone.code == 6
    assert "linq-etl: the database is unavailable: " in gone.stderr
    assert linq_etl("sync", env=env).code == 0
    assert runs(server.url) == [("abandoned", None), ("succeeded", None)]
    assert stored(server.url) == held(world)


def test_sigterm_ends_a_run_whose_database_does_not_answer(
    server: Server, sandbox: Sandbox, world: World
) -> None:
    """Within ten seconds; the batch is lost, and the next run stores it."""
    env = settings(sandbox, server.url)
    assert linq_etl("db", "upgrade", env=env).code == 0
    with (
        running("sync", env=env) as process,
        server.copying(process) as session,
        server.stopped(session),
    ):
        process.send_signal(signal.SIGTERM)
        assert ended(process, within=12).code == 143
    assert linq_etl("sync", env=env).code == 0
    assert stored(server.url) == held(world)


def test_a_file_that_is_deleted_during_a_run_is_noticed(tmp_path: Path, world: World) -> None:
    """Exit code 6 instead of a success that nobody can read."""
    url, path = f"sqlite:///{tmp_path}/linq.db", tmp_path / "linq.db"
    with HoldingSandbox(world, answers=1) as sandbox:
        env = settings(sandbox, url, A, LINQ_ETL_API__PER_PAGE="10")
        with running("sync", env=env) as process:
            wait_until(sandbox.holding.is_set, process)
            path.unlink()
            sandbox.release()
            deleted = ended(process)
    assert deleted.code == 6
    assert f"the database file {path} was deleted or replaced while it was in use" in deleted.stderr


# Many processes at once


def test_many_runs_at_once(database_url: str, sandbox: Sandbox, world: World) -> None:
    """Of the same numbers and of others, on a new database: each ends as documented.

    With the usual lease: they also wait for each other.
    """
    with ExitStack() as stack:
        processes = [
            stack.enter_context(running("sync", env=environment(sandbox, database_url, *numbers)))
            for numbers in [(A,), (B,), (A, B), (B, A)] * 5
        ]
        codes = {ended(process, within=120).code for process in processes}
    assert 0 in codes
    assert codes <= {0, 3, 7}
    statuses = select(database_url, "SELECT status FROM sync_runs")
    assert len(statuses) == 20
    assert {status for (status,) in statuses} <= {"succeeded", "partial", "failed"}
    assert linq_etl("sync", env=settings(sandbox, database_url)).code == 0
    assert stored(database_url) == held(world)
    for table in ("number_leases", "run_fences WHERE run_id <> 0"):
        assert select(database_url, f"SELECT * FROM {table}") == []

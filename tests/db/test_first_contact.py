"""The first contact with a database: one that is busy is waited for, a wrong URL is not."""

import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, event, make_url
from tenacity import wait_none

from etl import log
from etl.cli.context import make_ready
from etl.db import schema
from etl.db.backends.postgresql_errors import outage
from etl.db.engine import open_engine
from etl.db.tables import REVISION
from etl.db.transactions import Transactions
from etl.errors import DatabaseError, SchemaError
from etl.sandbox import Sandbox, build_world
from tests.db.conftest import RoleDatabase
from tests.support.builders import A, config_with
from tests.support.command import (
    CLOSED_PORT,
    call,
    ended,
    environment,
    held,
    running,
    stored,
    wait_until,
)

CLOSED_SERVER = "postgresql://ada@127.0.0.1:1/linq"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once."""
    monkeypatch.setitem(Transactions.__init__.__kwdefaults__ or {}, "wait", wait_none())


@pytest.fixture
def full(role_database: RoleDatabase) -> Iterator[tuple[Engine, psycopg.Connection[Any]]]:
    """A database that allows its role one connection, and that connection, which is open."""
    role_database.execute(
        "GRANT CREATE ON SCHEMA public TO {role}", "ALTER ROLE {role} CONNECTION LIMIT 1"
    )
    engine = open_engine(role_database.role_url)
    with closing(psycopg.connect(role_database.role_url)) as other:
        yield engine, other
        engine.dispose()


def upgrade_after_statement(number: int, engine: Engine, url: str) -> None:
    """Let another run upgrade the database once the engine has executed so many statements."""
    executed = count(1)

    def upgrade(*_: Any) -> None:
        if next(executed) == number:
            other = open_engine(url)
            schema.upgrade(other)
            other.dispose()

    event.listen(engine, "after_cursor_execute", upgrade)


# A run that starts while others do


@pytest.mark.parametrize(
    ("database_url", "statement"),
    [
        *(("postgresql", statement) for statement in range(1, 6)),
        *(("mysql", statement) for statement in range(1, 4)),
    ],
    indirect=["database_url"],
)
def test_another_run_may_create_the_tables_during_the_check(
    database_url: str, statement: int
) -> None:
    """Between any two of its statements: they are not taken for another program's."""
    engine = open_engine(database_url)
    upgrade_after_statement(statement, engine, database_url)
    schema.ensure_current(engine, upgrade_allowed=True)
    assert schema.current(engine) == REVISION
    engine.dispose()


def test_a_full_server_is_waited_for(
    full: tuple[Engine, psycopg.Connection[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log says so, once; then the tables are created."""
    engine, other = full
    logged: list[str] = []

    def end_other(event: str, **fields: Any) -> None:
        logged.append(f"{event} {fields['reason']}")
        other.close()

    monkeypatch.setattr(log, "warning", end_other)
    make_ready(config_with(), engine, upgrade_allowed=True)
    (line,) = logged
    assert line.startswith("waiting_for_database ")
    assert "too many connections for role" in line
    assert schema.current(engine) == REVISION


def test_a_server_that_stays_full_is_given_up(
    full: tuple[Engine, psycopg.Connection[Any]],
) -> None:
    """With exit code 6."""
    engine, _ = full
    with pytest.raises(DatabaseError, match="too many connections for role") as caught:
        make_ready(config_with(DATABASE__PATIENCE=0), engine, upgrade_allowed=True)
    assert caught.value.exit_code == 6


@pytest.mark.slow  # It starts a process.
@pytest.mark.usefixtures("full")
def test_sigterm_ends_the_wait(role_database: RoleDatabase) -> None:
    """As it ends a run, but there is no run yet to close."""
    with waiting(environment(CLOSED_PORT, role_database.role_url)) as process:
        process.terminate()
        assert ended(process).code == 143


@pytest.mark.slow
def test_a_run_starts_when_the_server_has_room(
    full: tuple[Engine, psycopg.Connection[Any]], role_database: RoleDatabase
) -> None:
    """It creates the tables and stores everything."""
    _, other = full
    world = build_world(chats_per_number=20)
    with Sandbox(world) as api, waiting(environment(api, role_database.role_url, A)) as process:
        role_database.execute("ALTER ROLE {role} CONNECTION LIMIT -1")  # A run has several.
        other.close()
        assert ended(process).code == 0
    assert stored(role_database.owner_url) == held(world, [A])


@contextmanager
def waiting(env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A sync that has logged that it waits for the database."""
    path = Path("log")
    with path.open("w") as stderr, running("sync", env=env, stderr=stderr) as process:
        wait_until(lambda: "waiting_for_database" in path.read_text(), process)
        yield process
    assert "Traceback" not in path.read_text()


def test_a_schema_that_may_not_be_upgraded_is_refused(database_url: str) -> None:
    """After the wait too; nothing is created."""
    engine = open_engine(database_url)
    with pytest.raises(SchemaError, match="run `linq-etl db upgrade`"):
        make_ready(config_with(), engine, upgrade_allowed=False)
    assert schema.current(engine) is None
    engine.dispose()


# What is waited for


@pytest.mark.parametrize(
    "message",
    [
        "sorry, too many clients already",
        'too many connections for role "ada"',
        'too many connections for database "linq"',
        "remaining connection slots are reserved for roles with the SUPERUSER attribute",
        "remaining connection slots are reserved for non-replication superuser connections",
        "the database system is starting up",
        "the database system is shutting down",
        "the database system is not yet accepting connections",
        "the database system is in recovery mode",
        "could not fork new process for connection: Cannot allocate memory",
        "no more connections allowed (max_client_conn)",
    ],
)
def test_a_busy_server_passes(message: str) -> None:
    """As it words this when it refuses a connection."""
    error = psycopg.OperationalError(f"connection failed: FATAL:  {message}")
    assert outage(error, open_engine(CLOSED_SERVER)) == "unavailable"


@pytest.mark.parametrize(
    "message",
    [
        'FATAL:  password authentication failed for user "ada"',
        'FATAL:  role "ada" does not exist',
        'FATAL:  database "linq" does not exist',
        'FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "ada", database "linq"',
        'could not translate host name "nowhere" to address: Name or service not known',
        "Connection refused",
        "connection timeout expired",
    ],
)
def test_what_may_be_a_wrong_url_passes_only_later(message: str, postgres_server: str) -> None:
    """A server that was reached once is away; the URL was right."""
    error = psycopg.OperationalError(f"connection failed: {message}")
    engine = open_engine(postgres_server)
    assert outage(error, engine) is None
    engine.connect().close()
    assert outage(error, engine) == "unavailable"
    engine.dispose()


@pytest.mark.parametrize("part", ["database", "username"])
@pytest.mark.parametrize("command", ["sync", "verify", "status"])
def test_a_wrong_url_is_not_waited_for(command: str, part: str, postgres_server: str) -> None:
    """Exit code 6 at once."""
    wrong: dict[str, Any] = {part: "nowhere_nobody"}
    url = make_url(postgres_server).set(**wrong).render_as_string(hide_password=False)
    failed = call(command, env=environment(CLOSED_PORT, url))
    assert (failed.code, failed.stdout) == (6, "")
    assert '"nowhere_nobody" does not exist' in failed.stderr
    assert "waiting_for_database" not in failed.stderr

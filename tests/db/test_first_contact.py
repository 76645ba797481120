"""The first contact with a database: one that is busy is waited for, a wrong URL is not."""

import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

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
from tests.support import mysql
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


class Full(NamedTuple):
    """A database that allows its account one connection, and that connection, which is open."""

    database: RoleDatabase
    other: Any
    message: str
    unlimited: str

    @property
    def url(self) -> str:
        return self.database.role_url


@pytest.fixture(params=["postgresql", "mysql"])
def full(request: pytest.FixtureRequest) -> Iterator[Full]:
    if request.param == "postgresql":
        database = request.getfixturevalue("role_database")
        database.execute(
            "GRANT CREATE ON SCHEMA public TO {role}", "ALTER ROLE {role} CONNECTION LIMIT 1"
        )
        with closing(psycopg.connect(database.role_url)) as other:
            unlimited = "ALTER ROLE {role} CONNECTION LIMIT -1"
            yield Full(database, other, "too many connections for role", unlimited)
        return
    database = request.getfixturevalue("mysql_account")
    limit = "ALTER USER {role} WITH MAX_USER_CONNECTIONS "
    database.execute("GRANT ALL ON {database}.* TO {role}", f"{limit} 1")
    session = mysql.connect(database.role_url)
    yield Full(database, session, "it has no free connection: run again later", f"{limit} 0")
    if session.open:
        session.close()


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


def test_a_full_server_is_waited_for(full: Full, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log says so, once; then the tables are created."""
    engine = open_engine(full.url)
    logged: list[str] = []

    def end_other(event: str, **fields: Any) -> None:
        logged.append(f"{event} {fields['reason']}")
        full.other.close()

    monkeypatch.setattr(log, "warning", end_other)
    make_ready(config_with(), engine, upgrade_allowed=True)
    (line,) = logged
    assert line.startswith("waiting_for_database ")
    assert full.message in line
    assert schema.current(engine) == REVISION
    engine.dispose()


def test_a_server_that_stays_full_is_given_up(full: Full) -> None:
    """With exit code 6."""
    engine = open_engine(full.url)
    with pytest.raises(DatabaseError, match=full.message) as caught:
        make_ready(config_with(DATABASE__PATIENCE=0), engine, upgrade_allowed=True)
    assert caught.value.exit_code == 6
    engine.dispose()


@pytest.mark.slow  # It starts a process.
def test_sigterm_ends_the_wait(full: Full) -> None:
    """As it ends a run, but there is no run yet to close."""
    with waiting(environment(CLOSED_PORT, full.url)) as process:
        process.terminate()
        assert ended(process).code == 143


@pytest.mark.slow
def test_a_run_starts_when_the_server_has_room(full: Full) -> None:
    """It creates the tables and stores everything."""
    world = build_world(chats_per_number=20)
    with Sandbox(world) as api, waiting(environment(api, full.url, A)) as process:
        full.database.execute(full.unlimited)  # A run has several connections.
        full.other.close()
        assert ended(process).code == 0
    assert stored(full.database.owner_url) == held(world, [A])


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


@pytest.mark.parametrize("server", ["postgres", "mysql"])
@pytest.mark.parametrize("part", ["database", "username"])
@pytest.mark.parametrize("command", ["sync", "verify", "status"])
def test_a_wrong_url_is_not_waited_for(
    command: str, part: str, server: str, request: pytest.FixtureRequest
) -> None:
    """Exit code 6 at once."""
    wrong: dict[str, Any] = {"database": server, part: "nowhere_nobody"}
    server_url = request.getfixturevalue(f"{server}_server")
    url = make_url(server_url).set(**wrong).render_as_string(hide_password=False)
    failed = call(command, env=environment(CLOSED_PORT, url))
    assert (failed.code, failed.stdout) == (6, "")
    refused = {
        ("postgres", part): '"nowhere_nobody" does not exist',
        ("mysql", "database"): "There is no database `nowhere_nobody`.",
        ("mysql", "username"): "the server refused user nowhere_nobody",
    }
    assert refused[server, part] in failed.stderr
    assert "waiting_for_database" not in failed.stderr

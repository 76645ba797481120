"""Failures of the database, made on purpose."""

import sqlite3
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psycopg
import pymysql
import pytest
from sqlalchemy import Connection, Engine, event, text

from etl.db.backends import postgresql


def outage(engine: Engine) -> Exception:
    """The driver's error when the database is away for a while."""
    if engine.dialect.name == "postgresql":
        return psycopg.OperationalError("server closed the connection unexpectedly")
    if engine.dialect.name == "mysql":
        return pymysql.err.OperationalError(2013, "Lost connection to MySQL server during query")
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorname = "SQLITE_BUSY"
    return error


_SAID = "in the server's words"
_CONFLICTS: dict[str, dict[str, Exception]] = {
    "postgresql": {
        "another's change": psycopg.errors.SerializationFailure(f"{_SAID}\nDETAIL: not shown"),
        "deadlock": psycopg.errors.DeadlockDetected(f"{_SAID}\nDETAIL: not shown"),
        "unique key": psycopg.errors.UniqueViolation(_SAID),
    },
    "mysql": {
        "another's change": pymysql.err.OperationalError(1020, _SAID),
        "deadlock": pymysql.err.OperationalError(1213, _SAID),
        "unique key": pymysql.err.IntegrityError(1062, _SAID),
    },
}


def conflict(engine: Engine, kind: str) -> Exception:
    """The driver's error when another transaction won."""
    return _CONFLICTS[engine.dialect.name][kind]


def do_not_wait_for_locks(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a statement that finds a lock fail as soon as the server can."""
    if engine.dialect.name == "postgresql":
        monkeypatch.setitem(postgresql._SETTINGS, "lock_timeout", "10ms")
        return
    # With 0, SKIP LOCKED would fail in MariaDB 10.11; in MySQL the least is a second.
    soon = "SET SESSION innodb_lock_wait_timeout = 1"
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(soon))


def session_of(connection: Connection) -> int:
    """The server's number for the connection."""
    query = {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT connection_id()"}
    return int(connection.exec_driver_sql(query[connection.dialect.name]).scalar_one())


@contextmanager
def failing_commits(
    engine: Engine, fails: Callable[[int], bool], error: Exception, *, is_committed: bool
) -> Iterator[list[int]]:
    """Raise the error instead of some COMMITs, counted from 0, or after them.

    Yields a list that grows with each COMMIT.
    """
    commits: list[int] = []

    def fail(connection: Connection) -> None:
        commits.append(len(commits))
        if fails(commits[-1]):
            driver: Any = connection.connection.driver_connection
            if is_committed:
                driver.commit()
            raise error

    event.listen(engine, "commit", fail)
    try:
        yield commits
    finally:
        event.remove(engine, "commit", fail)


def lost_answers(engine: Engine, which: Collection[int]) -> AbstractContextManager[list[int]]:
    """Lose the answers to these COMMITs: the program takes the database for gone."""
    lost = which.__contains__
    return failing_commits(engine, lost, outage(engine), is_committed=True)


class Failing:
    """A function for a transaction: it raises the errors one after another, then only calls."""

    def __init__(self, function: Callable[[Connection], Any], *errors: Exception) -> None:
        self._function = function
        self._errors = list(errors)
        self.calls = 0

    def __call__(self, connection: Connection) -> Any:
        self.calls += 1
        result = self._function(connection)
        if self._errors:
            raise self._errors.pop(0)
        return result


_ENDLESS = {
    "postgresql": "SELECT pg_sleep(3600)",
    # In a condition: interrupted in the list of columns, SLEEP returns 1.
    "mysql": "SELECT 1 FROM (SELECT 1) AS one WHERE SLEEP(3600)",
    "sqlite": "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n) "
    "SELECT max(i) FROM n",
}


def never_end(connection: Connection) -> None:
    """Execute a statement that ends only if it is interrupted."""
    connection.execute(text(_ENDLESS[connection.dialect.name]))

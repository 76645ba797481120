"""Failures of the database, made on purpose."""

import sqlite3
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psycopg
import pymysql
from sqlalchemy import Connection, Engine, event, text


def outage(engine: Engine) -> Exception:
    """The driver's error when the database is away for a while."""
    if engine.dialect.name == "postgresql":
        return psycopg.OperationalError("server closed the connection unexpectedly")
    if engine.dialect.name == "mysql":
        return pymysql.err.OperationalError(2013, "Lost connection to MySQL server during query")
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorname = "SQLITE_BUSY"
    return error


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

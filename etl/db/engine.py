"""Connections: how the database is opened, how a transaction begins, how its errors read.

All writing transactions are one at a time, by SQLite's own lock or by an advisory lock in
PostgreSQL: two runs can then share chats without deadlock, and what a transaction has compared
is still so when it writes.
"""

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

from etl.errors import DatabaseError

T = TypeVar("T")

BUSY_SECONDS = 30
_WRITERS_LOCK = 0x6C696E71  # "linq" in ASCII: the advisory lock's key
_PRAGMAS = (
    f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA temp_store = MEMORY",
)
_POSTGRES_SETTINGS = (
    f"SET lock_timeout = '{BUSY_SECONDS}s'",
    # A writer that was suspended inside a transaction must not hold up the others for ever.
    f"SET idle_in_transaction_session_timeout = '{BUSY_SECONDS}s'",
)


def open_database(url: str) -> Engine:
    """An engine for a SQLite file, created readable by its owner only, or for PostgreSQL.

    Raises DatabaseError where the file cannot be created. Connects lazily otherwise.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        _create_private(parsed)
        engine = create_engine(
            parsed,
            hide_parameters=True,
            connect_args={"isolation_level": None},
            # One is kept open, because each keeps the large statements that it has run.
            pool_size=1,
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    engine = create_engine(
        parsed.set(drivername="postgresql+psycopg"),
        hide_parameters=True,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": 10,
            "application_name": "linq-etl",
            # A plan that is kept from when a table was small goes through all of it later.
            "prepare_threshold": None,
        },
    )
    event.listen(engine, "connect", _prepare_postgres)
    return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that only reads and waits for no writer."""
    with _translated(engine), engine.connect().execution_options(read_only=True) as connection:
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """The one writing transaction of the moment: committed at the end, else rolled back.

    Raises DatabaseError for whatever the database complains of.
    """
    with _translated(engine), engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(_WRITERS_LOCK)))
        yield connection


async def in_transaction(engine: Engine, function: Callable[[Connection], T]) -> T:
    """What `function` returns, from a writing transaction of its own in a thread of its own."""

    def transact() -> T:
        with writing(engine) as connection:
            return function(connection)

    return await asyncio.to_thread(transact)


async def in_reading(engine: Engine, function: Callable[[Connection], T]) -> T:
    """The same from a transaction that only reads."""

    def read() -> T:
        with reading(engine) as connection:
            return function(connection)

    return await asyncio.to_thread(read)


def database_clock(engine: Engine) -> Callable[[], datetime]:
    """The time as the database sees it, so that hosts whose clocks differ agree.

    For SQLite that is this machine's time.
    """
    offset = timedelta()
    if engine.dialect.name == "postgresql":
        with reading(engine) as connection:
            offset = connection.execute(select(func.clock_timestamp())).scalar_one() - _now()
    return lambda: _now() + offset


def describe(engine: Engine) -> str:
    """The database's URL as it may be shown: without a password."""
    # Its query is left out because it can hold a password too.
    return engine.url.set(query={}).render_as_string(hide_password=True)


def _now() -> datetime:
    return datetime.now(UTC)


def _create_private(url: URL) -> None:
    """Create the file for its owner alone; SQLite gives its -wal and -shm the same mode."""
    path = Path(url.database or "")
    try:
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except OSError as error:
        raise DatabaseError(
            f"cannot create the database file {path}: {error.strerror}; see database.url"
        ) from error


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    for pragma in _PRAGMAS:
        connection.execute(pragma)


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes its lock at once: one that began by reading could not be promoted later.
    read_only = connection.get_execution_options().get("read_only")
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _prepare_postgres(connection: Any, _record: Any) -> None:
    with connection.cursor() as cursor:
        for setting in _POSTGRES_SETTINGS:
            cursor.execute(setting)
    connection.commit()


@contextmanager
def _translated(engine: Engine) -> Iterator[None]:
    driver = engine.dialect.loaded_dbapi
    try:
        yield
    except (SQLAlchemyError, driver.Error) as error:  # COPY speaks to the driver itself
        operational = isinstance(error, (OperationalError, driver.OperationalError))
        reason = _reason(error, operational=operational)
        raise DatabaseError(f"{reason} ({describe(engine)})") from error


def _reason(error: Exception, *, operational: bool) -> str:
    """One line for the operator; only operational messages are sure to hold no data."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    state = getattr(cause, "sqlstate", None)
    name = getattr(cause, "sqlite_errorname", "")
    operational = operational or name in _SQLITE_FILE_ERRORS
    if not operational and state not in _ADVICE:
        return f"the database refused a statement: {type(cause).__name__} {state or ''}".rstrip()
    message = str(cause).strip().splitlines()[0]
    return f"the database is unavailable: {message}; {_ADVICE.get(state or name, _ADVICE[''])}"


_SQLITE_FILE_ERRORS = {"SQLITE_NOTADB", "SQLITE_CORRUPT"}
_HELD = f"another program has held it for more than {BUSY_SECONDS} s: wait for it or end it"
_ROOM = "make room on its disk and run again: nothing that was stored is lost"
_PERMISSIONS = "see the permissions of the file and its folder"
_OTHER_FILE = "database.url names a file that is something else, or damaged"
# By PostgreSQL's SQLSTATE and SQLite's error name.
_ADVICE = {
    "": "see that it runs and that database.url is right",
    "55P03": _HELD,
    "SQLITE_BUSY": _HELD,
    "53100": _ROOM,
    "SQLITE_FULL": _ROOM,
    "SQLITE_READONLY": _PERMISSIONS,
    "SQLITE_CANTOPEN": _PERMISSIONS,
    "SQLITE_NOTADB": _OTHER_FILE,
    "SQLITE_CORRUPT": _OTHER_FILE,
    "25006": "it is read-only: connect to the primary, or grant the role to write",
    "42501": "the role may not do that: grant it its tables, and TEMPORARY on the database",
}

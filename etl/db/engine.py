"""Open the database, begin transactions, and turn database errors into messages.

Writing transactions run one at a time, under SQLite's own lock or PostgreSQL's advisory lock: two
runs can share chats without a deadlock, and the rows that a transaction has compared do not change
before it writes.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

from etl.db.backends import backend, backend_of_url
from etl.errors import DatabaseError

T = TypeVar("T")


def open_engine(url: str) -> Engine:
    """An engine for the database, which connects lazily.

    A missing SQLite file is created. Raises DatabaseError if it cannot be.
    """
    parsed = make_url(url)
    return backend_of_url(parsed).create_engine(parsed)


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that only reads and does not wait for writers."""
    with _translated(engine), engine.connect().execution_options(read_only=True) as connection:
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A writing transaction: committed at the end, rolled back on an error.

    Raises DatabaseError for every error of the database.
    """
    with _translated(engine), engine.begin() as connection:
        backend(connection.dialect).begin_writing(connection)
        yield connection


async def in_transaction(engine: Engine, function: Callable[[Connection], T]) -> T:
    """Call `function` in a writing transaction, in another thread."""

    def transact() -> T:
        with writing(engine) as connection:
            return function(connection)

    return await asyncio.to_thread(transact)


async def in_reading(engine: Engine, function: Callable[[Connection], T]) -> T:
    """Call `function` in a reading transaction, in another thread."""

    def read() -> T:
        with reading(engine) as connection:
            return function(connection)

    return await asyncio.to_thread(read)


def database_clock(engine: Engine) -> Callable[[], datetime]:
    """A clock that follows the database server's, so that clock skew between hosts is harmless."""
    with reading(engine) as connection:
        server_time = backend(engine.dialect).server_time(connection)
    offset = server_time - _now() if server_time else timedelta()
    return lambda: _now() + offset


def describe(engine: Engine) -> str:
    """The database's URL without its password."""
    # The URL's query may hold a password too.
    return engine.url.set(query={}).render_as_string(hide_password=True)


def _now() -> datetime:
    return datetime.now(UTC)


@contextmanager
def _translated(engine: Engine) -> Iterator[None]:
    driver = engine.dialect.loaded_dbapi
    try:
        yield
    except (SQLAlchemyError, driver.Error) as error:  # COPY bypasses SQLAlchemy
        cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
        reason = backend(engine.dialect).explain(cause, engine.url)
        if reason is None:
            operational = isinstance(error, (OperationalError, driver.OperationalError))
            reason = _reason(cause, operational=operational)
        raise DatabaseError(f"{reason} ({describe(engine)})") from error


def _reason(cause: BaseException, *, operational: bool) -> str:
    """One line for the operator; only operational messages are sure to hold no data."""
    if not operational:
        state = getattr(cause, "sqlstate", None) or ""
        return f"the database refused a statement: {type(cause).__name__} {state}".rstrip()
    message = str(cause).strip().partition("\n")[0]
    advice = "check that it runs and that database.url is right"
    return f"the database is unavailable: {message}; {advice}"

"""Open the database, begin transactions, and turn database errors into ours."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import Connection, Engine, Table
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

from etl.db.backends import backend, backend_of_url
from etl.errors import DatabaseConflictError, DatabaseError, DatabaseUnavailableError

_ERRORS = {"conflict": DatabaseConflictError, "unavailable": DatabaseUnavailableError}


def open_engine(url: str, schema: str | None = None) -> Engine:
    """An engine for the database, which connects lazily.

    The tables are in the `schema`, which only PostgreSQL has. A missing SQLite file is created.
    Raises DatabaseError if it cannot be.
    """
    parsed = make_url(url)
    engine = backend_of_url(parsed).create_engine(parsed)
    engine.update_execution_options(schema=schema)
    return engine


def missing_file(url: str) -> Path | None:
    """The SQLite file that opening this URL would create; None if it would create none."""
    parsed = make_url(url)
    return backend_of_url(parsed).missing_file(parsed)


def risks(url: str) -> list[str]:
    """What is unsafe about where the database lies, a sentence each."""
    parsed = make_url(url)
    return backend_of_url(parsed).risks(parsed)


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that only reads and does not wait for writers.

    Raises DatabaseError for every error of the database; DatabaseUnavailableError or
    DatabaseConflictError where the transaction may succeed if it is repeated.
    """
    with _translated(engine), engine.connect().execution_options(read_only=True) as connection:
        yield connection


@contextmanager
def writing(engine: Engine, run_id: int | None = None) -> Iterator[Connection]:
    """A transaction that writes: committed at the end, rolled back on an error.

    The server shows it as `linq-etl/RUN`. Raises as `reading`.
    """
    name = f"linq-etl/{run_id}" if run_id is not None else "linq-etl"
    with _translated(engine), engine.begin() as connection:
        backend(connection.dialect).begin_writing(connection, name)
        yield connection


def scrub(engine: Engine, tables: Iterable[Table]) -> str | None:
    """Remove what deleted rows left in the tables' files; what is left to do, a sentence.

    Raises as `reading`.
    """
    with _translated(engine):
        return backend(engine.dialect).scrub(engine, tables)


def database_clock(engine: Engine) -> Callable[[], datetime]:
    """A clock that follows the database server's, so that clock skew between hosts is harmless."""
    with reading(engine) as connection:
        return clock_of(connection)


def clock_of(connection: Connection) -> Callable[[], datetime]:
    """As database_clock, in a transaction."""
    server_time = backend(connection.dialect).server_time(connection)
    offset = server_time - _now() if server_time else timedelta()
    return lambda: _now() + offset


def describe(engine: Engine) -> str:
    """The database's URL without its password, and the schema if one is configured."""
    # The URL's query may hold a password too.
    hosts = {name: engine.url.query[name] for name in ("host", "port") if name in engine.url.query}
    url = engine.url.set(query=hosts).render_as_string(hide_password=True)
    schema = engine.get_execution_options().get("schema")
    return f"{url}, schema {schema}" if schema else url


def _now() -> datetime:
    return datetime.now(UTC)


@contextmanager
def _translated(engine: Engine) -> Iterator[None]:
    database, driver = backend(engine.dialect), engine.dialect.loaded_dbapi
    try:
        yield
    except (SQLAlchemyError, driver.Error) as error:  # COPY bypasses SQLAlchemy
        cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
        reason = database.explain(cause, engine)
        if reason is None:
            operational = isinstance(error, (OperationalError, driver.OperationalError))
            reason = _reason(cause, operational=operational)
        kind = _ERRORS.get(database.outage(cause, engine) or "", DatabaseError)
        raise kind(f"{reason} ({describe(engine)})") from error


def _reason(cause: BaseException, *, operational: bool) -> str:
    """One line for the operator; only operational messages are sure to hold no data."""
    if not operational:
        state = getattr(cause, "sqlstate", None) or ""
        return f"the database refused a statement: {type(cause).__name__} {state}".rstrip()
    message = str(cause).strip().partition("\n")[0]
    advice = "check that it runs and that database.url is right"
    return f"the database is unavailable: {message}; {advice}"

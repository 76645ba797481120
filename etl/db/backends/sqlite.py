"""SQLite: one file, created for its owner alone.

sqlite3 releases the GIL once per row; beside a busy thread, row-by-row statements ran 37 times
slower. Rows go in by long VALUES lists and come out as one JSON text.
"""

import os
import sqlite3
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    DateTime,
    Dialect,
    Engine,
    Integer,
    Select,
    Subquery,
    Table,
    Text,
    bindparam,
    event,
    func,
    literal,
    select,
    text,
)
from sqlalchemy import create_engine as create_sqlalchemy_engine
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine import URL
from sqlalchemy.types import TypeEngine

from etl.db.backends import (
    Encoders,
    Examination,
    Outage,
    Row,
    mounts,
    taken_names,
    updated_names,
)
from etl.errors import DatabaseError

# A key of type INTEGER is the rowid: 64 bits wide, without a separate index.
KEY_TYPE: Final[TypeEngine[Any]] = Integer()
JSON_TYPE: Final[TypeEngine[Any]] = JSON(none_as_null=True)
TEXT_TYPE: Final[TypeEngine[Any]] = Text()
TIME_TYPE: Final[TypeEngine[Any]] = DateTime(timezone=True)
BUSY_SECONDS: Final = 30
EXAMINE_SECONDS: Final = 5.0
_READERS_WAIT_MS: Final = 2000  # for those of other programs to end; a sync reads for moments
_PRAGMAS = (
    f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}",
    "PRAGMA synchronous = NORMAL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA temp_store = MEMORY",
)
# Rows per statement: a few sizes, so that few statements are prepared and kept. The largest keeps
# every table far below SQLite's limit of 32,766 parameters.
_SIZES = (1000, 200, 40, 8, 1)

_PERMISSIONS = "check the permissions of the file and its folder"
_OTHER_FILE = "database.url names a file that is something else, or damaged"
_ADVICE = {
    "SQLITE_BUSY": f"another program has locked it for more than {BUSY_SECONDS} s: wait, or end it",
    "SQLITE_FULL": "free space on its disk and run again: nothing that was stored is lost",
    "SQLITE_READONLY": _PERMISSIONS,
    "SQLITE_CANTOPEN": _PERMISSIONS,
    "SQLITE_NOTADB": _OTHER_FILE,
    "SQLITE_CORRUPT": _OTHER_FILE,
}


def short_text(length: int) -> TypeEngine[Any]:  # noqa: ARG001
    """No index needs to know the length."""
    return TEXT_TYPE


def create_engine(url: URL) -> Engine:
    """An engine for the file, which is created if it is missing, readable by its owner only."""
    _create_private(url)
    engine = create_sqlalchemy_engine(
        url,
        hide_parameters=True,
        connect_args={"isolation_level": None},
        # One connection stays open, because it keeps the large statements that it has prepared.
        pool_size=1,
    )
    path = Path(url.database or "").absolute()
    event.listen(engine, "connect", partial(_prepare, path))
    event.listen(engine, "begin", _begin)
    return engine


def missing_file(url: URL) -> Path | None:
    """The database's file, if it does not exist."""
    path = Path(url.database or "")
    return None if _identity(path) else path


def risks(url: URL) -> list[str]:
    """About the file system of the file."""
    return mounts.risks(Path(url.database or ""))


def begin_writing(connection: Connection, name: str) -> None:
    """BEGIN IMMEDIATE has taken the file's lock already."""


def begin_report(connection: Connection) -> None:
    """It needs none: rows are looked up by index."""


def begin_migrating(connection: Connection) -> None:
    """As begin_writing."""


def create_schema(connection: Connection) -> None:
    """A file has no schemas."""


def unusable(connection: Connection) -> None:
    """SQLite holds every text in each of its encodings."""


def occupied(connection: Connection, names: Collection[str]) -> str | None:
    """Tables, views and indexes share their names."""
    return taken_names(connection.execute(_OCCUPIED, {"names": list(names)}).scalars().all())


_OCCUPIED: Final = text(
    "SELECT name FROM sqlite_schema WHERE name COLLATE NOCASE IN :names ORDER BY name"
).bindparams(bindparam("names", expanding=True))


def examine(
    connection: Connection,
    tables: Collection[str],  # noqa: ARG001
    *,
    creates: bool,  # noqa: ARG001
) -> Examination:
    """The permissions, and the file's pages as far as the time allows."""
    path = Path(connection.engine.url.database or "")
    problems = [
        f"{each} may not be written. Check its permissions."
        for each in (path, path.parent)
        if not os.access(each, os.W_OK, effective_ids=True)
    ]
    driver: Any = connection.connection.driver_connection
    end = time.monotonic() + EXAMINE_SECONDS
    driver.set_progress_handler(lambda: time.monotonic() > end, 10_000)
    try:
        found = str(driver.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError as error:
        if _error_name(error) != "SQLITE_INTERRUPT":
            raise
        return Examination(problems, f"checked its pages for {EXAMINE_SECONDS:g} s, not to the end")
    finally:
        driver.set_progress_handler(None, 0)
    if found != "ok":
        problems.append(f"{path} is damaged. Restore a backup, or sync into a new file.")
    return Examination(problems)


def server_time(connection: Connection) -> None:
    """SQLite runs in this process."""


def explain(error: BaseException, engine: Engine) -> str | None:  # noqa: ARG001
    """By SQLite's error name, such as SQLITE_BUSY, without its extension."""
    name = _error_name(error)
    return f"the database is unavailable: {error}; {_ADVICE[name]}" if name in _ADVICE else None


def _error_name(error: BaseException) -> str:
    return "_".join(getattr(error, "sqlite_errorname", "").split("_")[:2])


def outage(error: BaseException, engine: Engine) -> Outage | None:  # noqa: ARG001
    """The file is locked by another process."""
    locked = _error_name(error) in {"SQLITE_BUSY", "SQLITE_LOCKED"}
    return "unavailable" if locked else None


def cancel(driver: Any) -> None:
    """The statement ends with SQLITE_INTERRUPT; a wait for the file's lock does not."""
    with suppress(sqlite3.Error):
        driver.interrupt()


def disconnect(driver: Any) -> None:
    """SQLite has no server."""


def end_sessions(connection: Connection, name: str) -> list[int]:  # noqa: ARG001
    """SQLite has no sessions to end."""
    return []


def lock_holders(connection: Connection) -> list[str]:  # noqa: ARG001
    """SQLite does not tell."""
    return []


def encoders() -> Encoders:
    """Times and dates as SQLAlchemy stores them, JSON as text."""
    return Encoders(time=_time_text, date=str, json=str)


def comment_on_views(connection: Connection, views: Iterable[Table]) -> None:
    """SQLite has no comments."""


def id_table(ids: Iterable[int]) -> Subquery:
    """The ids as one JSON text."""
    given = func.json_each(_json_text(ids)).table_valued("value", name="given")
    return select(given.c.value.label("id")).subquery()


def lock_rows(connection: Connection, table: Table, ids: Iterable[int]) -> None:
    """SQLite has no nodes."""


def fetch_rows(connection: Connection, query: Select[Any]) -> list[Row]:
    """Each column as one JSON text, whose values SQLAlchemy's types then convert."""
    found = query.subquery()
    texts = connection.execute(select(*(func.json_group_array(column) for column in found.c))).one()
    columns: list[list[Any]] = [msgspec.json.decode(text) for text in texts]
    for position, column in enumerate(found.c):
        implementation = column.type.dialect_impl(connection.dialect)
        if convert := implementation.result_processor(connection.dialect, None):
            values = columns[position]
            columns[position] = [None if value is None else convert(value) for value in values]
    return list(zip(*columns, strict=True))


def overwrite_deleted(connection: Connection) -> None:
    """With zeros."""
    connection.exec_driver_sql("PRAGMA secure_delete = ON")


def scrub(engine: Engine, tables: Iterable[Table]) -> str | None:  # noqa: ARG001
    """Write the file anew: pages hold remains of rows that were moved or changed long ago."""
    connection = engine.raw_connection()
    try:
        driver: Any = connection.driver_connection
        driver.execute("PRAGMA temp_store = FILE")  # A copy of the database, too large for memory.
        driver.execute("VACUUM")
        driver.execute(f"PRAGMA busy_timeout = {_READERS_WAIT_MS}")
        is_busy = driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    finally:
        connection.invalidate()
    if not is_busy:
        return None
    return (
        "another program is using the file, so that its -wal may still hold remains: run it again "
        "when no other program uses the file"
    )


def insert_rows(
    connection: Connection, table: Table, names: Sequence[str], rows: Iterable[Row]
) -> None:
    """Insert by VALUES lists."""
    _execute_in_lists(connection, _Statement(table, tuple(names)), rows)


def upsert_rows(
    connection: Connection,
    table: Table,
    names: Sequence[str],
    rows: Collection[Row],
    *,
    kept: Collection[str] = (),
) -> None:
    """Upsert by VALUES lists."""
    updated = updated_names(table, names, kept)
    _execute_in_lists(connection, _Statement(table, tuple(names), updated), rows)


class _Statement(NamedTuple):
    """An INSERT into these columns; with `updated`, an upsert that sets those."""

    table: Table
    names: tuple[str, ...]
    updated: tuple[str, ...] = ()


def _execute_in_lists(connection: Connection, statement: _Statement, rows: Iterable[Row]) -> None:
    source = iter(rows)
    while some := list(islice(source, _SIZES[0])):
        for size in _SIZES:
            while len(some) >= size:
                text = _compiled(connection.dialect, statement, size)
                connection.exec_driver_sql(text, tuple(chain.from_iterable(some[:size])))
                del some[:size]


@lru_cache(maxsize=64)
def _compiled(dialect: Dialect, statement: _Statement, size: int) -> str:
    """SQLAlchemy's text for one row, with its list of values repeated `size` times."""
    one = insert(statement.table)
    if statement.updated:
        values = {name: one.excluded[name] for name in statement.updated}
        one = one.on_conflict_do_update(index_elements=statement.table.primary_key, set_=values)
    compiled = one.compile(dialect=dialect, column_keys=list(statement.names))
    assert tuple(compiled.positiontup or ()) == statement.names  # noqa: S101  # in the table's order
    row = "(" + ", ".join("?" for _ in statement.names) + ")"
    head, values_of_one, tail = str(compiled).partition(row)
    return head + ", ".join([values_of_one] * size) + tail


def _json_text(ids: Iterable[int]) -> ColumnElement[str]:
    return literal(msgspec.json.encode(list(ids)).decode(), Text)


def _time_text(time: datetime) -> str:
    """The text that SQLAlchemy stores and reads for a time in UTC, which it has no offset in."""
    return time.isoformat(" ", "microseconds")[:26]


def _create_private(url: URL) -> None:
    """Create the file for its owner only; SQLite gives its -wal and -shm the same mode."""
    path = Path(url.database or "")
    try:
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except OSError as error:
        raise DatabaseError(
            f"cannot create the database file {path}: {error.strerror}; see database.url"
        ) from error


def _prepare(path: Path, connection: sqlite3.Connection, record: Any) -> None:
    for pragma in _PRAGMAS:
        connection.execute(pragma)
    record.info["file"] = path, _identity(path)


def _begin(connection: Connection) -> None:
    path, opened = connection.info["file"]
    if opened != _identity(path):
        # SQLite would go on writing to a file that nobody can open any more.
        raise DatabaseError(
            f"the database file {path} was deleted or replaced while it was in use: run again"
        )
    if connection.get_execution_options().get("read_only"):
        connection.exec_driver_sql("BEGIN")
        return
    # Changes a file that has another mode, so a reader leaves it alone.
    connection.exec_driver_sql("PRAGMA journal_mode = WAL")
    # A writer locks at once: a transaction that began by reading cannot always be promoted.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _identity(path: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        found = path.stat()
        return found.st_dev, found.st_ino
    return None

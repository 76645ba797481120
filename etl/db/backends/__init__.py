"""What only one database has: a module per database, all with the functions of `Backend`.

Nothing else in the program asks which database it talks to. A module is imported when its database
is opened, so that one database's driver is not needed for another.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import date, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol, cast

from sqlalchemy import Connection, Dialect, Engine, Select, Subquery, Table
from sqlalchemy.engine import URL
from sqlalchemy.types import TypeEngine

from etl.errors import ConfigError

Row = tuple[Any, ...]
# A conflict with another transaction passes at once; a lock or a lost server takes a while.
Outage = Literal["conflict", "unavailable"]


class Encoders(NamedTuple):
    """Functions that turn a time, a date and a JSON text into the value that is written."""

    time: Callable[[datetime], Any]
    date: Callable[[date], Any]
    json: Callable[[str], Any]


class Examination(NamedTuple):
    """What keeps a sync from writing, a sentence with its fix each; and what was not examined."""

    problems: list[str]
    note: str = ""


class Backend(Protocol):
    """The types and functions of a database's module."""

    KEY_TYPE: TypeEngine[Any]
    JSON_TYPE: TypeEngine[Any]
    TEXT_TYPE: TypeEngine[Any]
    TIME_TYPE: TypeEngine[Any]

    def short_text(self, length: int) -> TypeEngine[Any]:
        """The type of a text that is part of an index, of at most `length` characters."""

    def create_engine(self, url: URL) -> Engine:
        """An engine that connects lazily. Raises DatabaseError if the URL cannot be opened."""

    def missing_file(self, url: URL) -> Path | None:
        """The file that opening the database would create; None if it would create none."""

    def risks(self, url: URL) -> list[str]:
        """What is unsafe about where the database lies, a sentence each."""

    def begin_writing(self, connection: Connection, name: str) -> None:
        """Apply the settings of a writing transaction; the server shows it under `name`."""

    def begin_report(self, connection: Connection) -> None:
        """Apply the settings of a transaction that looks up rows among millions."""

    def begin_migrating(self, connection: Connection) -> None:
        """Wait for another migration to end; its tables may not exist yet."""

    def create_schema(self, connection: Connection) -> None:
        """Create the configured schema for the tables if it is missing."""

    def unusable(self, connection: Connection) -> str | None:
        """Why the database cannot hold what the API sends, and what to do; None if it can."""

    def occupied(self, connection: Connection, names: Collection[str]) -> str | None:
        """Which of these names another program uses, and what to do; None if it uses none.

        The database must have nothing of this program.
        """

    def examine(
        self, connection: Connection, tables: Collection[str], *, creates: bool
    ) -> Examination:
        """Whether a sync could write these existing tables, and, if it `creates`, others.

        Changes nothing.
        """

    def comment_on_views(self, connection: Connection, views: Iterable[Table]) -> None:
        """Store the comments of the views and of their columns, if the database can."""

    def server_time(self, connection: Connection) -> datetime | None:
        """The server's time; None if the database runs in this process."""

    def explain(self, error: BaseException, engine: Engine) -> str | None:
        """What happened and what to do, without data; None if the error is not a known one."""

    def outage(self, error: BaseException, engine: Engine) -> Outage | None:
        """Whether the transaction may succeed if it is repeated, and after what."""

    def cancel(self, driver: Any) -> None:
        """End the statement of another thread on the driver's connection, with an error there."""

    def disconnect(self, driver: Any) -> None:
        """End the connection of another thread, whose server does not answer."""

    def end_sessions(self, connection: Connection, name: str) -> list[int]:
        """End this role's other sessions whose transaction has the `name`; return their ids."""

    def lock_holders(self, connection: Connection) -> list[str]:
        """The sessions whose writing transactions are open, for a message."""

    def encoders(self) -> Encoders:
        """The encoders of the values that `insert_rows` and `upsert_rows` take."""

    def id_table(self, ids: Iterable[int]) -> Subquery:
        """These ids as a table with one column, `id`."""

    def lock_rows(self, connection: Connection, table: Table, ids: Iterable[int]) -> None:
        """Lock the rows of these ids, if another node of a cluster could change them meanwhile.

        On one server, the writers' lock keeps others from it.
        """

    def fetch_rows(self, connection: Connection, query: Select[Any]) -> list[Row]:
        """The query's rows, with Python's values; faster than row by row."""

    def overwrite_deleted(self, connection: Connection) -> None:
        """Have the database overwrite what this connection deletes, if it can."""

    def scrub(self, engine: Engine, tables: Iterable[Table]) -> str | None:
        """Remove what deleted rows left in the tables' files; what is left to do, a sentence."""

    def insert_rows(
        self, connection: Connection, table: Table, names: Sequence[str], rows: Iterable[Row]
    ) -> None:
        """Insert encoded rows with these columns, which are in the table's order."""

    def upsert_rows(
        self,
        connection: Connection,
        table: Table,
        names: Sequence[str],
        rows: Collection[Row],
        *,
        kept: Collection[str] = (),
    ) -> None:
        """Insert encoded rows, or update those whose key exists, except the `kept` columns.

        No key may occur twice.
        """


def updated_names(table: Table, names: Iterable[str], kept: Collection[str]) -> tuple[str, ...]:
    """The columns that an upsert of these names sets in a row whose key exists."""
    unchanged = {*table.primary_key.columns.keys(), *kept}
    return tuple(name for name in names if name not in unchanged)


def taken_names(found: Collection[str]) -> str | None:
    """What to say of a database that has these names in use; None if there is none."""
    if not found:
        return None
    return (
        "the database has tables of another program with the names that this one needs "
        f"({', '.join(found)}): use another database"
    )


_MODULES: Final = {
    "mysql": "etl.db.backends.mysql",
    "sqlite": "etl.db.backends.sqlite",
    "postgresql": "etl.db.backends.postgresql",
}


def backend(dialect: Dialect) -> Backend:
    """The backend of a connection's or an engine's dialect."""
    return _backend(dialect.name)


def backend_of_url(url: URL) -> Backend:
    """The backend of a database that is not open yet."""
    return _backend(url.get_backend_name())


def _backend(name: str) -> Backend:
    try:
        return cast("Backend", import_module(_MODULES[name]))
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"The driver {error.name} is not installed. Run: pip install 'linq-etl[{name}]'"
        ) from None

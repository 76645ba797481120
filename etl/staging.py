"""A batch of pages, put where SQL can compare it with what is stored.

One statement a table, whatever the batch's size: COPY in PostgreSQL, one JSON text in SQLite.
The latter is not a matter of taste: a statement a row hands the interpreter's lock back and forth
with whoever decodes the next pages, which made staging 37 times slower than this.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import chain
from typing import Any

import msgspec
from msgspec import UNSET
from psycopg import sql
from psycopg.types.json import Jsonb
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Integer,
    MetaData,
    Table,
    Text,
    column,
    delete,
    func,
    insert,
    select,
)
from sqlalchemy.schema import CreateTable

from etl.tables import BigKey, Json, UtcDateTime
from etl.wire import Chat, Page


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of a number's list; `news` once that number's list has been read to the end before.

    Chats that appear later are news; those that are there at first are the starting stock. If not
    `listed`, its chats were asked for one by one: they exist, which does not put them in the list.
    """

    phone_number: str
    page: Page
    news: bool
    listed: bool = True


CHAT_FIELDS = ("display_name", "service", "is_group", "message_count", "extra")
HANDLE_FIELDS = ("phone_number", "service", "joined_at", "extra")

_metadata = MetaData()


def _temporary(name: str, *columns: Column[Any], **options: Any) -> Table:
    options |= {"prefixes": ["TEMPORARY"], "postgresql_on_commit": "DELETE ROWS"}
    return Table(name, _metadata, *columns, **options)


staged_chats = _temporary(
    "staged_chats",
    Column("id", BigKey, primary_key=True, autoincrement=False),
    Column("display_name", Text),
    Column("service", Text),
    Column("is_group", Boolean),
    Column("message_count", BigInteger),
    Column("extra", Json),
    # One bit for each field that the API left out, in the order of CHAT_FIELDS.
    Column("absent", Integer, nullable=False),
    Column("has_handles", Boolean, nullable=False),
    # The number whose counts it enters: the first that listed it.
    Column("seen_under", Text, nullable=False),
    Column("news", Boolean, nullable=False),
    Column("observed_at", UtcDateTime, nullable=False),
)
staged_handles = _temporary(
    "staged_handles",
    Column("chat_id", BigInteger, primary_key=True, autoincrement=False),
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("phone_number", Text),
    Column("service", Text),
    Column("joined_at", UtcDateTime),
    Column("extra", Json),
    Column("absent", Integer, nullable=False),
    sqlite_with_rowid=False,
)
staged_links = _temporary(
    "staged_links",
    Column("phone_number", Text, primary_key=True),
    Column("chat_id", BigInteger, primary_key=True, autoincrement=False),
    Column("observed_at", UtcDateTime, nullable=False),
    sqlite_with_rowid=False,
)
# What of the batch differs from what is stored, with the values before.
chat_changes = _temporary(
    "chat_changes",
    Column("id", BigInteger),
    *(Column(name, staged_chats.c[name].type) for name in CHAT_FIELDS),
    *(Column(f"old_{name}", staged_chats.c[name].type) for name in CHAT_FIELDS),
    Column("is_new", Boolean),
    Column("was_removed", Boolean),
    Column("seen_under", Text),
    Column("news", Boolean),
    Column("observed_at", UtcDateTime),
)
handle_changes = _temporary(
    "handle_changes",
    Column("chat_id", BigInteger),
    Column("id", BigInteger),
    *(Column(name, staged_handles.c[name].type) for name in HANDLE_FIELDS),
    # inserted, updated, restored or removed
    Column("change", Text),
    Column("of_new_chat", Boolean),
    Column("seen_under", Text),
    Column("observed_at", UtcDateTime),
)
_STAGED = (staged_chats, staged_handles, staged_links)
_ALL = (*_STAGED, chat_changes, handle_changes)


def stage(connection: Connection, listings: Sequence[Listing]) -> None:
    """Fill the staging tables; of a chat that is there twice, what was read last."""
    _prepare(connection)
    latest: dict[int, tuple[Listing, Chat]] = {}
    seen_under: dict[int, str] = {}
    links: dict[tuple[str, int], datetime] = {}
    for listing in sorted(listings, key=lambda listing: listing.page.observed_at):
        for chat in listing.page.chats:
            latest[chat.id] = listing, chat
            seen_under.setdefault(chat.id, listing.phone_number)
            if listing.listed:
                links[listing.phone_number, chat.id] = listing.page.observed_at
    postgresql = connection.dialect.name == "postgresql"
    load, time = (_copy, _same) if postgresql else (_insert_json, _sqlite_time)
    rows = [_chat_row(*item, seen_under[chat_id], time) for chat_id, item in latest.items()]
    load(connection, staged_chats, rows)
    handles = (_handle_rows(chat, time) for _, chat in latest.values())
    load(connection, staged_handles, list(chain.from_iterable(handles)))
    load(connection, staged_links, [(*key, time(observed)) for key, observed in links.items()])


def _chat_row(
    listing: Listing, chat: Chat, seen_under: str, time: Callable[[datetime], Any]
) -> tuple[Any, ...]:
    values, absent = _told((chat.display_name, chat.service, chat.is_group, chat.message_count))
    return (
        chat.id,
        *values,
        chat.extra,
        absent,
        chat.handles is not None,
        seen_under,
        listing.news,
        time(listing.page.observed_at),
    )


def _handle_rows(chat: Chat, time: Callable[[datetime], Any]) -> Iterable[tuple[Any, ...]]:
    # A handle that is listed twice in one chat is one handle: what stands last counts.
    for handle in {handle.id: handle for handle in chat.handles or ()}.values():
        joined_at = handle.joined_at
        if joined_at is not None and joined_at is not UNSET:
            joined_at = time(joined_at)
        values, absent = _told((handle.phone_number, handle.service, joined_at))
        yield (chat.id, handle.id, *values, handle.extra, absent)


def _told(values: tuple[Any, ...]) -> tuple[tuple[Any, ...], int]:
    """The values with None for UNSET, and which of them were UNSET, a bit each."""
    if UNSET not in values:
        return values, 0
    absent = sum(1 << position for position, value in enumerate(values) if value is UNSET)
    return tuple(None if value is UNSET else value for value in values), absent


def _same(time: datetime) -> datetime:
    return time


@lru_cache(maxsize=1024)  # Those who are in a chat have mostly joined at once.
def _sqlite_time(time: datetime) -> str:
    """The form in which SQLAlchemy stores and reads a time."""
    return time.replace(tzinfo=None).isoformat(" ", "microseconds")


def _prepare(connection: Connection) -> None:
    """Make the tables if this connection has none; PostgreSQL empties them at each commit."""
    for table in _ALL:
        connection.execute(CreateTable(table, if_not_exists=True))
    if connection.dialect.name == "sqlite":
        for table in _ALL:
            connection.execute(delete(table))


def _copy(connection: Connection, table: Table, rows: Iterable[tuple[Any, ...]]) -> None:
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
        sql.Identifier(table.name),
        sql.SQL(",").join(sql.Identifier(column.name) for column in table.columns),
    )
    driver: Any = connection.connection.driver_connection
    with driver.cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types([str(c.type.compile(connection.dialect)).lower() for c in table.columns])
        extra = list(table.columns.keys()).index("extra") if "extra" in table.columns else None
        for row in rows:
            copy.write_row(_wrapped(row, extra))


def _wrapped(row: tuple[Any, ...], extra: int | None) -> tuple[Any, ...]:
    """The row with its JSON text, if it has one, marked as such."""
    if extra is None or row[extra] is None:
        return row
    return (*row[:extra], Jsonb(row[extra], dumps=str), *row[extra + 1 :])


def _insert_json(connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
    given = func.json_each(msgspec.json.encode(rows).decode()).table_valued(column("value"))
    cells = [given.c.value.op("->>")(position) for position in range(len(table.columns))]
    connection.execute(insert(table).from_select(list(table.columns), select(*cells)))

"""Chats that may have changed, put where SQL can compare them with what is stored."""

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Integer,
    MetaData,
    Table,
    Text,
    delete,
)
from sqlalchemy.schema import CreateTable

from etl.api.decode import Chat, Handle
from etl.db.bulk import Encoders, Row, encoders, insert_rows
from etl.db.store.batch import (
    CHAT_FIELDS,
    HANDLE_FIELDS,
    Observation,
    chat_values,
    handle_values,
    handles_of,
)
from etl.db.tables import BigKey, Json, UtcDateTime

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
    Column("counted_for", Text, nullable=False),
    Column("observed_at", UtcDateTime, nullable=False),
    Column("digest", BigInteger, nullable=False),
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
# What of the batch differs from what is stored, with the values before.
chat_changes = _temporary(
    "chat_changes",
    Column("id", BigInteger),
    *(Column(name, staged_chats.c[name].type) for name in CHAT_FIELDS),
    *(Column(f"old_{name}", staged_chats.c[name].type) for name in CHAT_FIELDS),
    Column("was_removed", Boolean),
    Column("counted_for", Text),
    Column("observed_at", UtcDateTime),
    Column("digest", BigInteger),
)
handle_changes = _temporary(
    "handle_changes",
    Column("chat_id", BigInteger),
    Column("id", BigInteger),
    *(Column(name, staged_handles.c[name].type) for name in HANDLE_FIELDS),
    # inserted, updated, restored or removed
    Column("change", Text),
    Column("counted_for", Text),
    Column("observed_at", UtcDateTime),
)
_ALL = (staged_chats, staged_handles, chat_changes, handle_changes)


def stage(connection: Connection, readings: Sequence[Observation]) -> None:
    """Fill the staging tables with these readings, and empty those for what will be found."""
    _prepare(connection)
    form = encoders(connection)
    chats = [_chat_row(reading, form) for reading in readings]
    insert_rows(connection, staged_chats, staged_chats.columns.keys(), chats)
    handles = [
        (reading.chat.id, handle.id, *handle_values(handle, form), _absent(handle, HANDLE_FIELDS))
        for reading in readings
        for handle in handles_of(reading.chat)
    ]
    insert_rows(connection, staged_handles, staged_handles.columns.keys(), handles)


def _chat_row(reading: Observation, form: Encoders) -> Row:
    chat = reading.chat
    return (
        chat.id,
        *chat_values(chat, form),
        _absent(chat, CHAT_FIELDS),
        chat.handles is not None,
        reading.counted_for,
        form.time(reading.observed_at),
        reading.digest,
    )


def _absent(record: Chat | Handle, fields: Sequence[str]) -> int:
    """Which of the fields were left out, a bit each."""
    return sum(1 << bit for bit, name in enumerate(fields) if getattr(record, name) is UNSET)


def _prepare(connection: Connection) -> None:
    """Make the tables if this connection has none; PostgreSQL empties them at each commit."""
    for table in _ALL:
        connection.execute(CreateTable(table, if_not_exists=True))
    if connection.dialect.name == "sqlite":
        for table in _ALL:
            connection.execute(delete(table))

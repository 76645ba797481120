"""Find and delete what is stored of one person, a few rows in a transaction.

The caller decides what is theirs; here is the SQL. Every transaction that writes holds the writers'
lock, so that no batch writes the same rows.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import Column, Connection, Table, delete, func, insert, or_, select, update
from sqlalchemy import cast as sql_cast
from sqlalchemy.types import Text

from etl.db import leases
from etl.db.backends import Row, backend
from etl.db.privacy import PrivacyState, read_forgotten, write_state
from etl.db.store.diff import StoredChat
from etl.db.store.read import read_chats
from etl.db.tables import (
    chat_events,
    chat_handles,
    chat_message_counts,
    chat_name_hashes,
    chat_phone_numbers,
    chats,
    forgotten,
    rejected_records,
)

CHUNK: Final = 100  # chats or rows that one transaction erases
# What a chat has, in the order of deletion.
_OF_CHAT: Final[Mapping[Table, Column[Any]]] = {
    chat_events: chat_events.c.chat_id,
    chat_message_counts: chat_message_counts.c.chat_id,
    chat_phone_numbers: chat_phone_numbers.c.chat_id,
    chat_name_hashes: chat_name_hashes.c.chat_id,
    chat_handles: chat_handles.c.chat_id,
    chats: chats.c.id,
}
TABLES: Final = (*_OF_CHAT, rejected_records)  # which can hold participants

Found = list[Row]
Changes = Counter[tuple[str, str]]  # rows by "deleted" or "changed", and by table


class Erasure(NamedTuple):
    """What of a chat is a person's: everything, or the name, `extra` and these participants.

    Of the participants in `extras`, only `extra` is.
    """

    everything: bool = False
    name: bool = False
    extra: bool = False
    handles: tuple[int, ...] = ()
    extras: tuple[int, ...] = ()


def remember_forgotten(
    connection: Connection, state: PrivacyState, mark: str, now: datetime
) -> None:
    """Store the mark, so that from now on no batch stores the person, on any node of a cluster."""
    leases.lock_writers(connection, everywhere=True)
    if mark not in read_forgotten(connection):
        connection.execute(insert(forgotten), {"mark": mark, "forgotten_at": now})
        write_state(connection, state._replace(generation=state.generation + 1))


def find(
    connection: Connection,
    keys: Collection[Column[Any]],
    texts: Collection[Column[Any]],
    needle: str,
    is_theirs: Callable[[Row], bool],
) -> Found:
    """The rows of one table, these columns of it, whose texts are a person's.

    Most others the database leaves out: it looks for the `needle`, in lower case, in each text.
    """
    as_text = [sql_cast(text, Text) for text in texts]
    holds = or_(*(func.lower(text).like(f"%{needle}%") for text in as_text))
    query = select(*keys, *as_text).where(holds)
    streamed = connection.execution_options(yield_per=1000).execute(query)
    return [found for row in streamed if is_theirs(found := tuple(row))]


def erase_chats(
    connection: Connection,
    chat_ids: Collection[int],
    erasure_of: Callable[[StoredChat], Erasure],
    now: datetime,
) -> Changes:
    """Delete or change the rows of these chats; what, is decided once they are locked."""
    _begin(connection)
    changes: Changes = Counter()
    for chat_id, stored in read_chats(connection, chat_ids).items():
        erasure = erasure_of(stored)
        if erasure.everything:
            for table, key in _OF_CHAT.items():
                _delete(connection, table, key == chat_id, changes)
        else:
            _erase_part(connection, chat_id, erasure, now, changes)
    return changes


def _erase_part(
    connection: Connection, chat_id: int, erasure: Erasure, now: datetime, changes: Changes
) -> None:
    handles = chat_handles.c
    if erasure.handles:
        theirs = (handles.chat_id == chat_id) & handles.id.in_(erasure.handles)
        _delete(connection, chat_handles, theirs, changes)
    if erasure.extras:
        others = (handles.chat_id == chat_id) & handles.id.in_(erasure.extras)
        _update(connection, chat_handles, others, changes, extra=None, changed_at=now)
    names = {"display_name": erasure.name, "extra": erasure.extra}
    values: dict[str, Any] = {name: None for name, is_erased in names.items() if is_erased}
    if values:
        values["changed_at"] = now
    # The digest is a hash of what was erased, too; the next sync stores another one.
    _update(connection, chats, chats.c.id == chat_id, changes, digest=None, **values)


def renamings(connection: Connection, chat_ids: Collection[int]) -> Found:
    """The events of these chats in which a name changed, and whether the chat is a group."""
    events = chat_events.c
    columns = (events.id, events.old_value, events.new_value, chats.c.is_group)
    joined = select(*columns).join(chats, chats.c.id == events.chat_id)
    named = joined.where(events.chat_id.in_(chat_ids), events.kind == "renamed")
    return [tuple(row) for row in connection.execute(named)]


def erase_events(
    connection: Connection, erased: Mapping[int, tuple[str | None, str | None] | None]
) -> Changes:
    """Delete the events of these ids, or leave them these values."""
    _begin(connection)
    changes: Changes = Counter()
    for event_id, values in erased.items():
        is_event = chat_events.c.id == event_id
        if values is None:
            _delete(connection, chat_events, is_event, changes)
        else:
            old, new = values
            _update(connection, chat_events, is_event, changes, old_value=old, new_value=new)
    return changes


def erase_rejected(connection: Connection, ids: Collection[int]) -> Changes:
    """Delete the rejected records of these ids."""
    _begin(connection)
    changes: Changes = Counter()
    _delete(connection, rejected_records, rejected_records.c.id.in_(ids), changes)
    return changes


def _begin(connection: Connection) -> None:
    leases.lock_writers(connection)
    backend(connection.dialect).overwrite_deleted(connection)


def _delete(connection: Connection, table: Table, which: Any, changes: Changes) -> None:
    changes["deleted", table.name] += connection.execute(delete(table).where(which)).rowcount


def _update(
    connection: Connection, table: Table, which: Any, changes: Changes, **values: Any
) -> None:
    changed = connection.execute(update(table).where(which).values(**values))
    changes["changed", table.name] += changed.rowcount

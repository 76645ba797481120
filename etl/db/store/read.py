"""Read stored chats with their participants, by id."""

from collections.abc import Iterable, Iterator, Sequence

from sqlalchemy import Column, ColumnElement, Connection, Text, cast, func, select

from etl.api.models import canonical_json
from etl.db.backends import Row, backend
from etl.db.store.diff import ChatRow, HandleRow, StoredChat
from etl.db.tables import chat_handles, chats

PORTION_BYTES = 16 * 1024 * 1024
_ROW_BYTES = 300  # of a participant, besides its texts
_CHAT_COLUMNS = [chats.c[name] for name in ChatRow.__struct_fields__]
_HANDLE_COLUMNS = [chat_handles.c[name] for name in HandleRow.__struct_fields__]


def read_chats(connection: Connection, chat_ids: Iterable[int]) -> dict[int, StoredChat]:
    """The chats of these ids that are stored, removed ones included.

    The ids drive both joins, so that each row is found by its key and the cost follows the batch.
    """
    database = backend(connection.dialect)
    given = database.id_table(chat_ids)
    chat_rows = select(*_CHAT_COLUMNS).select_from(given.join(chats, chats.c.id == given.c.id))
    found = {
        row[0]: StoredChat(ChatRow(*_with_extra_text(row)), {})
        for row in database.fetch_rows(connection, chat_rows)
    }
    handle_rows = select(*_HANDLE_COLUMNS).select_from(
        given.join(chat_handles, chat_handles.c.chat_id == given.c.id)
    )
    for row in database.fetch_rows(connection, handle_rows):
        handle = HandleRow(*_with_extra_text(row))
        found[handle.chat_id].handles[handle.id] = handle
    return found


def portions(connection: Connection, chat_ids: Sequence[int]) -> Iterator[list[int]]:
    """Divide the ids so that the stored chats of each portion take few bytes in memory.

    However little is observed now, much may have been stored before.
    """
    sizes = _stored_sizes(connection, chat_ids)
    portion: list[int] = []
    size = 0
    for chat_id in chat_ids:
        more = sizes.get(chat_id, 0)
        if portion and size + more > PORTION_BYTES:
            yield portion
            portion, size = [], 0
        portion.append(chat_id)
        size += more
    if portion:
        yield portion


def _stored_sizes(connection: Connection, chat_ids: Iterable[int]) -> dict[int, int]:
    """Roughly the most bytes that each chat takes in memory with its participants."""
    database = backend(connection.dialect)
    given = database.id_table(chat_ids)
    of_handles = (
        select(func.sum(_ROW_BYTES + _text_bytes(chat_handles.c.service, chat_handles.c.extra)))
        .where(chat_handles.c.chat_id == given.c.id)
        .scalar_subquery()
    )
    of_chat = _text_bytes(chats.c.display_name, chats.c.service, chats.c.extra)
    sizes = select(chats.c.id, of_chat + func.coalesce(of_handles, 0)).select_from(
        given.join(chats, chats.c.id == given.c.id)
    )
    return dict(database.fetch_rows(connection, sizes))


def _text_bytes(*columns: Column[str]) -> ColumnElement[int]:
    lengths = [func.coalesce(func.length(cast(column, Text)), 0) for column in columns]
    return 4 * sum(lengths[1:], start=lengths[0])


def _with_extra_text(row: Row) -> Row:
    *others, extra = row
    return row if extra is None else (*others, canonical_json(extra))

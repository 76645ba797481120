"""Read stored chats with their participants, by id."""

from collections.abc import Iterable

from sqlalchemy import Connection, select

from etl.api.models import canonical_json
from etl.db.backends import Row, backend
from etl.db.store.diff import ChatRow, HandleRow, StoredChat
from etl.db.tables import chat_handles, chats

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


def _with_extra_text(row: Row) -> Row:
    *others, extra = row
    return row if extra is None else (*others, canonical_json(extra))

"""Chats that are not stored yet, written straight into the tables: nothing to compare them with."""

from collections.abc import Sequence

from sqlalchemy import Connection

from etl.batch import CHAT_FIELDS, HANDLE_FIELDS, Reading, chat_values, handle_values, handles_of
from etl.bulk import forms, insert_rows
from etl.tables import chat_events, chat_handles, chat_message_counts, chats

_CHAT_COLUMNS = ("id", *CHAT_FIELDS, "first_seen_at", "changed_at", "digest")
_HANDLE_COLUMNS = ("chat_id", "id", *HANDLE_FIELDS, "first_seen_at", "changed_at")
_COUNT_COLUMNS = ("chat_id", "observed_at", "message_count", "run_id")
_EVENT_COLUMNS = ("run_id", "observed_at", "chat_id", "kind")


def add_chats(connection: Connection, readings: Sequence[Reading], run_id: int) -> None:
    """Write the chats, their participants, their first message counts, and that they are news.

    A number's starting stock makes no events: only what appears once its list has been read to the
    end is news. Each chat has its first message count all the same, to count from.
    """
    form = forms(connection)
    chat_rows, handle_rows, count_rows, event_rows = [], [], [], []
    for reading in readings:
        chat, at = reading.chat, form.time(reading.observed_at)
        values = chat_values(chat, form)
        chat_rows.append((chat.id, *values, at, at, reading.digest))
        handle_rows += [
            (chat.id, handle.id, *handle_values(handle, form), at, at)
            for handle in handles_of(chat)
        ]
        count_rows.append((chat.id, at, values[3], run_id))
        if reading.news:
            event_rows.append((run_id, at, chat.id, "created"))
    insert_rows(connection, chats, _CHAT_COLUMNS, chat_rows)
    insert_rows(connection, chat_handles, _HANDLE_COLUMNS, handle_rows)
    insert_rows(connection, chat_message_counts, _COUNT_COLUMNS, count_rows)
    insert_rows(connection, chat_events, _EVENT_COLUMNS, event_rows)

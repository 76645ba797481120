"""Chats that are not stored yet, written straight into the tables: nothing to compare them with."""

from collections.abc import Sequence

from sqlalchemy import Connection

from etl.db.bulk import encoders, insert_rows
from etl.db.store.batch import (
    CHAT_FIELDS,
    HANDLE_FIELDS,
    Counts,
    Observation,
    chat_values,
    handle_values,
    handles_of,
    told,
)
from etl.db.tables import chat_events, chat_handles, chat_message_counts, chats

_CHAT_COLUMNS = ("id", *CHAT_FIELDS, "first_seen_at", "changed_at", "digest")
_HANDLE_COLUMNS = ("chat_id", "id", *HANDLE_FIELDS, "first_seen_at", "changed_at")
_COUNT_COLUMNS = ("chat_id", "observed_at", "message_count", "run_id")
_EVENT_COLUMNS = ("run_id", "observed_at", "chat_id", "kind")


def add_chats(
    connection: Connection, readings: Sequence[Observation], counts: Counts, run_id: int
) -> None:
    """Write the chats, their participants, their first message counts, and that they are news.

    A number's starting stock makes no events: only what appears once its list has been read to the
    end is news. Each chat has its first message count all the same, to count from.
    """
    form = encoders(connection)
    added = [(r.chat, handles_of(r.chat), form.time(r.observed_at), r) for r in readings]
    for _, handles, _, reading in added:
        counts[reading.counted_for]["chats_inserted"] += 1
        counts[reading.counted_for]["handles_inserted"] += len(handles)
    insert_rows(
        connection,
        chats,
        _CHAT_COLUMNS,
        ((chat.id, *chat_values(chat, form), at, at, r.digest) for chat, _, at, r in added),
    )
    insert_rows(
        connection,
        chat_handles,
        _HANDLE_COLUMNS,
        (
            (chat.id, handle.id, *handle_values(handle, form), at, at)
            for chat, handles, at, _ in added
            for handle in handles
        ),
    )
    insert_rows(
        connection,
        chat_message_counts,
        _COUNT_COLUMNS,
        ((chat.id, at, told(chat.message_count), run_id) for chat, _, at, _ in added),
    )
    insert_rows(
        connection,
        chat_events,
        _EVENT_COLUMNS,
        [(run_id, at, chat.id, "created") for chat, _, at, r in added if r.emit_created],
    )

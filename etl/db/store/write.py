"""Write the rows of many diffs, each table in one go: chats before their participants."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC
from functools import cache

from sqlalchemy import Connection

from etl.db.backends import Encoders, Row, backend
from etl.db.store.diff import CHAT_FIELDS, HANDLE_FIELDS, Diff
from etl.db.tables import chat_events, chat_handles, chat_message_counts, chats

_CHAT = ("id", *CHAT_FIELDS, "first_seen_at", "changed_at", "removed_at", "digest")
_HANDLE = ("chat_id", "id", *HANDLE_FIELDS, "first_seen_at", "changed_at", "removed_at")
_COUNT = (
    "chat_id",
    "observed_at",
    "message_count",
    "run_id",
    "gained",
    "gained_since",
    "observed_on",
    "spread_days",
)
_EVENT = ("run_id", "observed_at", "chat_id", "kind", "old_value", "new_value")


def write_diffs(connection: Connection, diffs: Sequence[Diff], run_id: int) -> None:
    """Insert what is new, update what has changed, and add to the history."""
    database = backend(connection.dialect)
    encode = database.encoders()
    new = [each for each in diffs if each.chats_inserted]
    changed = [each for each in diffs if not each.chats_inserted]
    keep = {"kept": ("first_seen_at",)}
    if new:
        database.insert_rows(connection, chats, _CHAT, _chat_rows(new, encode))
        database.insert_rows(connection, chat_handles, _HANDLE, _handle_rows(new, encode))
        counts = _count_rows(new, encode, run_id)
        database.insert_rows(connection, chat_message_counts, _COUNT, counts)
    if changed:
        database.upsert_rows(connection, chats, _CHAT, [*_chat_rows(changed, encode)], **keep)
        rows = [*_handle_rows(changed, encode)]
        database.upsert_rows(connection, chat_handles, _HANDLE, rows, **keep)
        rows = [*_count_rows(changed, encode, run_id)]
        database.upsert_rows(connection, chat_message_counts, _COUNT, rows)
    if events := [*_event_rows(diffs, encode, run_id)]:
        database.insert_rows(connection, chat_events, _EVENT, events)


def _chat_rows(diffs: Iterable[Diff], encode: Encoders) -> Iterator[Row]:
    time, json = cache(encode.time), encode.json
    for row in (each.chat for each in diffs if each.chat):
        at = time(row.changed_at)
        yield (
            row.id,
            row.display_name,
            row.service,
            row.is_group,
            row.message_count,
            None if row.extra is None else json(row.extra),
            at,
            at,
            None if row.removed_at is None else time(row.removed_at),
            row.digest,
        )


def _handle_rows(diffs: Iterable[Diff], encode: Encoders) -> Iterator[Row]:
    time, json = encode.time, encode.json
    observed_at = cache(time)  # The same for all chats of a page.
    for each in diffs:
        at = observed_at(each.observation.observed_at)
        for row in each.handles:
            yield (
                row.chat_id,
                row.id,
                row.phone_number,
                row.service,
                None if row.joined_at is None else time(row.joined_at),
                None if row.extra is None else json(row.extra),
                at,
                at,
                None if row.removed_at is None else at,
            )


def _count_rows(diffs: Iterable[Diff], encode: Encoders, run_id: int) -> Iterator[Row]:
    time, day_of = cache(encode.time), cache(lambda time: time.astimezone(UTC).date())
    date = cache(encode.date)
    for each in diffs:
        if each.count:
            count, at = each.count, each.observation.observed_at
            since, day = count.gained_since, day_of(at)
            yield (
                each.observation.chat.id,
                time(at),
                count.message_count,
                run_id,
                count.gained,
                None if since is None else time(since),
                date(day),
                None if since is None else (day - day_of(since)).days + 1,
            )


def _event_rows(diffs: Iterable[Diff], encode: Encoders, run_id: int) -> Iterator[Row]:
    for each in diffs:
        for event in each.events:
            observed_at = encode.time(each.observation.observed_at)
            yield run_id, observed_at, each.observation.chat.id, *event

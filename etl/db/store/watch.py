"""Whether changes of a chat are recorded, and since when a change can have happened.

A number's first load is the beginning of its history and records no changes: on a list that moves,
chats are read again and again before its end. A chat is watched from then on; it stays watched
where another number lists it that was loaded before.
"""

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, select

from etl.db.backends import backend
from etl.db.number_status import last_reads
from etl.db.store.batch import Observation, ObservedPage
from etl.db.tables import chat_phone_numbers, phone_numbers


class Watch(NamedTuple):
    """The latest time at which a watched chat is known not to have changed yet.

    For a chat without a row: not to have been listed yet. None for a chat that is not watched.
    """

    same_until: datetime | None

    @property
    def is_on(self) -> bool:
        """Whether the chat is watched."""
        return self.same_until is not None


UNWATCHED = Watch(same_until=None)


def watch_new(
    connection: Connection, pages: Iterable[ObservedPage], new: Collection[Observation]
) -> dict[int, Watch]:
    """The watched ones of the chats without a row, by id: those that a loaded number lists."""
    if not new:
        return {}
    pages = list(pages)
    reads = _last_reads(connection, {page.phone_number for page in pages})
    ids = {each.chat.id for each in new}
    found: dict[int, Watch] = {}
    for page in pages:
        read_at = reads.get(page.phone_number)
        if read_at is None:
            continue
        for chat in page.page.chats:
            if chat.id in ids:
                found[chat.id] = _later(found.get(chat.id), read_at)
    return found


def watch_stored(connection: Connection, chat_ids: Collection[int]) -> dict[int, Watch]:
    """The watched ones of the stored chats, by id."""
    if not chat_ids:
        return {}
    links = chat_phone_numbers
    database = backend(connection.dialect)
    given = database.id_table(chat_ids)
    listing = select(
        links.c.chat_id,
        links.c.phone_number,
        links.c.first_seen_at,
        links.c.removed_at.is_(None) & links.c.missing_since.is_(None),
    ).select_from(given.join(links, links.c.chat_id == given.c.id))
    rows = database.fetch_rows(connection, listing)
    reads = _last_reads(connection, {row[1] for row in rows})
    found: dict[int, Watch] = {}
    for chat_id, phone_number, first_seen_at, is_listed in rows:
        read_at = reads.get(phone_number)
        if read_at is not None:
            same_until = max(read_at, first_seen_at) if is_listed else first_seen_at
            found[chat_id] = _later(found.get(chat_id), same_until)
    return found


def _last_reads(connection: Connection, numbers: Collection[str]) -> Mapping[str, datetime]:
    """By number, for those that were loaded: when the last run began that read the whole list."""
    given = phone_numbers.c.phone_number.in_(sorted(numbers))
    loaded = select(phone_numbers.c.phone_number, phone_numbers.c.first_loaded_at).where(
        given, phone_numbers.c.first_loaded_at.is_not(None)
    )
    found: dict[str, datetime] = {row[0]: row[1] for row in connection.execute(loaded)}
    return found | last_reads(connection, found.keys()) if found else found


def _later(before: Watch | None, same_until: datetime) -> Watch:
    if before and before.same_until:
        same_until = max(before.same_until, same_until)
    return Watch(same_until)

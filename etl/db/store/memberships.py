"""Which number lists which chat."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from functools import cache
from typing import NamedTuple

from sqlalchemy import Connection, and_, bindparam, func, select, update

from etl.db.backends import backend
from etl.db.store.batch import ObservedPage
from etl.db.tables import chat_phone_numbers

_links = chat_phone_numbers
_absent_since = func.coalesce(_links.c.removed_at, _links.c.missing_since)


class Gained(NamedTuple):
    """Chats that are in a number's list and were not: without a row, and with one to restore.

    Each new one with the time at which it was seen.
    """

    new: dict[int, datetime]
    restored: list[int]


def store_memberships(connection: Connection, pages: Iterable[ObservedPage], now: datetime) -> None:
    """Insert the memberships that are new and restore those that were removed or missing."""
    database = backend(connection.dialect)
    time = cache(database.encoders().time)  # The same for all chats of a page.
    new = []
    for phone_number, gained in gained_memberships(connection, pages, now):
        new += [(phone_number, chat_id, time(at)) for chat_id, at in gained.new.items()]
        _restore(connection, phone_number, gained.restored)
    if new:
        names = ("phone_number", "chat_id", "first_seen_at")
        database.insert_rows(connection, _links, names, new)


def gained_memberships(
    connection: Connection, pages: Iterable[ObservedPage], now: datetime
) -> Iterator[tuple[str, Gained]]:
    """By number, the memberships that its pages add.

    A membership removed after the observation stays removed. Ignore timestamps ahead of `now`:
    after a wrong clock, such a membership would never be restored.
    """
    database = backend(connection.dialect)
    for phone_number, seen in _listed(pages).items():
        given = database.id_table(seen)
        mine = and_(_links.c.chat_id == given.c.id, _links.c.phone_number == phone_number)
        # An outer join, so that the ids drive it and each membership is found by its key.
        query = select(_links.c.chat_id, _absent_since).select_from(given.outerjoin(_links, mine))
        stored: dict[int, datetime | None] = dict(database.fetch_rows(connection, query))
        new = {chat_id: seen[chat_id] for chat_id in sorted(seen.keys() - stored.keys())}
        restored = [
            chat_id
            for chat_id, since in stored.items()
            if since and (since <= seen[chat_id] or since > now)
        ]
        yield phone_number, Gained(new, restored)


def _listed(pages: Iterable[ObservedPage]) -> Mapping[str, Mapping[int, datetime]]:
    """By number, when each chat was last seen in its list."""
    found: dict[str, dict[int, datetime]] = {}
    for page in sorted(pages, key=lambda page: page.page.observed_at):
        if page.listed:
            seen = dict.fromkeys((chat.id for chat in page.page.chats), page.page.observed_at)
            found.setdefault(page.phone_number, {}).update(seen)
    return found


def _restore(connection: Connection, phone_number: str, chat_ids: list[int]) -> None:
    if chat_ids:
        restored = update(_links).where(
            _links.c.phone_number == phone_number, _links.c.chat_id == bindparam("restored_id")
        )
        connection.execute(
            restored.values(removed_at=None, missing_since=None),
            [{"restored_id": chat_id} for chat_id in chat_ids],
        )

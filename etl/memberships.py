"""Which number's list holds which chat."""

from collections.abc import Collection, Mapping
from datetime import datetime

from sqlalchemy import Connection, and_, func, or_, select, update

from etl.bulk import forms, given_ids, insert_rows
from etl.tables import chat_phone_numbers

_links = chat_phone_numbers


def store_memberships(
    connection: Connection,
    listed: Mapping[str, Mapping[int, datetime]],
    *,
    new_chats: Collection[int],
    now: datetime,
) -> None:
    """Note which numbers list which chats, by when that was read; bring back those that were gone.

    Of `new_chats` no membership can be stored yet.
    """
    time = forms(connection).time
    rows = []
    for phone_number, seen in listed.items():
        known = [chat_id for chat_id in seen if chat_id not in new_chats]
        found = _unlisted(connection, phone_number, known) if known else []
        added = [chat_id for chat_id in seen if chat_id in new_chats]
        added += [chat_id for chat_id, since in found if since is None]
        rows += [(phone_number, chat_id, time(seen[chat_id])) for chat_id in added]
        back = [
            chat_id for chat_id, since in found if since and (since <= seen[chat_id] or since > now)
        ]
        if back:
            _bring_back(connection, phone_number, back)
    insert_rows(connection, _links, ("phone_number", "chat_id", "first_seen_at"), rows)


def _unlisted(
    connection: Connection, phone_number: str, chat_ids: Collection[int]
) -> list[tuple[int, datetime | None]]:
    """Those that are not in the list as it is stored, and since when; None if they never were."""
    given = given_ids(connection, chat_ids).subquery()
    (chat_id,) = given.columns
    since = func.coalesce(_links.c.removed_at, _links.c.missing_since)
    same = and_(_links.c.phone_number == phone_number, _links.c.chat_id == chat_id)
    rows = connection.execute(
        select(chat_id, since)
        .select_from(given.outerjoin(_links, same))
        .where(or_(_links.c.chat_id.is_(None), since.is_not(None)))
    )
    return [(found, moment) for found, moment in rows]


def _bring_back(connection: Connection, phone_number: str, chat_ids: Collection[int]) -> None:
    ids = given_ids(connection, chat_ids)
    mine = and_(_links.c.phone_number == phone_number, _links.c.chat_id.in_(ids))
    connection.execute(update(_links).where(mine).values(removed_at=None, missing_since=None))

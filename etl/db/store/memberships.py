"""Which number's list holds which chat."""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import Connection, and_, bindparam, case, func, select, update

from etl.db.bulk import encoders, id_table, insert_rows, lookup_by_id
from etl.db.tables import chat_phone_numbers

_links = chat_phone_numbers
_gone_since = func.coalesce(_links.c.removed_at, _links.c.missing_since)


def store_memberships(
    connection: Connection, listed: Mapping[str, Mapping[int, datetime]], now: datetime
) -> None:
    """Note which numbers list which chats, by when that was read; bring back those that were gone.

    What is from the future is later than nothing, so that it does not stay for ever.
    """
    time = encoders(connection).time
    rows = []
    for phone_number, seen in listed.items():
        mine, is_here = _links.c.phone_number == phone_number, case((_gone_since.is_(None), 1))
        here = lookup_by_id(connection, seen, _links.c.chat_id, is_here, mine)
        rows += [(phone_number, i, time(seen[i])) for i in sorted(seen.keys() - here.keys())]
        gone = {chat_id: seen[chat_id] for chat_id in here if not here[chat_id]}
        if gone:
            _bring_back(connection, phone_number, gone, now)
    insert_rows(connection, _links, ("phone_number", "chat_id", "first_seen_at"), rows)


def _bring_back(
    connection: Connection, phone_number: str, seen: Mapping[int, datetime], now: datetime
) -> None:
    given = id_table(connection, seen)
    mine = _links.c.phone_number == phone_number
    rows = given.outerjoin(_links, and_(mine, _links.c.chat_id == given.c.id))
    gone = connection.execute(select(given.c.id, _gone_since).select_from(rows))
    back = [{"back": i} for i, since in gone if since <= seen[i] or since > now]
    if back:
        again = update(_links).where(mine, _links.c.chat_id == bindparam("back"))
        connection.execute(again.values(removed_at=None, missing_since=None), back)

"""Compare a page with what is stored, without writing: what a quick reading looks at."""

from dataclasses import dataclass
from datetime import datetime

from msgspec import UNSET
from sqlalchemy import Connection, and_, case, select

from etl.db.backends import backend
from etl.db.store.batch import ObservedPage, latest_observations
from etl.db.store.names import NameHashes, settled
from etl.db.tables import chat_phone_numbers, chats


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ids of a page: chats that differ from their rows, or whose rows changed lately.

    `moved` are those among them that are new or have another message count; `new_in_list` are not
    known to be in the number's list.
    """

    changed: frozenset[int]
    moved: frozenset[int]
    new_in_list: frozenset[int]


def compare_page(
    connection: Connection,
    page: ObservedPage,
    since: datetime,
    name_hashes: NameHashes | None = None,
) -> Comparison:
    """Compare with the stored rows. A row changed lately if another number's run did so `since`.

    `name_hashes` as in store_pages.
    """
    database = backend(connection.dialect)
    links = chat_phone_numbers
    observations = latest_observations([page])
    if name_hashes:
        observations = settled(connection, observations, name_hashes)
    given = database.id_table(observations)
    mine = and_(links.c.chat_id == given.c.id, links.c.phone_number == page.phone_number)
    is_listed = and_(
        links.c.chat_id.is_not(None), links.c.removed_at.is_(None), links.c.missing_since.is_(None)
    )
    columns = (
        given.c.id,
        case((chats.c.removed_at.is_(None), chats.c.digest)),
        chats.c.message_count,
        chats.c.changed_at,
        case((is_listed, 1), else_=0),
    )
    rows = select(*columns).select_from(
        given.outerjoin(chats, chats.c.id == given.c.id).outerjoin(links, mine)
    )
    stored = {row[0]: row[1:] for row in database.fetch_rows(connection, rows)}
    changed, moved, new_in_list = set(), set(), set()
    for each in observations.values():
        chat_id, count = each.chat.id, each.chat.message_count
        digest, stored_count, changed_at, listed = stored[chat_id]
        if digest != each.digest or changed_at > since:
            changed.add(chat_id)
        if digest != each.digest and (changed_at is None or count not in (UNSET, stored_count)):
            moved.add(chat_id)
        if not listed:
            new_in_list.add(chat_id)
    return Comparison(frozenset(changed), frozenset(moved), frozenset(new_in_list))

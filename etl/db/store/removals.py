"""Mark the chats that a walk did not see: gone, left this list, or missing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, exists, insert, select, update

from etl.db.chunks import chunks
from etl.db.store.unwritten import Unwritten
from etl.db.store.watch import watch_stored
from etl.db.tables import chat_events, chat_phone_numbers, chats

CHUNK = 5000  # ids in one statement
_links = chat_phone_numbers


@dataclass(frozen=True, slots=True)
class Removals:
    """What became of the known chats that a walk of the number's list did not see.

    `gone`: the API says that there is no such chat. `left`: the chat exists and is not in this list
    any more. `missing`: neither is known.
    """

    phone_number: str
    gone: tuple[int, ...]
    left: tuple[int, ...]
    missing: tuple[int, ...]
    observed_at: datetime


def known_chats(connection: Connection, phone_number: str) -> Iterator[tuple[bool, list[int]]]:
    """The ids that the number lists, in chunks, each with whether the last walk missed them."""
    listed = and_(_links.c.phone_number == phone_number, _links.c.removed_at.is_(None))
    is_missing = _links.c.missing_since.is_not(None)
    # A short list in one statement: a cursor at the server takes four round trips.
    first = select(_links.c.chat_id, is_missing).where(listed).limit(CHUNK)
    rows = connection.execute(first).all()
    for missing in (False, True):
        if len(rows) < CHUNK:
            yield missing, [row[0] for row in rows if row[1] == missing]
            continue
        ids = select(_links.c.chat_id).where(listed, is_missing if missing else ~is_missing)
        streamed = connection.execution_options(yield_per=CHUNK).execute(ids)
        for chunk in streamed.scalars().partitions():
            yield missing, list(chunk)


def store_removals(connection: Connection, removals: Removals, *, run_id: int) -> int:
    """Write them; return how many chats no number lists any more.

    A chat that another number lists stays; that number's walk will ask for it too.
    """
    at = removals.observed_at
    removed = 0
    for chat_ids in chunks(removals.missing, CHUNK):
        unmarked = _links.c.missing_since.is_(None)
        _mark(connection, removals.phone_number, chat_ids, unmarked, missing_since=at)
    for chat_ids in chunks((*removals.left, *removals.gone), CHUNK):
        present = _links.c.removed_at.is_(None)
        values = {"removed_at": at, "missing_since": None}
        _mark(connection, removals.phone_number, chat_ids, present, **values)
    for chat_ids in chunks(removals.gone, CHUNK):
        removed += _remove_unlisted(connection, chat_ids, run_id, at)
    return removed


def count_removals(connection: Connection, removals: Removals, unwritten: Unwritten) -> int:
    """Return what `store_removals` would return, and add it to `unwritten`; reads only."""
    lost = (*removals.left, *removals.gone)
    unwritten.set_listed(removals.phone_number, lost, is_listed=False)
    removed = 0
    for chat_ids in chunks(removals.gone, CHUNK):
        present = chats.c.id.in_(chat_ids), chats.c.removed_at.is_(None)
        listing = _links.c.chat_id.in_(chat_ids), _links.c.removed_at.is_(None)
        rows = connection.execute(select(_links.c.phone_number, _links.c.chat_id).where(*listing))
        listed = {(row[0], row[1]): True for row in rows} | unwritten.memberships(chat_ids)
        others = {chat_id for (_, chat_id), is_listed in listed.items() if is_listed}
        stored = {*connection.execute(select(chats.c.id).where(*present)).scalars()}
        removed += unwritten.add_removed((stored | unwritten.changed(chat_ids)) - others)
    return removed


def _mark(
    connection: Connection,
    phone_number: str,
    chat_ids: Sequence[int],
    condition: ColumnElement[bool],
    **values: datetime | None,
) -> None:
    mine = and_(_links.c.phone_number == phone_number, _links.c.chat_id.in_(chat_ids))
    connection.execute(update(_links).where(mine, condition).values(values))


def _remove_unlisted(
    connection: Connection, chat_ids: Sequence[int], run_id: int, at: datetime
) -> int:
    """Mark those of the chats that no number lists; return how many.

    Each gets an event, unless it was listed only by numbers that are not loaded yet.
    """
    listed = exists().where(_links.c.chat_id == chats.c.id, _links.c.removed_at.is_(None))
    unlisted = select(chats.c.id).where(
        chats.c.id.in_(chat_ids), chats.c.removed_at.is_(None), ~listed
    )
    removed = sorted(connection.execute(unlisted).scalars())
    if removed:
        of_removed = chats.c.id.in_(removed)
        connection.execute(update(chats).where(of_removed).values(removed_at=at, changed_at=at))
        event = {"run_id": run_id, "observed_at": at, "kind": "removed"}
        watched = watch_stored(connection, removed)
        if rows := [{**event, "chat_id": chat_id} for chat_id in removed if chat_id in watched]:
            connection.execute(insert(chat_events), rows)
    return len(removed)

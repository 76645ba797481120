"""A batch of pages into the tables: staged, compared, and only what differs is written.

Each step is a statement or two for the whole batch, so its cost depends on the batch and not on
the tables. What was read later is never overwritten by what was read earlier, and what is not
listed in its chat any more is marked, never deleted.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Table,
    Text,
    and_,
    case,
    exists,
    func,
    insert,
    literal,
    not_,
    null,
    or_,
    select,
    update,
)

from etl.history import (
    record_chat_events,
    record_counts,
    record_handle_events,
    record_removals,
)
from etl.staging import (
    CHAT_FIELDS,
    HANDLE_FIELDS,
    Listing,
    chat_changes,
    handle_changes,
    stage,
    staged_chats,
    staged_handles,
    staged_links,
)
from etl.tables import (
    chat_handles,
    chat_phone_numbers,
    chats,
    rejected_records,
)

LOT = 5000  # ids in one statement


@dataclass(frozen=True, slots=True)
class Absence:
    """What became of the chats that a walk of the number's list did not see.

    `gone`: the API says that there is no such chat. `left`: it exists and is not in this list any
    more. `missing`: neither is known.
    """

    phone_number: str
    gone: tuple[int, ...]
    left: tuple[int, ...]
    missing: tuple[int, ...]
    observed_at: datetime


def store(
    connection: Connection, listings: Sequence[Listing], *, run_id: int, now: datetime
) -> dict[str, Counter[str]]:
    """Write the pages in the caller's transaction; return the run log's counts per number."""
    _plan_by_index(connection)
    stage(connection, listings)
    counts = {listing.phone_number: Counter[str]() for listing in listings}
    if _find_chat_changes(connection, now):
        _count_chats(connection, counts)
        _apply_chat_changes(connection)
        record_counts(connection, run_id)
        record_chat_events(connection, run_id)
    if _find_handle_changes(connection, now):
        _count_handles(connection, counts)
        _apply_handle_changes(connection)
        record_handle_events(connection, run_id)
    _apply_links(connection, now)
    _store_rejected(connection, listings, run_id)
    _count_pages(listings, counts)
    return counts


def _plan_by_index(connection: Connection) -> None:
    """Make PostgreSQL look rows up by key: it takes a batch for large, and hashes whole tables.

    It would also compile the larger statements, which takes ten times as long as running them.
    """
    if connection.dialect.name == "postgresql":
        off = ("enable_hashjoin", "enable_mergejoin", "jit")
        connection.execute(select(*(func.set_config(name, "off", True) for name in off)))


def _each(key: ColumnElement[Any]) -> ColumnElement[Any]:
    """A batch's key, by which rows are looked up, never the other way round.

    Neither database knows how small a batch is. An index cannot serve an expression, so this side
    of the comparison is the one that is gone through.
    """
    return key + ("" if isinstance(key.type, Text) else 0)


def known_chats(connection: Connection, phone_number: str) -> Iterator[tuple[bool, list[int]]]:
    """The chats of the number's list, in lots: whether the last walk missed them, and their ids."""
    links = chat_phone_numbers
    for missing in (False, True):
        ids = select(links.c.chat_id).where(
            links.c.phone_number == phone_number,
            links.c.removed_at.is_(None),
            links.c.missing_since.is_not(None) if missing else links.c.missing_since.is_(None),
        )
        for lot in connection.execution_options(yield_per=LOT).execute(ids).scalars().partitions():
            yield missing, list(lot)


def store_absence(connection: Connection, absence: Absence, *, run_id: int) -> int:
    """Mark what is gone from the number's list; return how many chats are gone altogether.

    A chat that another number still lists is not: there the same question will be asked.
    """
    links, at = chat_phone_numbers, absence.observed_at
    removed = 0
    for chat_ids in _lots(absence.missing):
        unmarked = links.c.missing_since.is_(None)
        _mark(connection, absence, chat_ids, unmarked, {"missing_since": at})
    for chat_ids in _lots((*absence.left, *absence.gone)):
        present = links.c.removed_at.is_(None)
        _mark(connection, absence, chat_ids, present, {"removed_at": at, "missing_since": None})
    for chat_ids in _lots(absence.gone):
        listed = exists().where(links.c.chat_id == chats.c.id, links.c.removed_at.is_(None))
        gone = update(chats).where(chats.c.id.in_(chat_ids), chats.c.removed_at.is_(None), ~listed)
        ids = connection.execute(gone.values(removed_at=at, changed_at=at).returning(chats.c.id))
        if dead := sorted(ids.scalars()):
            record_removals(connection, dead, run_id, at)
            removed += len(dead)
    return removed


def _mark(
    connection: Connection,
    absence: Absence,
    chat_ids: Sequence[int],
    condition: ColumnElement[bool],
    values: dict[str, datetime | None],
) -> None:
    links = chat_phone_numbers
    mine = and_(links.c.phone_number == absence.phone_number, links.c.chat_id.in_(chat_ids))
    connection.execute(update(links).where(mine, condition).values(values))


def _lots(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (ids[start : start + LOT] for start in range(0, len(ids), LOT))


# Comparing


def _find_chat_changes(connection: Connection, now: datetime) -> int:
    new = {name: _told(staged_chats, chats, name, bit) for bit, name in enumerate(CHAT_FIELDS)}
    is_new = chats.c.id.is_(None)
    differs = or_(
        chats.c.removed_at.is_not(None),
        *(value.is_distinct_from(chats.c[name]) for name, value in new.items()),
    )
    changes = (
        select(
            staged_chats.c.id,
            *new.values(),
            *(chats.c[name] for name in CHAT_FIELDS),
            is_new,
            chats.c.removed_at.is_not(None),
            staged_chats.c.seen_under,
            staged_chats.c.news,
            staged_chats.c.observed_at,
        )
        .select_from(staged_chats.outerjoin(chats, chats.c.id == _each(staged_chats.c.id)))
        .where(or_(is_new, and_(_not_newer(chats, staged_chats.c.observed_at, now), differs)))
    )
    return _insert_select(connection, chat_changes, changes)


def _find_handle_changes(connection: Connection, now: datetime) -> int:
    listed = staged_handles.join(staged_chats, staged_chats.c.id == _each(staged_handles.c.chat_id))
    same_handle = and_(
        chat_handles.c.chat_id == staged_handles.c.chat_id, chat_handles.c.id == staged_handles.c.id
    )
    new = {
        name: _told(staged_handles, chat_handles, name, b) for b, name in enumerate(HANDLE_FIELDS)
    }
    is_new, was_removed = chat_handles.c.id.is_(None), chat_handles.c.removed_at.is_not(None)
    # Nothing is stored of a participant who was not there any more when the chat was read later.
    read_later = exists().where(
        chats.c.id == staged_handles.c.chat_id,
        ~_not_newer(chats, staged_chats.c.observed_at, now),
    )
    differs = or_(
        was_removed,
        *(value.is_distinct_from(chat_handles.c[name]) for name, value in new.items()),
    )
    present = (
        select(
            staged_handles.c.chat_id,
            staged_handles.c.id,
            *new.values(),
            case((is_new, "inserted"), (was_removed, "restored"), else_="updated"),
            staged_chats.c.seen_under,
            staged_chats.c.observed_at,
        )
        .select_from(listed.outerjoin(chat_handles, same_handle))
        .where(
            or_(
                and_(is_new, ~read_later),
                and_(_not_newer(chat_handles, staged_chats.c.observed_at, now), differs),
            )
        )
    )
    found = _insert_select(connection, handle_changes, present)
    return found + _find_leavers(connection, now)


def _find_leavers(connection: Connection, now: datetime) -> int:
    left = and_(
        chat_handles.c.chat_id == staged_chats.c.id,
        chat_handles.c.removed_at.is_(None),
        _not_newer(chat_handles, staged_chats.c.observed_at, now),
        ~exists().where(
            staged_handles.c.chat_id == chat_handles.c.chat_id,
            staged_handles.c.id == chat_handles.c.id,
        ),
    )
    # A count for each chat of the batch: as a join, PostgreSQL would go through all handles.
    leavers = select(func.count()).where(left).correlate(staged_chats).scalar_subquery()
    in_batch = select(staged_chats.c.id).where(staged_chats.c.has_handles, leavers > 0)
    chat_ids = list(connection.execute(in_batch).scalars())
    if not chat_ids:
        return 0
    gone = select(
        chat_handles.c.chat_id,
        chat_handles.c.id,
        *(chat_handles.c[name] for name in HANDLE_FIELDS),
        literal("removed"),
        staged_chats.c.seen_under,
        staged_chats.c.observed_at,
    ).where(left, chat_handles.c.chat_id.in_(chat_ids))
    return _insert_select(connection, handle_changes, gone)


def _told(staged: Table, stored: Table, name: str, bit: int) -> ColumnElement[Any]:
    """What the API said of a field; where it left the field out, what is stored."""
    told = staged.c.absent.bitwise_and(1 << bit) == 0
    return case((told, staged.c[name]), else_=stored.c[name])


def _not_newer(
    stored: Table, observed_at: ColumnElement[datetime], now: datetime
) -> ColumnElement[bool]:
    """Whether the stored row is no newer than what was read; one from the future never is."""
    return or_(stored.c.changed_at <= observed_at, stored.c.changed_at > now)


# Writing


def _apply_chat_changes(connection: Connection) -> None:
    new = chat_changes
    _insert_select(
        connection,
        chats,
        select(
            new.c.id,
            *(new.c[name] for name in CHAT_FIELDS),
            new.c.observed_at,
            new.c.observed_at,
            null(),
        ).where(new.c.is_new),
    )
    values = {name: new.c[name] for name in CHAT_FIELDS}
    connection.execute(
        update(chats)
        .where(chats.c.id == _each(new.c.id), not_(new.c.is_new))
        .values(**values, changed_at=new.c.observed_at, removed_at=None)
    )


def _apply_handle_changes(connection: Connection) -> None:
    new = handle_changes
    _insert_select(
        connection,
        chat_handles,
        select(
            new.c.chat_id,
            new.c.id,
            *(new.c[name] for name in HANDLE_FIELDS),
            new.c.observed_at,
            new.c.observed_at,
            null(),
        ).where(new.c.change == "inserted"),
    )
    values = {name: new.c[name] for name in HANDLE_FIELDS}
    connection.execute(
        update(chat_handles)
        .where(
            chat_handles.c.chat_id == _each(new.c.chat_id),
            chat_handles.c.id == _each(new.c.id),
            new.c.change != "inserted",
        )
        .values(
            **values,
            changed_at=new.c.observed_at,
            removed_at=case((new.c.change == "removed", new.c.observed_at), else_=null()),
        )
    )


def _apply_links(connection: Connection, now: datetime) -> None:
    links, listed = chat_phone_numbers, staged_links
    same = and_(
        links.c.phone_number == _each(listed.c.phone_number),
        links.c.chat_id == _each(listed.c.chat_id),
    )
    _insert_select(
        connection,
        links,
        select(listed.c.phone_number, listed.c.chat_id, listed.c.observed_at, null(), null())
        .select_from(listed.outerjoin(links, same))
        .where(links.c.chat_id.is_(None)),
    )
    since = func.coalesce(links.c.removed_at, links.c.missing_since)
    back = or_(since <= listed.c.observed_at, since > now)
    connection.execute(update(links).where(same, back).values(removed_at=None, missing_since=None))


def _store_rejected(connection: Connection, listings: Sequence[Listing], run_id: int) -> None:
    rows = [
        {
            "run_id": run_id,
            "phone_number": listing.phone_number,
            "page": listing.page.number,
            "reason": rejected.reason,
            "payload": json.loads(rejected.payload),
        }
        for listing in listings
        for rejected in listing.page.rejected
    ]
    if rows:
        connection.execute(insert(rejected_records), rows)


# Counting


def _count_chats(connection: Connection, counts: dict[str, Counter[str]]) -> None:
    kind = case((chat_changes.c.is_new, "chats_inserted"), else_="chats_updated")
    _count(connection, chat_changes, kind, counts)


def _count_handles(connection: Connection, counts: dict[str, Counter[str]]) -> None:
    kind = case(
        (handle_changes.c.change == "inserted", "handles_inserted"),
        (handle_changes.c.change == "removed", "handles_removed"),
        else_="handles_updated",
    )
    _count(connection, handle_changes, kind, counts)


def _count(
    connection: Connection,
    changes: Table,
    kind: ColumnElement[str],
    counts: dict[str, Counter[str]],
) -> None:
    grouped = select(changes.c.seen_under, kind, func.count()).group_by(changes.c.seen_under, kind)
    for phone_number, name, number in connection.execute(grouped):
        counts[phone_number][name] += number


def _count_pages(listings: Sequence[Listing], counts: dict[str, Counter[str]]) -> None:
    for listing in listings:
        count, page = counts[listing.phone_number], listing.page
        count["pages"] += listing.listed
        count["chats_seen"] += len(page.chats)
        count["rejected"] += len(page.rejected)
        count["texts_cleaned"] += page.texts_cleaned
    for count in counts.values():
        written = count["chats_inserted"] + count["chats_updated"]
        count["chats_unchanged"] = count["chats_seen"] - written


def _insert_select(connection: Connection, target: Table, rows: Select[Any]) -> int:
    return connection.execute(insert(target).from_select(list(target.columns), rows)).rowcount

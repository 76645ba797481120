"""A batch of pages into the tables: staged, compared, and only what differs is written.

Each step is a statement or two for the whole batch, so its cost depends on the batch and not on
the tables. What was read later is never overwritten by what was read earlier, and what is not
listed in its chat any more is marked, never deleted.
"""

import json
from collections import Counter
from collections.abc import Sequence
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
    false,
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
from etl.wire import json_text


def store(
    connection: Connection, listings: Sequence[Listing], *, run_id: int, now: datetime
) -> dict[str, Counter[str]]:
    """Write the pages in the caller's transaction; return the run log's counts per number."""
    _plan_by_index(connection)
    stage(connection, listings)
    counts = {listing.phone_number: Counter[str]() for listing in listings}
    changed_chats = _find_chat_changes(connection, now) and _count_chats(connection, counts)
    changed_handles = _find_handle_changes(connection, now) and _count_handles(connection, counts)
    if changed_chats:
        _apply_chat_changes(connection, changed_chats)
        record_counts(connection, run_id)
        record_chat_events(connection, run_id)
    if changed_handles:
        _apply_handle_changes(connection, changed_handles)
        record_handle_events(connection, run_id)
    _apply_links(connection, now)
    _store_rejected(connection, listings, run_id, counts)
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
    same_handle = and_(
        chat_handles.c.chat_id == staged_handles.c.chat_id, chat_handles.c.id == staged_handles.c.id
    )
    rows = (
        staged_handles.join(staged_chats, staged_chats.c.id == _each(staged_handles.c.chat_id))
        .outerjoin(chats, chats.c.id == _each(staged_handles.c.chat_id))
        .outerjoin(chat_handles, same_handle)
    )
    new = {
        name: _told(staged_handles, chat_handles, name, b) for b, name in enumerate(HANDLE_FIELDS)
    }
    is_new, was_removed = chat_handles.c.id.is_(None), chat_handles.c.removed_at.is_not(None)
    of_new_chat = chats.c.id.is_(None)
    differs = or_(
        was_removed,
        *(value.is_distinct_from(chat_handles.c[name]) for name, value in new.items()),
    )
    # Nothing is stored of a participant who was not there any more when the chat was read later.
    news = and_(is_new, or_(of_new_chat, _not_newer(chats, staged_chats.c.observed_at, now)))
    changed = and_(_not_newer(chat_handles, staged_chats.c.observed_at, now), differs)
    present = select(
        staged_handles.c.chat_id,
        staged_handles.c.id,
        *new.values(),
        case((is_new, "inserted"), (was_removed, "restored"), else_="updated"),
        of_new_chat,
        staged_chats.c.seen_under,
        staged_chats.c.observed_at,
    ).select_from(rows)
    found = _insert_select(connection, handle_changes, present.where(or_(news, changed)))
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
        false(),
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


def _apply_chat_changes(connection: Connection, changed: Counter[str]) -> None:
    new = chat_changes
    values = {name: new.c[name] for name in CHAT_FIELDS}
    times = (new.c.observed_at, new.c.observed_at, null())
    if changed["chats_inserted"]:
        rows = select(new.c.id, *values.values(), *times).where(new.c.is_new)
        _insert_select(connection, chats, rows)
    if changed["chats_updated"]:
        connection.execute(
            update(chats)
            .where(chats.c.id == _each(new.c.id), not_(new.c.is_new))
            .values(**values, changed_at=new.c.observed_at, removed_at=None)
        )


def _apply_handle_changes(connection: Connection, changed: Counter[str]) -> None:
    new = handle_changes
    values = {name: new.c[name] for name in HANDLE_FIELDS}
    times = (new.c.observed_at, new.c.observed_at, null())
    if changed["handles_inserted"]:
        rows = select(new.c.chat_id, new.c.id, *values.values(), *times)
        _insert_select(connection, chat_handles, rows.where(new.c.change == "inserted"))
    if changed["handles_updated"] or changed["handles_removed"]:
        removed_at = case((new.c.change == "removed", new.c.observed_at), else_=null())
        connection.execute(
            update(chat_handles)
            .where(
                chat_handles.c.chat_id == _each(new.c.chat_id),
                chat_handles.c.id == _each(new.c.id),
                new.c.change != "inserted",
            )
            .values(**values, changed_at=new.c.observed_at, removed_at=removed_at)
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


def _store_rejected(
    connection: Connection,
    listings: Sequence[Listing],
    run_id: int,
    counts: dict[str, Counter[str]],
) -> None:
    """Keep what could not be stored, once a run however often it was read."""
    found = {
        (listing.phone_number, rejected.payload): {
            "run_id": run_id,
            "phone_number": listing.phone_number,
            "page": listing.page.number,
            "reason": rejected.reason,
            "payload": json.loads(rejected.payload),
        }
        for listing in listings
        for rejected in listing.page.rejected
    }
    if not found:
        return
    kept = select(rejected_records.c.phone_number, rejected_records.c.payload)
    for phone_number, payload in connection.execute(
        kept.where(rejected_records.c.run_id == run_id)
    ):
        found.pop((phone_number, json_text(payload)), None)
    for phone_number, _ in found:
        counts[phone_number]["rejected"] += 1
    if found:
        connection.execute(insert(rejected_records), list(found.values()))


# Counting


def _count_chats(connection: Connection, counts: dict[str, Counter[str]]) -> Counter[str]:
    kind = case((chat_changes.c.is_new, "chats_inserted"), else_="chats_updated")
    return _count(connection, chat_changes, kind, counts)


def _count_handles(connection: Connection, counts: dict[str, Counter[str]]) -> Counter[str]:
    kind = case(
        (handle_changes.c.change == "inserted", "handles_inserted"),
        (handle_changes.c.change == "removed", "handles_removed"),
        else_="handles_updated",
    )
    return _count(connection, handle_changes, kind, counts)


def _count(
    connection: Connection,
    changes: Table,
    kind: ColumnElement[str],
    counts: dict[str, Counter[str]],
) -> Counter[str]:
    """Count the changes by kind, per number in `counts` and all together in what is returned."""
    total: Counter[str] = Counter()
    grouped = select(changes.c.seen_under, kind, func.count()).group_by(changes.c.seen_under, kind)
    for phone_number, name, number in connection.execute(grouped):
        counts[phone_number][name] += number
        total[name] += number
    return total


def _count_pages(listings: Sequence[Listing], counts: dict[str, Counter[str]]) -> None:
    for listing in listings:
        count, page = counts[listing.phone_number], listing.page
        count["pages"] += listing.listed
        count["chats_seen"] += len(page.chats)
        count["texts_cleaned"] += page.texts_cleaned
    for count in counts.values():
        written = count["chats_inserted"] + count["chats_updated"]
        count["chats_unchanged"] = count["chats_seen"] - written


def _insert_select(connection: Connection, target: Table, rows: Select[Any]) -> int:
    return connection.execute(insert(target).from_select(list(target.columns), rows)).rowcount

"""Chats that are stored, and not just as they were read: compared, and only what differs written.

Each step is a statement or two for the whole batch, so its cost depends on the batch and not on
the tables. Who is not listed in a chat any more is marked, never deleted.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Table,
    and_,
    case,
    exists,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    update,
)

from etl.db.bulk import id_table
from etl.db.store.batch import CHAT_FIELDS, HANDLE_FIELDS, Counts, Observation
from etl.db.store.history import record_chat_events, record_counts, record_handle_events
from etl.db.store.staging import chat_changes, handle_changes, stage, staged_chats, staged_handles
from etl.db.tables import chat_handles, chats


def apply_changes(
    connection: Connection,
    readings: Sequence[Observation],
    undigested: Sequence[int],
    counts: Counts,
    run_id: int,
) -> None:
    """Write what these readings change, and count it for the number of each.

    Of a chat of which nothing has changed, nothing is written, unless it had no digest.
    """
    stage(connection, readings)
    changed_chats = _find_chat_changes(connection)
    changed_handles = _find_handle_changes(connection)
    if changed_chats:
        _count(connection, chat_changes, literal("chats_updated"), counts)
        _apply_chat_changes(connection)
        record_counts(connection, run_id)
        record_chat_events(connection, run_id)
    if changed_handles:
        changes = _count_handles(connection, counts)
        _apply_handle_changes(connection, changes)
        record_handle_events(connection, run_id)
        _note_digests(connection, select(handle_changes.c.chat_id))
    if undigested:
        _note_digests(connection, select(id_table(connection, undigested).c.id))


# Comparing


def _each(key: ColumnElement[Any]) -> ColumnElement[Any]:
    """A batch's key, by which rows are looked up, never the other way round.

    Neither database knows how small a batch is. An index cannot serve an expression, so this side
    of the comparison is the one that is gone through.
    """
    return key + 0


def _find_chat_changes(connection: Connection) -> int:
    new = {name: _told(staged_chats, chats, name, bit) for bit, name in enumerate(CHAT_FIELDS)}
    differs = or_(
        chats.c.removed_at.is_not(None),
        *(value.is_distinct_from(chats.c[name]) for name, value in new.items()),
    )
    changes = (
        select(
            staged_chats.c.id,
            *new.values(),
            *(chats.c[name] for name in CHAT_FIELDS),
            chats.c.removed_at.is_not(None),
            staged_chats.c.counted_for,
            staged_chats.c.observed_at,
            staged_chats.c.digest,
        )
        .select_from(staged_chats.join(chats, chats.c.id == _each(staged_chats.c.id)))
        .where(differs)
    )
    return _insert_select(connection, chat_changes, changes)


def _find_handle_changes(connection: Connection) -> int:
    same_handle = and_(
        chat_handles.c.chat_id == staged_handles.c.chat_id, chat_handles.c.id == staged_handles.c.id
    )
    rows = staged_handles.join(
        staged_chats, staged_chats.c.id == _each(staged_handles.c.chat_id)
    ).outerjoin(chat_handles, same_handle)
    new = {
        name: _told(staged_handles, chat_handles, name, b) for b, name in enumerate(HANDLE_FIELDS)
    }
    is_new, was_removed = chat_handles.c.id.is_(None), chat_handles.c.removed_at.is_not(None)
    differs = or_(
        is_new,
        was_removed,
        *(value.is_distinct_from(chat_handles.c[name]) for name, value in new.items()),
    )
    present = select(
        staged_handles.c.chat_id,
        staged_handles.c.id,
        *new.values(),
        case((is_new, "inserted"), (was_removed, "restored"), else_="updated"),
        staged_chats.c.counted_for,
        staged_chats.c.observed_at,
    ).select_from(rows)
    found = _insert_select(connection, handle_changes, present.where(differs))
    return found + _find_leavers(connection)


def _find_leavers(connection: Connection) -> int:
    left = and_(
        chat_handles.c.chat_id == staged_chats.c.id,
        chat_handles.c.removed_at.is_(None),
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
        staged_chats.c.counted_for,
        staged_chats.c.observed_at,
    ).where(left, chat_handles.c.chat_id.in_(chat_ids))
    return _insert_select(connection, handle_changes, gone)


def _told(staged: Table, stored: Table, name: str, bit: int) -> ColumnElement[Any]:
    """What the API said of a field; where it left the field out, what is stored."""
    told = staged.c.absent.bitwise_and(1 << bit) == 0
    return case((told, staged.c[name]), else_=stored.c[name])


# Writing


def _apply_chat_changes(connection: Connection) -> None:
    new = chat_changes
    connection.execute(
        update(chats)
        .where(chats.c.id == _each(new.c.id))
        .values(
            **{name: new.c[name] for name in (*CHAT_FIELDS, "digest")},
            changed_at=new.c.observed_at,
            removed_at=None,
        )
    )


def _note_digests(connection: Connection, chat_ids: Select[tuple[int]]) -> None:
    other = chats.c.digest.is_distinct_from(staged_chats.c.digest)
    connection.execute(
        update(chats)
        .where(chats.c.id == _each(staged_chats.c.id), staged_chats.c.id.in_(chat_ids), other)
        .values(digest=staged_chats.c.digest)
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


# Counting


def _count_handles(connection: Connection, counts: Counts) -> Counter[str]:
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
    counts: Counts,
) -> Counter[str]:
    """Count the changes by kind, per number in `counts` and all together in what is returned."""
    total: Counter[str] = Counter()
    grouped = select(changes.c.counted_for, kind, func.count()).group_by(
        changes.c.counted_for, kind
    )
    for phone_number, name, number in connection.execute(grouped):
        counts[phone_number][name] += number
        total[name] += number
    return total


def _insert_select(connection: Connection, target: Table, rows: Select[Any]) -> int:
    return connection.execute(insert(target).from_select(list(target.columns), rows)).rowcount

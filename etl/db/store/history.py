"""What changes leave behind: message counts over time, and events, in the change's transaction."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    case,
    exists,
    insert,
    literal,
    not_,
    null,
    select,
)

from etl.db.store.staging import chat_changes, handle_changes
from etl.db.tables import chat_events, chat_message_counts


def record_counts(connection: Connection, run_id: int) -> None:
    """Note the message counts that are new in the batch."""
    new = chat_changes
    changed = new.c.message_count.is_distinct_from(new.c.old_message_count)
    known = exists().where(
        chat_message_counts.c.chat_id == new.c.id,
        chat_message_counts.c.observed_at == new.c.observed_at,
    )
    counts = select(new.c.id, new.c.observed_at, new.c.message_count, literal(run_id))
    connection.execute(
        insert(chat_message_counts).from_select(
            list(chat_message_counts.columns), counts.where(changed, ~known)
        )
    )


def record_chat_events(connection: Connection, run_id: int) -> None:
    """Note what happened to the chats of the batch."""
    new = chat_changes
    for kind, happened, old, now in (
        ("restored", new.c.was_removed, null(), null()),
        ("renamed", _differs("display_name"), new.c.old_display_name, new.c.display_name),
        ("service_changed", _differs("service"), new.c.old_service, new.c.service),
        (
            "group_changed",
            _differs("is_group"),
            _as_text(new.c.old_is_group),
            _as_text(new.c.is_group),
        ),
    ):
        _record_events(
            connection,
            select(literal(run_id), new.c.observed_at, new.c.id, literal(kind), old, now)
            .where(happened)
            .order_by(new.c.id),
        )


def record_handle_events(connection: Connection, run_id: int) -> None:
    """Note who joined and who left in the batch."""
    new = handle_changes
    joined = new.c.change.in_(("inserted", "restored"))
    for kind, happened, old, now in (
        ("joined", joined, null(), new.c.phone_number),
        ("left", new.c.change == "removed", new.c.phone_number, null()),
    ):
        _record_events(
            connection,
            select(literal(run_id), new.c.observed_at, new.c.chat_id, literal(kind), old, now)
            .where(happened)
            .order_by(new.c.chat_id, new.c.id),
        )


def record_removals(
    connection: Connection, chat_ids: Sequence[int], run_id: int, observed_at: datetime
) -> None:
    """Note that these chats are gone."""
    rows = [
        {"run_id": run_id, "observed_at": observed_at, "chat_id": chat_id, "kind": "removed"}
        for chat_id in chat_ids
    ]
    connection.execute(insert(chat_events), rows)


def _record_events(connection: Connection, events: Select[Any]) -> None:
    columns = [column for column in chat_events.columns if column.name != "id"]
    connection.execute(insert(chat_events).from_select(columns, events))


def _differs(name: str) -> ColumnElement[bool]:
    return chat_changes.c[name].is_distinct_from(chat_changes.c[f"old_{name}"])


def _as_text(flag: ColumnElement[bool]) -> ColumnElement[str | None]:
    return case((flag, "true"), (not_(flag), "false"), else_=null())

"""The views for analysts, checked against results computed by hand."""

from datetime import datetime, timedelta, timezone

import pytest
from sqlalchemy import Connection, Engine, Table, insert, text

from etl.db.engine import writing
from etl.db.tables import (
    chat_events,
    chat_handles,
    chat_message_counts,
    chat_phone_numbers,
    chats,
    phone_numbers,
)
from tests.support.builders import NOON, A, B, Row, count_row


@pytest.fixture
def stored(engine: Engine) -> Engine:
    """Two numbers: A lists chats 1 and 3, B lists chats 2 and 3."""
    with writing(engine) as connection:
        put(connection, phone_numbers, {"phone_number": A, "label": "Sales"}, {"phone_number": B})
        put(connection, chats, *({"id": n, "changed_at": NOON} for n in (1, 2, 3)))
        listed = ((A, 1), (B, 2), (A, 3), (B, 3))
        put(
            connection,
            chat_phone_numbers,
            *({"phone_number": number, "chat_id": chat_id} for number, chat_id in listed),
        )
    return engine


def put(connection: Connection, table: Table, *rows: Row) -> None:
    seen = {"first_seen_at": NOON} if "first_seen_at" in table.columns else {}
    for row in rows:
        connection.execute(insert(table), seen | row)


def messages_per_day(engine: Engine) -> list[tuple[str, str, int]]:
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL TIME ZONE 'Asia/Tokyo'"))
        found = connection.execute(text("SELECT phone_number, day, messages FROM messages_per_day"))
        return sorted((row.phone_number, str(row.day), int(row.messages)) for row in found)


def participants(engine: Engine) -> list[Row]:
    with engine.connect() as connection:
        found = connection.execute(
            text("SELECT * FROM current_participants ORDER BY phone_number, chat_id, handle_id")
        )
        return [dict(row) for row in found.mappings()]


def test_messages_are_counted_per_list_and_utc_day(stored: Engine) -> None:
    """A gain is an increase. The first count is one only for a chat with a `created` event."""
    kiev = timezone(timedelta(hours=3))
    with writing(stored) as connection:
        put(
            connection,
            chat_message_counts,
            count_row(1, NOON, 100),
            count_row(1, datetime(2025, 6, 2, 2, 59, tzinfo=kiev), 103),  # 23:59 on the first
            count_row(1, datetime(2025, 6, 2, 3, 0, tzinfo=kiev), 110),  # midnight
            count_row(1, NOON + timedelta(days=1), 108),
            count_row(1, NOON + timedelta(days=1, hours=1), 109),
            count_row(2, NOON, 4),
            count_row(3, NOON, 50),
            count_row(3, NOON + timedelta(days=1), 52),
        )
        created = {"run_id": 1, "observed_at": NOON, "chat_id": 2, "kind": "created"}
        put(connection, chat_events, created)
    assert messages_per_day(stored) == [
        (B, "2025-06-01", 4),
        (B, "2025-06-02", 2),
        (A, "2025-06-01", 3),
        (A, "2025-06-02", 7 + 1 + 2),
    ]


def test_a_day_without_gains_has_no_row(stored: Engine) -> None:
    """First counts, decreases and unknown counts are not gains."""
    with writing(stored) as connection:
        put(
            connection,
            chat_message_counts,
            count_row(1, NOON, 100),
            count_row(2, NOON, 9),
            count_row(2, NOON + timedelta(hours=1), 8),
            count_row(3, NOON, None),
            count_row(3, NOON + timedelta(hours=1), None),
        )
        renamed = {"run_id": 1, "observed_at": NOON, "chat_id": 1, "kind": "renamed"}
        put(connection, chat_events, renamed)
    assert messages_per_day(stored) == []


def test_current_participants_leave_out_everything_removed(stored: Engine) -> None:
    """One row per list that holds the chat, without removed handles, chats and list entries."""
    gone = {"removed_at": NOON}
    with writing(stored) as connection:
        put(connection, chats, {"id": 4, "changed_at": NOON} | gone)
        put(
            connection,
            chats,
            {
                "id": 5,
                "display_name": "Team",
                "service": "RCS",
                "is_group": True,
                "changed_at": NOON,
            },
        )
        put(
            connection,
            chat_phone_numbers,
            {"phone_number": A, "chat_id": 4},
            {"phone_number": A, "chat_id": 5, "missing_since": NOON},
            {"phone_number": B, "chat_id": 5} | gone,
        )
        handle = {"changed_at": NOON, "phone_number": "+12025550199", "service": "SMS"}
        put(
            connection,
            chat_handles,
            handle | {"chat_id": 3, "id": 30, "service": "iMessage"},
            handle | {"chat_id": 3, "id": 31} | gone,
            handle | {"chat_id": 4, "id": 40},
            handle | {"chat_id": 5, "id": 30, "joined_at": None},
        )
    shared = {
        "chat_id": 3,
        "display_name": None,
        "service": None,
        "is_group": None,
        "handle_id": 30,
        "participant": "+12025550199",
        "participant_service": "iMessage",
        "joined_at": None,
    }
    team = {
        "chat_id": 5,
        "display_name": "Team",
        "service": "RCS",
        "is_group": True,
        "participant_service": "SMS",
    }
    assert participants(stored) == [
        {"phone_number": B, "label": None} | shared,
        {"phone_number": A, "label": "Sales"} | shared,
        {"phone_number": A, "label": "Sales"} | shared | team,
    ]

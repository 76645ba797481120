"""The views for analysts, by examples that were computed by hand."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

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

A, B = "+13343284472", "+13125550100"
NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)


@pytest.fixture
def stock(engine: Engine) -> Engine:
    """Two numbers: chat 1 is A's, chat 2 is B's, chat 3 is in both lists."""
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


def put(connection: Connection, table: Table, *rows: dict[str, Any]) -> None:
    seen = {"first_seen_at": NOON} if "first_seen_at" in table.columns else {}
    for row in rows:
        connection.execute(insert(table), seen | row)


def count(chat_id: int, observed_at: datetime, messages: int | None) -> dict[str, Any]:
    return {
        "chat_id": chat_id,
        "observed_at": observed_at,
        "message_count": messages,
        "run_id": 1,
    }


def messages_per_day(engine: Engine) -> list[tuple[str, str, int]]:
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL TIME ZONE 'Asia/Tokyo'"))
        found = connection.execute(text("SELECT phone_number, day, messages FROM messages_per_day"))
        return sorted((row.phone_number, str(row.day), int(row.messages)) for row in found)


def participants(engine: Engine) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        found = connection.execute(
            text("SELECT * FROM current_participants ORDER BY phone_number, chat_id, handle_id")
        )
        return [dict(row) for row in found.mappings()]


def test_messages_count_for_every_list_and_utc_day(stock: Engine) -> None:
    """A gain is the rise since the count before; what was there at first, and a fall, are none."""
    kiev = timezone(timedelta(hours=3))
    with writing(stock) as connection:
        put(
            connection,
            chat_message_counts,
            count(1, NOON, 100),
            count(1, datetime(2025, 6, 2, 2, 59, tzinfo=kiev), 103),  # 23:59 on the first
            count(1, datetime(2025, 6, 2, 3, 0, tzinfo=kiev), 110),  # midnight
            count(1, NOON + timedelta(days=1), 108),
            count(1, NOON + timedelta(days=1, hours=1), 109),
            count(2, NOON, 4),
            count(3, NOON, 50),
            count(3, NOON + timedelta(days=1), 52),
        )
        created = {"run_id": 1, "observed_at": NOON, "chat_id": 2, "kind": "created"}
        put(connection, chat_events, created)
    assert messages_per_day(stock) == [
        (B, "2025-06-01", 4),
        (B, "2025-06-02", 2),
        (A, "2025-06-01", 3),
        (A, "2025-06-02", 7 + 1 + 2),
    ]


def test_a_day_without_gains_is_no_row(stock: Engine) -> None:
    """Starting counts, falls and counts that the API did not tell are no messages."""
    with writing(stock) as connection:
        put(
            connection,
            chat_message_counts,
            count(1, NOON, 100),
            count(2, NOON, 9),
            count(2, NOON + timedelta(hours=1), 8),
            count(3, NOON, None),
            count(3, NOON + timedelta(hours=1), None),
        )
        renamed = {"run_id": 1, "observed_at": NOON, "chat_id": 1, "kind": "renamed"}
        put(connection, chat_events, renamed)
    assert messages_per_day(stock) == []


def test_current_participants_are_those_that_are_not_removed(stock: Engine) -> None:
    """One row for each list that shows the chat; removed handles, chats and lists are left out."""
    gone = {"removed_at": NOON}
    with writing(stock) as connection:
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
    assert participants(stock) == [
        {"phone_number": B, "label": None} | shared,
        {"phone_number": A, "label": "Sales"} | shared,
        {"phone_number": A, "label": "Sales"} | shared | team,
    ]

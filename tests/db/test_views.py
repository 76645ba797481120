"""The views for analysts, checked against results computed by hand."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, Table, insert, text, update

from etl.db.engine import writing
from etl.db.tables import (
    chat_handles,
    chat_message_counts,
    chat_phone_numbers,
    chats,
    phone_numbers,
)
from tests.support.builders import NOON, A, B, Row, count_row, minute


@pytest.fixture
def stored(engine: Engine) -> Engine:
    """Two numbers, loaded just before: A lists chats 1 and 3, B lists chats 2 and 3."""
    with writing(engine) as connection:
        loaded = {"first_loaded_at": NOON - timedelta(seconds=1)}
        put(connection, phone_numbers, {"phone_number": A, "label": "Sales"} | loaded)
        put(connection, phone_numbers, {"phone_number": B} | loaded)
        put(connection, chats, *({"id": n, "changed_at": NOON} for n in (1, 2, 3)))
        seen = {"first_seen_at": NOON - timedelta(seconds=2)}
        listed = ((A, 1), (B, 2), (A, 3), (B, 3))
        put(
            connection,
            chat_phone_numbers,
            *({"phone_number": number, "chat_id": chat_id, **seen} for number, chat_id in listed),
        )
    return engine


def put_counts(engine: Engine, *rows: Row) -> None:
    with writing(engine) as connection:
        connection.execute(insert(chat_message_counts), list(rows))


def put(connection: Connection, table: Table, *rows: Row) -> None:
    seen = {"first_seen_at": NOON} if "first_seen_at" in table.columns else {}
    for row in rows:
        connection.execute(insert(table), seen | row)


def select_all(engine: Engine, view: str, where: str = "1 = 1") -> list[Row]:
    """The view's rows in a session whose time zone is far from UTC; dates as text."""
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL TIME ZONE 'Asia/Tokyo'"))
        found = connection.execute(text(f"SELECT * FROM {view} WHERE {where}"))
        rows = [
            {**row, "day": str(row["day"])} if "day" in row else {**row} for row in found.mappings()
        ]
    return sorted(rows, key=repr)


def messages(engine: Engine, view: str = "messages_per_day") -> list[tuple[Any, ...]]:
    """The rows of a view of messages as tuples."""
    return [tuple(row.values()) for row in select_all(engine, view)]


def participants(engine: Engine) -> list[Row]:
    with engine.connect() as connection:
        found = connection.execute(
            text("SELECT * FROM current_participants ORDER BY phone_number, chat_id, handle_id")
        )
        return [dict(row) for row in found.mappings()]


# Messages


def test_messages_are_counted_per_list_and_utc_day(stored: Engine) -> None:
    """A chat of two lists counts for both numbers, and once in the total."""
    kiev = timezone(timedelta(hours=3))
    day, at = timedelta(days=1), NOON
    put_counts(
        stored,
        count_row(1, at, 100),
        count_row(1, datetime(2025, 6, 2, 2, 59, tzinfo=kiev), 103, gained=3, since=at),
        count_row(1, datetime(2025, 6, 2, 3, 0, tzinfo=kiev), 110, gained=7, since=at),
        count_row(1, at + day, 108, gained=0, since=at + day / 2),
        count_row(1, at + 5 * day, 109, gained=1, since=at + day),
        count_row(2, at, 4, gained=4, since=at - day),
        count_row(3, at + day, 52, gained=2, since=at),
        count_row(3, at + 2 * day, None),
    )
    assert messages(stored) == [
        (B, "2025-06-01", 4, 2),
        (B, "2025-06-02", 2, 2),
        (A, "2025-06-01", 3, 1),
        (A, "2025-06-02", 9, 2),
        (A, "2025-06-06", 1, 5),
    ]
    assert messages(stored, "messages_per_day_total") == [
        ("2025-06-01", 7, 2),
        ("2025-06-02", 9, 2),
        ("2025-06-06", 1, 5),
    ]


def test_the_spread_is_that_of_the_largest_gain(stored: Engine) -> None:
    """Of the longest among gains of the same size."""
    day = timedelta(days=1)
    put_counts(
        stored,
        count_row(1, NOON, 1, gained=1, since=NOON - 30 * day),
        count_row(1, minute(1), 3, gained=2, since=NOON - day),
        count_row(3, NOON, 2, gained=2, since=NOON - 6 * day),
    )
    assert messages(stored, "messages_per_day_total") == [("2025-06-01", 5, 7)]


def test_a_gain_counts_for_a_number_while_it_lists_the_chat(stored: Engine) -> None:
    """Not before it was configured, not during its first load, and not after the chat left."""
    with writing(stored) as connection:
        later = update(phone_numbers).where(phone_numbers.c.phone_number == B)
        connection.execute(later.values(first_loaded_at=minute(2)))
        link = update(chat_phone_numbers).where(chat_phone_numbers.c.chat_id == 3)
        of_b = link.where(chat_phone_numbers.c.phone_number == B)
        connection.execute(of_b.values(first_seen_at=minute(1), removed_at=minute(4)))
    put_counts(stored, *(count_row(3, minute(n), n, gained=10**n, since=NOON) for n in range(1, 6)))
    assert messages(stored) == [(B, "2025-06-01", 11_000, 1), (A, "2025-06-01", 111_110, 1)]
    assert messages(stored, "messages_per_day_total") == [("2025-06-01", 111_110, 1)]


def test_a_day_without_gains_has_no_row(stored: Engine) -> None:
    """First counts, decreases and unknown counts are not gains."""
    put_counts(
        stored,
        count_row(1, NOON, 100),
        count_row(2, minute(1), 8, gained=0, since=NOON),
        count_row(3, NOON, None),
    )
    assert messages(stored) == messages(stored, "messages_per_day_total") == []
    days = select_all(stored, "daily_numbers")
    assert [(row["messages"], row["people"]) for row in days] == [(0, 0)] * 2


# Chats, numbers and people


def test_the_activity_of_chats(stored: Engine) -> None:
    """In the last 7 and 30 times 24 hours; removed chats are left out."""
    now = datetime.now(UTC)
    hour, day = timedelta(hours=1), timedelta(days=1)
    put_counts(
        stored,
        count_row(1, now - 40 * day, 1, gained=1, since=NOON),
        count_row(1, now - 30 * day + hour, 3, gained=2, since=NOON),
        count_row(1, now - 7 * day - hour, 7, gained=4, since=NOON),
        count_row(1, now - 7 * day + hour, 15, gained=8, since=NOON),
        count_row(1, now - hour, 10, gained=0, since=NOON),
        count_row(2, now - day, 5),
        count_row(3, now - day, 5, gained=5, since=NOON),
    )
    with writing(stored) as connection:
        connection.execute(update(chats).where(chats.c.id == 3).values(removed_at=now))
        named = {"display_name": "Ada", "service": "SMS", "is_group": False, "message_count": 10}
        connection.execute(update(chats).where(chats.c.id == 1).values(named))
    rows = select_all(stored, "chat_activity")
    assert [(row["chat_id"], row["gained_7_days"], row["gained_30_days"]) for row in rows] == [
        (1, 8, 14),
        (2, 0, 0),
    ]
    silent, active = (
        sum(row[0] for row in chat_ids(stored, condition))
        for condition in ("last_gain_at IS NULL", "last_gain_at IS NOT NULL")
    )
    assert (silent, active) == (2, 1)


def chat_ids(engine: Engine, condition: str) -> list[tuple[int]]:
    return [(row["chat_id"],) for row in select_all(engine, "chat_activity", condition)]


def test_what_happened_on_each_number_and_day(stored: Engine) -> None:
    """New chats after the first load, messages, and the people of the chats that gained."""
    put_counts(
        stored,
        count_row(1, minute(5), 2, gained=1, since=NOON),
        count_row(3, minute(5), 2, gained=2, since=NOON),
        count_row(2, minute(6), 2, gained=0, since=NOON),
        count_row(4, minute(9), 3, gained=3, since=NOON),
        count_row(5, minute(9), None),
    )
    with writing(stored) as connection:
        new = {"changed_at": minute(9), "first_seen_at": minute(9)}
        put(connection, chats, {"id": 4} | new, {"id": 5} | new)
        listed = {"phone_number": B, "first_seen_at": minute(9)}
        put(connection, chat_phone_numbers, {"chat_id": 4} | listed, {"chat_id": 5} | listed)
        handles = ((1, "Bo"), (1, "Cy"), (3, "Bo"), (3, A), (2, "Di"))
        for number, (chat_id, person) in enumerate(handles):
            row = {"chat_id": chat_id, "id": number, "phone_number": person, "changed_at": NOON}
            put(connection, chat_handles, row)
        left = {"chat_id": 3, "id": 9, "phone_number": "Ed", "changed_at": NOON}
        put(connection, chat_handles, left | {"removed_at": minute(4)})
    day = {"day": "2025-06-01", "advised_messages": 7000}
    assert select_all(stored, "daily_numbers") == [
        {"phone_number": B, **day, "new_chats": 2, "messages": 5, "people": 1},
        {"phone_number": A, **day, "new_chats": 0, "messages": 3, "people": 2},
    ]


def test_people_and_groups(stored: Engine) -> None:
    """Configured numbers are marked as such and are no people of a group."""
    with writing(stored) as connection:
        connection.execute(update(chats).where(chats.c.id > 1).values(is_group=True))
        handles = ((1, "Bo"), (2, "Bo"), (2, "Bo"), (2, "Cy"), (3, A), (3, "Bo"), (3, "Cy"))
        for number, (chat_id, person) in enumerate(handles):
            row = {"chat_id": chat_id, "id": number, "phone_number": person, "changed_at": NOON}
            put(connection, chat_handles, row)
        left = {"chat_id": 1, "id": 9, "phone_number": "Ed", "changed_at": NOON}
        put(connection, chat_handles, left | {"removed_at": minute(4)})
    names = ("participant", "is_own_number", "chats", "group_chats", "numbers", "first_seen_at")
    found = [tuple(row[name] for name in names[:-1]) for row in select_all(stored, "participants")]
    assert sorted(found) == [
        (A, True, 1, 1, 2),
        ("Bo", False, 3, 2, 2),
        ("Cy", False, 2, 2, 2),
    ]
    assert select_all(stored, "group_sizes") == [{"people": 2, "chats": 2}]


def test_a_group_without_people_has_size_0(stored: Engine) -> None:
    """Only configured numbers are in it."""
    with writing(stored) as connection:
        connection.execute(update(chats).where(chats.c.id == 1).values(is_group=True))
        row = {"chat_id": 1, "id": 1, "phone_number": B, "changed_at": NOON}
        put(connection, chat_handles, row)
    assert select_all(stored, "group_sizes") == [{"people": 0, "chats": 1}]


def test_the_mix_of_services(stored: Engine) -> None:
    """Of the chats that a number lists now."""
    with writing(stored) as connection:
        for chat_id, service, count in ((1, "SMS", 5), (2, "SMS", None), (3, None, 7)):
            values = {"service": service, "message_count": count, "is_group": chat_id == 3}
            connection.execute(update(chats).where(chats.c.id == chat_id).values(values))
        of_b = chat_phone_numbers.c.phone_number == B
        gone = update(chat_phone_numbers).where(of_b, chat_phone_numbers.c.chat_id == 3)
        connection.execute(gone.values(removed_at=NOON))
    assert [tuple(row.values()) for row in select_all(stored, "service_mix")] == [
        (B, "SMS", 1, 0, 0),
        (A, "SMS", 1, 0, 5),
        (A, None, 1, 1, 7),
    ]


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

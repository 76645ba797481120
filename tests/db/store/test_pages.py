"""Pages in, whole rows out: what a batch leaves in the tables."""

import json
from typing import Any

import pytest
from sqlalchemy import Engine, Text, cast, column, delete, select

from etl.db.engine import reading, writing
from etl.db.store import pages
from etl.db.store.pages import store_pages
from etl.db.tables import (
    chat_events,
    chat_handles,
    chat_message_counts,
    chat_phone_numbers,
    chats,
    rejected_records,
)
from tests.db.store.conftest import DATA_TABLES, EVENING, Store, counts, session_status
from tests.support.builders import (
    JOINED,
    NOON,
    A,
    B,
    Row,
    Rows,
    chat,
    chat_row,
    count_row,
    handle,
    handle_row,
    link_row,
    minute,
    observed_page,
    without,
)
from tests.support.marks import only_mysql, only_postgres, only_sqlite

UNCHANGED = chat(1, nickname={"b": [1.5, None], "a": "é"}), chat(2, chat_handles=[])

# New, unchanged and changed chats


def test_a_first_page_fills_every_table(store: Store, rows: Rows) -> None:
    """Chat, participant, membership and first message count; no event during the first load."""
    assert store(observed_page(chat())) == {
        A: counts(chats_inserted=1, handles_inserted=1, chats_unchanged=0)
    }
    assert rows(chats) == [chat_row()]
    assert rows(chat_handles) == [handle_row()]
    assert rows(chat_phone_numbers) == [link_row()]
    assert rows(chat_message_counts) == [count_row()]
    assert rows(chat_events) == []
    assert rows(rejected_records) == []


def test_an_empty_page_is_only_counted(store: Store, rows: Rows) -> None:
    """A number without chats is valid."""
    assert store(observed_page()) == {A: counts(chats_seen=0)}
    assert [rows(table) for table in DATA_TABLES] == [[], [], [], [], []]


@only_mysql
def test_unchanged_chats_write_no_row_in_mysql(engine: Engine, store: Store, run_id: int) -> None:
    """The session's statements insert, update and delete nothing."""
    writes = ("Handler_write", "Handler_update", "Handler_delete")
    pages_at = [
        [observed_page(*UNCHANGED, phone_number=number, at=at) for number in (A, B)]
        for at in (NOON, minute(5), minute(6))
    ]
    pages_at[2].append(observed_page(chat(3), at=minute(6)))
    store(*pages_at[0])
    with writing(engine) as connection:
        found = []
        for given in pages_at[1:]:
            before = session_status(connection, "Handler_%")
            again = store_pages(connection, given, run_id=run_id, now=EVENING).counts
            after = session_status(connection, "Handler_%")
            found.append([after[name] - before[name] for name in writes])
    assert found[0] == [0, 0, 0]
    assert found[1][0] > 0
    assert again[B] == counts(chats_seen=2, chats_unchanged=2)


@only_postgres
def test_unchanged_chats_write_no_row_in_postgresql(engine: Engine, store: Store) -> None:
    """Each row keeps its place and the transaction that wrote it."""

    def versions() -> list[list[tuple[str, ...]]]:
        with engine.connect() as connection:
            return [
                [tuple(map(str, row)) for row in connection.execute(query)]
                for query in (
                    select(column("xmin"), column("ctid"), table).select_from(table)
                    for table in DATA_TABLES
                )
            ]

    store(observed_page(*UNCHANGED), observed_page(*UNCHANGED, phone_number=B))
    before = versions()
    later = minute(5)
    again = store(
        observed_page(*UNCHANGED, at=later), observed_page(*UNCHANGED, phone_number=B, at=later)
    )
    assert versions() == before
    assert again == {number: counts(chats_seen=2, chats_unchanged=2) for number in (A, B)}


@only_sqlite
def test_unchanged_chats_write_nothing_in_sqlite(engine: Engine, store: Store) -> None:
    """For another connection, the version of the file stays the same."""
    store(observed_page(*UNCHANGED), observed_page(*UNCHANGED, phone_number=B))
    with engine.connect() as connection:

        def version() -> int:
            number: int = connection.exec_driver_sql("PRAGMA data_version").scalar_one()
            connection.rollback()
            return number

        before, later = version(), minute(5)
        again = store(
            observed_page(*UNCHANGED, at=later), observed_page(*UNCHANGED, phone_number=B, at=later)
        )
        assert version() == before
        store(observed_page(chat(3), at=minute(6)))
        assert version() != before
    assert again == {number: counts(chats_seen=2, chats_unchanged=2) for number in (A, B)}


@pytest.mark.parametrize(
    ("field", "value", "stored"),
    [
        ("display_name", "Ada, Bo", {"display_name": "Ada, Bo"}),
        ("display_name", "", {"display_name": ""}),
        ("display_name", None, {"display_name": None}),
        ("service", "Telepathy", {"service": "Telepathy"}),
        ("service", None, {"service": None}),
        ("group", True, {"is_group": True}),
        ("group", None, {"is_group": None}),
        ("message_count", 0, {"message_count": 0}),
        ("message_count", None, {"message_count": None}),
        ("pinned", {"by": ["Bo"]}, {"extra": {"pinned": {"by": ["Bo"]}}}),
    ],
)
def test_a_changed_field_is_stored(
    store: Store, rows: Rows, field: str, value: Any, stored: Row
) -> None:
    """The row has the new value, null included, and the time when it was first read."""
    store(observed_page(chat()))
    assert store(observed_page(chat(**{field: value}), at=minute(1))) == {
        A: counts(chats_updated=1, chats_unchanged=0)
    }
    assert rows(chats) == [chat_row(changed_at=minute(1), **stored)]
    assert rows(chat_handles) == [handle_row()]
    assert rows(chat_phone_numbers) == [link_row()]


@pytest.mark.parametrize(
    ("field", "value", "stored"),
    [
        ("phone_number", "ada@example.com", {"phone_number": "ada@example.com"}),
        ("phone_number", None, {"phone_number": None}),
        ("service", "RCS", {"service": "RCS"}),
        ("joined_at", "2025-05-21T20:30:00.000001Z", {"joined_at": JOINED.replace(microsecond=1)}),
        ("joined_at", None, {"joined_at": None}),
        ("admin", True, {"extra": {"admin": True}}),
    ],
)
def test_a_changed_participant_is_stored(
    store: Store, rows: Rows, field: str, value: Any, stored: Row
) -> None:
    """The participant's row changes, the chat's does not."""
    store(observed_page(chat()))
    changed = chat(chat_handles=[handle(**{field: value})])
    assert store(observed_page(changed, at=minute(1))) == {
        A: counts(handles_updated=1, chats_unchanged=1)
    }
    assert rows(chats) == [chat_row()]
    assert rows(chat_handles) == [handle_row(changed_at=minute(1), **stored)]


def test_a_field_that_is_left_out_keeps_its_value(store: Store, rows: Rows) -> None:
    """A missing key is not a null."""
    store(observed_page(chat()))
    bare = {"id": 1, "chat_handles": [{"id": 11}]}
    assert store(observed_page(bare, at=minute(1))) == {A: counts(chats_unchanged=1)}
    assert rows(chats) == [chat_row()]
    assert rows(chat_handles) == [handle_row()]


def test_a_record_can_change_one_field_and_leave_out_another(store: Store, rows: Rows) -> None:
    """Each field is decided by itself, in the chat and in the participant."""
    store(observed_page(chat()))
    renamed = chat(display_name="Bo", chat_handles=[{"id": 11, "service": "SMS"}])
    store(observed_page(without(renamed, "group"), at=minute(1)))
    assert rows(chats) == [chat_row(display_name="Bo", changed_at=minute(1))]
    assert rows(chat_handles) == [handle_row(service="SMS", changed_at=minute(1))]


def test_a_record_of_nothing_but_an_id_is_a_chat(store: Store, rows: Rows) -> None:
    """Fields that were never sent are null."""
    store(observed_page({"id": 1, "chat_handles": [{"id": 11}]}))
    chat_fields = "display_name", "service", "is_group", "message_count"
    assert rows(chats) == [chat_row(**dict.fromkeys(chat_fields))]
    handle_fields = "phone_number", "service", "joined_at"
    assert rows(chat_handles) == [handle_row(**dict.fromkeys(handle_fields))]
    assert rows(chat_message_counts) == [count_row(message_count=None)]


# Rejected records


def test_a_record_that_cannot_be_stored_is_kept_aside(store: Store, rows: Rows) -> None:
    """It is kept with the reason, as it was sent; the other chats of its page are stored."""
    nameless, number = {"id": "x", "mood": "👍"}, 2**63
    page = observed_page(nameless, chat(), {"id": number}, phone_number=B, page_number=3)
    assert store(page) == {
        B: counts(chats_inserted=1, handles_inserted=1, chats_unchanged=0, rejected=2)
    }
    assert rows(chats) == [chat_row()]
    common = {"run_id": 1, "phone_number": B, "page": 3}
    assert [without(row, "reason") for row in rows(rejected_records)] == [
        {"id": 1, **common, "payload": nameless},
        {"id": 2, **common, "payload": {"id": number}},
    ]
    assert all("id" in row["reason"] for row in rows(rejected_records))


def test_a_rejected_record_is_kept_once_per_run(store: Store, rows: Rows) -> None:
    """Read again by the same run, in the same batch or a later one, it is not counted again."""
    record = {"id": "x", "sizes": {"b": 1.5, "a": [True, "é"]}}
    assert store(observed_page(record, record))[A]["rejected"] == 1
    assert store(observed_page(record, at=minute(1)))[A]["rejected"] == 0
    assert store(observed_page(record, phone_number=B))[B]["rejected"] == 1
    assert [row["phone_number"] for row in rows(rejected_records)] == [A, B]


@pytest.mark.parametrize(
    "record",
    [1e16, -0.0, 7, 2**70, 1.5e-300, "7", "", None, True, [], [1e16], {"id": -0.0}, {"n": 1e22}],
    ids=repr,
)
def test_a_rejected_record_is_kept_as_it_was_sent(
    engine: Engine, store: Store, record: Any
) -> None:
    """As JSON text, which no database changes; in a later batch it is the same record."""
    assert store(observed_page(record))[A]["rejected"] == 1
    assert store(observed_page(record), observed_page(record))[A]["rejected"] == 0
    with reading(engine) as connection:
        payload = cast(rejected_records.c.payload, Text)
        assert connection.execute(select(payload)).scalars().all() == [
            json.dumps(record, separators=(",", ":"))
        ]


def test_a_record_that_is_too_long_to_keep_is_told_from_another(store: Store, rows: Rows) -> None:
    """By its whole content: of each, only the same head is kept."""
    long = [{"id": "x", "text": "y" * 100_000 + end} for end in "ab"]
    assert store(observed_page(*long, *long))[A]["rejected"] == 2
    assert store(observed_page(*long))[A]["rejected"] == 0
    first, second = (row["payload"] for row in rows(rejected_records))
    assert first == second
    assert first["truncated"]


def test_a_run_keeps_a_bounded_number_of_records(
    store: Store, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are only counted."""
    monkeypatch.setattr(pages, "MAX_REJECTED", 3)
    assert store(observed_page("a", "b"))[A]["rejected"] == 2
    assert store(observed_page("b", "c", "d"))[A]["rejected"] == 2
    assert store(observed_page("e", phone_number=B))[B]["rejected"] == 1
    assert [row["payload"] for row in rows(rejected_records)] == ["a", "b", "c"]


def test_the_page_of_a_record_may_be_far(store: Store, rows: Rows) -> None:
    """An API may claim any number of pages."""
    store(observed_page("a", page_number=2**40))
    assert [row["page"] for row in rows(rejected_records)] == [2**40]


# Transactions


def test_a_batch_is_stored_together_or_not_at_all(engine: Engine, run_id: int, rows: Rows) -> None:
    """A failure after the last write leaves nothing of the batch."""

    def fail_late() -> None:
        with writing(engine) as connection:
            pages = [observed_page(chat(), {"id": None})]
            store_pages(connection, pages, run_id=run_id, now=EVENING)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_late()
    assert [rows(table) for table in (*DATA_TABLES, rejected_records)] == [[], [], [], [], [], []]


def test_a_chat_deleted_by_hand_is_stored_again(engine: Engine, store: Store, rows: Rows) -> None:
    """The membership and the counts that the deletion left behind do not prevent it."""
    store(observed_page(chat()))
    with writing(engine) as connection:
        connection.execute(delete(chat_handles))
        connection.execute(delete(chats))
    store(observed_page(chat(), at=minute(1)))
    assert rows(chats) == [chat_row(first_seen_at=minute(1), changed_at=minute(1))]
    assert rows(chat_phone_numbers) == [link_row()]

"""Pages in, whole rows out: what a batch leaves in the tables, on both databases."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, Table, column, delete, event, func, insert, select, table, update

from etl.api import decode as wire
from etl.config import PhoneNumber
from etl.db import run_log as runs
from etl.db.engine import writing
from etl.db.store.batch import ObservedPage
from etl.db.store.pages import store_pages
from etl.db.tables import (
    chat_events,
    chat_handles,
    chat_message_counts,
    chat_phone_numbers,
    chats,
    rejected_records,
)
from etl.errors import DatabaseError

Item = dict[str, Any]
Rows = Callable[[Table], list[Item]]
Save = Callable[..., dict[str, Counter[str]]]

A, B = "+13343284472", "+13125550100"
NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)
JOINED = datetime(2025, 5, 21, 20, 30, tzinfo=UTC)
BIGGEST, SMALLEST = 2**63 - 1, -(2**63)
DATA = (chats, chat_handles, chat_phone_numbers, chat_message_counts, chat_events)


def minute(number: int) -> datetime:
    return NOON + timedelta(minutes=number)


EVENING = minute(600)


def handle(id: int = 11, **fields: Any) -> Item:  # noqa: A002
    """A participant as the API sends it."""
    return {
        "id": id,
        "phone_number": f"+1312555{id:04}",
        "service": "iMessage",
        "joined_at": "2025-05-21T15:30:00.000-05:00",
        **fields,
    }


def chat(id: int = 1, **fields: Any) -> Item:  # noqa: A002
    """A chat as the API sends it, with one participant."""
    return {
        "id": id,
        "display_name": "Ada",
        "service": "iMessage",
        "group": False,
        "message_count": 1,
        "chat_handles": [handle()],
        **fields,
    }


def without(item: Item, *names: str) -> Item:
    return {name: value for name, value in item.items() if name not in names}


def listing(
    *items: Any, under: str = A, at: datetime = NOON, number: int = 1, emit_created: bool = False
) -> ObservedPage:
    """A page of the number's list with these records, read at that time."""
    meta = {"page": number, "total_pages": number, "total_count": len(items), "per_page": 100}
    body = json.dumps({"data": items, "meta": meta}).encode()
    return ObservedPage(under, wire.decode_page(body, number, at), emit_created)


def row_of(table: Table, **fields: Any) -> Item:
    """A whole row, in which what is not named is null."""
    names = [name for name, _ in table.columns.items() if name != "digest"]
    return {**dict.fromkeys(names), **fields}


def chat_row(id: int = 1, **fields: Any) -> Item:  # noqa: A002
    """What `chat` makes of an empty table at noon."""
    told = {"display_name": "Ada", "service": "iMessage", "is_group": False, "message_count": 1}
    times = {"first_seen_at": NOON, "changed_at": NOON}
    return row_of(chats, **{"id": id, **told, **times, **fields})


def handle_row(chat_id: int = 1, id: int = 11, **fields: Any) -> Item:  # noqa: A002
    """What `handle` makes of an empty table at noon."""
    told = {"phone_number": f"+1312555{id:04}", "service": "iMessage", "joined_at": JOINED}
    times = {"first_seen_at": NOON, "changed_at": NOON}
    return row_of(chat_handles, **{"chat_id": chat_id, "id": id, **told, **times, **fields})


def link_row(phone_number: str = A, chat_id: int = 1, **fields: Any) -> Item:
    times = {"first_seen_at": NOON}
    key = {"phone_number": phone_number, "chat_id": chat_id}
    return row_of(chat_phone_numbers, **{**key, **times, **fields})


def count_row(
    chat_id: int = 1, observed_at: datetime = NOON, message_count: int | None = 1
) -> Item:
    return {
        "chat_id": chat_id,
        "observed_at": observed_at,
        "message_count": message_count,
        "run_id": 1,
    }


def event_row(kind: str, old: str | None = None, new: str | None = None, **fields: Any) -> Item:
    """An event of chat 1, a minute past noon."""
    happened = {"run_id": 1, "observed_at": minute(1), "chat_id": 1, "kind": kind}
    return {**happened, "old_value": old, "new_value": new, **fields}


def counts(**counted: int) -> Counter[str]:
    """The counts of one page with one chat, as far as they are not given."""
    return Counter({"pages": 1, "chats_seen": 1, **counted})


@pytest.fixture
def run_id(engine: Engine) -> int:
    """A run that holds both numbers."""
    with writing(engine) as connection:
        started = runs.start(connection, "sync", now=NOON, lease_seconds=60)
        runs.claim(connection, started, [PhoneNumber(A), PhoneNumber(B)], NOON)
    return started


@pytest.fixture
def save(engine: Engine, run_id: int) -> Save:
    """Stores listings in one transaction, in the evening if no time is given."""

    def save(*listings: ObservedPage, now: datetime = EVENING) -> dict[str, Counter[str]]:
        with writing(engine) as connection:
            return store_pages(connection, listings, run_id=run_id, now=now)

    return save


@pytest.fixture
def events(rows: Rows) -> Callable[[], list[Item]]:
    """All events without their ids, in the order in which they were written."""
    return lambda: [without(row, "id") for row in rows(chat_events)]


def mark_removed(engine: Engine, removed_at: datetime) -> None:
    """Mark every chat and membership as removed."""
    with writing(engine) as connection:
        connection.execute(update(chats).values(changed_at=removed_at, removed_at=removed_at))
        connection.execute(update(chat_phone_numbers).values(removed_at=removed_at))


# What a page leaves


def test_a_first_page_fills_every_table(save: Save, rows: Rows) -> None:
    """Chat, participant, membership and first message count; the starting stock makes no event."""
    assert save(listing(chat())) == {
        A: counts(chats_inserted=1, handles_inserted=1, chats_unchanged=0)
    }
    assert rows(chats) == [chat_row()]
    assert rows(chat_handles) == [handle_row()]
    assert rows(chat_phone_numbers) == [link_row()]
    assert rows(chat_message_counts) == [count_row()]
    assert rows(chat_events) == []
    assert rows(rejected_records) == []


def test_an_empty_page_is_only_counted(save: Save, rows: Rows) -> None:
    """A number without chats is no problem."""
    assert save(listing()) == {A: counts(chats_seen=0)}
    assert [rows(table) for table in DATA] == [[], [], [], [], []]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_the_same_again_writes_no_row_in_postgresql(engine: Engine, save: Save) -> None:
    """Each row keeps its place and the transaction that wrote it."""
    place = [column("xmin"), column("ctid")]

    def versions() -> list[list[tuple[str, ...]]]:
        with engine.connect() as connection:
            return [
                [tuple(map(str, r)) for r in connection.execute(select(*place, t).select_from(t))]
                for t in DATA
            ]

    page = [chat(1, nickname={"b": [1.5, None], "a": "é"}), chat(2, chat_handles=[])]
    save(listing(*page), listing(*page, under=B))
    before = versions()
    again = save(listing(*page, at=minute(5)), listing(*page, under=B, at=minute(5)))
    assert versions() == before
    assert again == {n: counts(chats_seen=2, chats_unchanged=2) for n in (A, B)}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_same_again_writes_nothing_in_sqlite(engine: Engine, save: Save) -> None:
    """Another connection does not see that anything was written to the file."""
    page = [chat(1, nickname={"b": [1.5, None], "a": "é"}), chat(2, chat_handles=[])]
    save(listing(*page), listing(*page, under=B))
    with engine.connect() as connection:
        version = "PRAGMA data_version"
        before = connection.exec_driver_sql(version).scalar_one()
        connection.rollback()
        again = save(listing(*page, at=minute(5)), listing(*page, under=B, at=minute(5)))
        assert connection.exec_driver_sql(version).scalar_one() == before
        connection.rollback()
        save(listing(chat(3), at=minute(6)))
        assert connection.exec_driver_sql(version).scalar_one() != before
    assert again == {n: counts(chats_seen=2, chats_unchanged=2) for n in (A, B)}


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
    save: Save, rows: Rows, field: str, value: Any, stored: Item
) -> None:
    """Whatever the API says now stands in the row, null too, and when that was first seen."""
    save(listing(chat()))
    assert save(listing(chat(**{field: value}), at=minute(1))) == {
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
    save: Save, rows: Rows, field: str, value: Any, stored: Item
) -> None:
    """The participant's row changes, the chat's does not."""
    save(listing(chat()))
    changed = chat(chat_handles=[handle(**{field: value})])
    assert save(listing(changed, at=minute(1))) == {A: counts(handles_updated=1, chats_unchanged=1)}
    assert rows(chats) == [chat_row()]
    assert rows(chat_handles) == [handle_row(changed_at=minute(1), **stored)]


def test_a_field_that_is_left_out_keeps_what_is_stored(save: Save, rows: Rows) -> None:
    """A missing key says nothing; only null says null."""
    save(listing(chat()))
    bare = {"id": 1, "chat_handles": [{"id": 11}]}
    assert save(listing(bare, at=minute(1))) == {A: counts(chats_unchanged=1)}
    assert rows(chats) == [chat_row()]
    assert rows(chat_handles) == [handle_row()]


def test_left_out_beside_changed_keeps_only_itself(save: Save, rows: Rows) -> None:
    """Of one record some fields change, others are kept."""
    save(listing(chat()))
    partly = without(chat(display_name="Bo", chat_handles=[{"id": 11, "service": "SMS"}]), "group")
    save(listing(partly, at=minute(1)))
    assert rows(chats) == [chat_row(display_name="Bo", changed_at=minute(1))]
    assert rows(chat_handles) == [handle_row(service="SMS", changed_at=minute(1))]


def test_a_bare_id_is_a_chat(save: Save, rows: Rows) -> None:
    """What was never said is null."""
    save(listing({"id": 1, "chat_handles": [{"id": 11}]}))
    unsaid: Item = {"display_name": None, "service": None, "is_group": None, "message_count": None}
    assert rows(chats) == [chat_row(**unsaid)]
    unsaid = {"phone_number": None, "service": None, "joined_at": None}
    assert rows(chat_handles) == [handle_row(**unsaid)]
    assert rows(chat_message_counts) == [count_row(message_count=None)]


# Text, numbers and times as they come


def test_text_is_stored_verbatim(save: Save, rows: Rows) -> None:
    """Each character, in both tables and in what is kept of unknown fields."""
    texts = [
        "\U0001f468\u200d\U0001f469\u200d\U0001f467 Café \u202e 中文 \U0001f9ff",
        "x" * 100_000,
        "'; DROP TABLE chats; --\\N\t\r\n\"{}\x7f\x01",
        "NULL",
        "12345678901234567890",
        "true",
        " ",
    ]
    told = [
        chat(id, display_name=text, service=text, mood=text, chat_handles=[handle(service=text)])
        for id, text in enumerate(texts)  # noqa: A001
    ]
    save(listing(*told))
    assert rows(chats) == [
        chat_row(id, display_name=text, service=text, extra={"mood": text})
        for id, text in enumerate(texts)  # noqa: A001
    ]
    assert [row["service"] for row in rows(chat_handles)] == texts
    assert save(listing(*told, at=minute(1)))[A]["chats_unchanged"] == len(texts)


def test_a_long_address_is_stored(save: Save, rows: Rows) -> None:
    """An e-mail address as long as the standard allows."""
    address = "a" * 64 + "@" + "b" * 185 + ".com"
    save(listing(chat(chat_handles=[handle(phone_number=address)])))
    assert rows(chat_handles) == [handle_row(phone_number=address)]


def test_text_that_no_database_holds_is_cleaned_and_counted(save: Save, rows: Rows) -> None:
    """NUL and lone surrogates become U+FFFD, also in unknown fields; once more is no change."""
    told = chat(display_name="a\0b", mood={"\ud83d": "\0\0"})
    assert save(listing(told))[A]["texts_cleaned"] == 3
    assert rows(chats) == [
        chat_row(display_name="a\ufffdb", extra={"mood": {"\ufffd": "\ufffd\ufffd"}})
    ]
    assert save(listing(told, at=minute(1)))[A]["chats_unchanged"] == 1


def test_numbers_have_64_bits(save: Save, rows: Rows) -> None:
    """Ids and counts are exact to the last digit."""
    ids = [SMALLEST, -1, 0, 2**53 + 1, BIGGEST]
    save(listing(*(chat(n, message_count=n, chat_handles=[{"id": n}]) for n in ids)))
    assert [(row["id"], row["message_count"]) for row in rows(chats)] == [(n, n) for n in ids]
    assert [(row["chat_id"], row["id"]) for row in rows(chat_handles)] == [(n, n) for n in ids]
    assert rows(chat_phone_numbers) == [link_row(chat_id=n) for n in ids]


def test_times_are_utc_to_the_microsecond(save: Save, rows: Rows) -> None:
    """Whatever the offset and fraction; the same instant written otherwise is no change."""
    told = {
        "2025-05-21T15:30:00.000-05:00": JOINED,
        "2025-05-22T02:00:00.000+05:30": JOINED,
        "2025-05-21T20:30:00Z": JOINED,
        "2025-05-21T20:30:00": JOINED,
        "2025-05-21T20:30:00.123456+00:00": JOINED.replace(microsecond=123456),
        "2025-05-21T20:30:00.1Z": JOINED.replace(microsecond=100000),
        "1969-12-31T23:59:59.999999Z": datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        "9999-12-31T23:59:59.999999Z": datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        "0999-01-01T00:00:00Z": datetime(999, 1, 1, tzinfo=UTC),
    }
    as_told = [handle(number, joined_at=text) for number, text in enumerate(told)]
    save(listing(chat(chat_handles=as_told)))
    assert rows(chat_handles) == [
        handle_row(id=number, joined_at=instant) for number, instant in enumerate(told.values())
    ]
    as_utc = [handle(number, joined_at=at.isoformat()) for number, at in enumerate(told.values())]
    again = save(listing(chat(chat_handles=as_utc), at=minute(1)))
    assert again == {A: counts(chats_unchanged=1)}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_times_in_sqlite_sort_as_text(engine: Engine, save: Save) -> None:
    """All are written alike, so that comparing them needs no function."""
    save(listing(chat(chat_handles=[handle(joined_at="2025-05-21T20:30:00.5Z")])))
    columns = "changed_at, first_seen_at, joined_at"
    with engine.connect() as connection:
        written = connection.exec_driver_sql(f"SELECT {columns} FROM chat_handles").one()
    noon = "2025-06-01 12:00:00.000000"
    assert tuple(written) == (noon, noon, "2025-05-21 20:30:00.500000")


def test_unknown_fields_compare_by_value(save: Save, rows: Rows) -> None:
    """The order of keys is no change, another value is, and what is sent no more goes."""
    save(listing(chat(tags={"a": 1, "b": [True, None]}, z=1)))
    reordered = chat(z=1, tags={"b": [True, None], "a": 1})
    assert save(listing(reordered, at=minute(1)))[A]["chats_unchanged"] == 1
    save(listing(chat(tags={"a": 1, "b": [True, 0]}), at=minute(2)))
    changed = {"extra": {"tags": {"a": 1, "b": [True, 0]}}, "changed_at": minute(2)}
    assert rows(chats) == [chat_row(**changed)]
    save(listing(chat(), at=minute(3)))
    assert rows(chats) == [chat_row(changed_at=minute(3))]


# Participants who come and go


def test_a_participant_who_is_not_listed_has_left(
    save: Save, rows: Rows, events: Callable[[], list[Item]]
) -> None:
    """Marked with the time of the answer, never deleted; the others are not touched."""
    save(listing(chat(chat_handles=[handle(11), handle(12)])))
    left = save(listing(chat(chat_handles=[handle(11)]), at=minute(1)))
    assert left == {A: counts(handles_removed=1, chats_unchanged=1)}
    gone = handle_row(id=12, changed_at=minute(1), removed_at=minute(1))
    assert rows(chat_handles) == [handle_row(), gone]
    assert events() == [event_row("left", old="+13125550012")]
    again = save(listing(chat(chat_handles=[handle(11)]), at=minute(2)))
    assert again == {A: counts(chats_unchanged=1)}
    assert rows(chat_handles) == [handle_row(), gone]


def test_a_participant_who_returns_is_restored(
    save: Save, rows: Rows, events: Callable[[], list[Item]]
) -> None:
    """With what is said of them now and when they were first seen."""
    save(listing(chat()))
    save(listing(chat(chat_handles=[]), at=minute(1)))
    returned = chat(chat_handles=[handle(service="SMS")])
    assert save(listing(returned, at=minute(2))) == {
        A: counts(handles_updated=1, chats_unchanged=1)
    }
    assert rows(chat_handles) == [handle_row(service="SMS", changed_at=minute(2))]
    assert events() == [
        event_row("left", old="+13125550011"),
        event_row("joined", new="+13125550011", observed_at=minute(2)),
    ]


def test_an_empty_list_means_that_all_have_left(save: Save, rows: Rows) -> None:
    """An empty list is a statement."""
    save(listing(chat(chat_handles=[handle(11), handle(12)])))
    assert save(listing(chat(chat_handles=[]), at=minute(1)))[A]["handles_removed"] == 2
    assert {row["removed_at"] for row in rows(chat_handles)} == {minute(1)}


@pytest.mark.parametrize("silent", [without(chat(), "chat_handles"), chat(chat_handles=None)])
def test_no_list_means_nothing(save: Save, rows: Rows, silent: Item) -> None:
    """Where the list is missing or null, all participants stay as they are."""
    save(listing(chat()))
    assert save(listing(silent, at=minute(1))) == {A: counts(chats_unchanged=1)}
    assert rows(chat_handles) == [handle_row()]


def test_a_participant_listed_twice_is_one(save: Save, rows: Rows) -> None:
    """What stands last in the chat's list counts."""
    twice = chat(chat_handles=[handle(service="SMS"), handle(12), handle(service="RCS")])
    assert save(listing(twice))[A]["handles_inserted"] == 2
    assert rows(chat_handles) == [handle_row(service="RCS"), handle_row(id=12)]


def test_a_handle_id_belongs_to_its_chat(save: Save, rows: Rows) -> None:
    """The same handle id in two chats is two rows, of which one can leave."""
    save(listing(chat(1), chat(2)))
    save(listing(chat(2, chat_handles=[]), at=minute(1)))
    gone = handle_row(chat_id=2, changed_at=minute(1), removed_at=minute(1))
    assert rows(chat_handles) == [handle_row(), gone]


# The same chat more than once


def test_a_chat_twice_in_a_batch_is_what_was_read_last(save: Save, rows: Rows) -> None:
    """Two pages that the list moved between; the later one counts, whatever their order."""
    earlier = listing(chat(display_name="Old", chat_handles=[handle(12)]))
    later = listing(chat(display_name="New"), at=minute(1), number=2)
    counted = counts(pages=2, chats_seen=2, chats_inserted=1, handles_inserted=1, chats_unchanged=1)
    assert save(later, earlier) == {A: counted}
    times = {"first_seen_at": minute(1), "changed_at": minute(1)}
    assert rows(chats) == [chat_row(display_name="New", **times)]
    assert rows(chat_handles) == [handle_row(**times)]


def test_a_chat_twice_on_a_page_is_the_second(save: Save, rows: Rows) -> None:
    """Within one answer what stands last counts."""
    counted = counts(chats_seen=2, chats_inserted=1, handles_inserted=1, chats_unchanged=1)
    assert save(listing(chat(display_name="One"), chat(display_name="Two"))) == {A: counted}
    assert rows(chats) == [chat_row(display_name="Two")]


def test_a_chat_in_two_numbers_lists_is_one_chat(save: Save, rows: Rows) -> None:
    """One row with two memberships, counted as new under the number that listed it first."""
    assert save(listing(chat()), listing(chat(), under=B, at=minute(1))) == {
        A: counts(chats_inserted=1, handles_inserted=1, chats_unchanged=0),
        B: counts(chats_unchanged=1),
    }
    times = {"first_seen_at": minute(1), "changed_at": minute(1)}
    assert rows(chats) == [chat_row(**times)]
    assert rows(chat_handles) == [handle_row(**times)]
    assert rows(chat_phone_numbers) == [link_row(B, first_seen_at=minute(1)), link_row(A)]


def test_a_second_number_adds_its_membership_only(save: Save, rows: Rows) -> None:
    """A known chat in another number's list is not written again."""
    save(listing(chat()))
    assert save(listing(chat(), under=B, at=minute(1))) == {B: counts(chats_unchanged=1)}
    assert rows(chats) == [chat_row()]
    assert rows(chat_phone_numbers) == [link_row(B, first_seen_at=minute(1)), link_row(A)]


# Order of time


def test_an_older_page_does_not_beat_a_newer_row(save: Save, rows: Rows) -> None:
    """What was read before the row's last change is ignored, participants included."""
    newer = chat(display_name="New", chat_handles=[handle(service="SMS")])
    save(listing(chat(chat_handles=[handle(), handle(12)])))
    save(listing(newer, at=minute(2)))
    stored = rows(chats), rows(chat_handles)
    older = chat(display_name="Old", chat_handles=[handle(service="RCS"), handle(12)])
    assert save(listing(older, at=minute(1))) == {A: counts(chats_unchanged=1)}
    assert save(listing(chat(chat_handles=[]), at=minute(1)))[A]["handles_removed"] == 0
    assert (rows(chats), rows(chat_handles)) == stored


def test_an_older_page_does_not_beat_a_newer_participant(save: Save, rows: Rows) -> None:
    """Also where nothing but a participant has changed since, all of it is ignored."""
    save(listing(chat()))
    save(listing(chat(chat_handles=[handle(service="SMS")]), at=minute(2)))
    stored = rows(chats), rows(chat_handles)
    save(listing(chat(display_name="Old", chat_handles=[]), at=minute(1)))
    assert (rows(chats), rows(chat_handles)) == stored


def test_of_the_same_instant_the_later_write_counts(save: Save, rows: Rows) -> None:
    """Two answers to requests of one moment cannot be told apart, so the one at hand is taken."""
    save(listing(chat()))
    save(listing(chat(display_name="Bo")))
    assert rows(chats) == [chat_row(display_name="Bo")]


def test_a_row_from_the_future_does_not_stay_for_ever(save: Save, rows: Rows) -> None:
    """What a clock that was wrong has written gives way to the next answer."""
    save(listing(chat(), at=minute(900)), now=minute(900))
    save(listing(chat(display_name="Bo", chat_handles=[handle(12)])), now=minute(1))
    assert rows(chats) == [chat_row(display_name="Bo", first_seen_at=minute(900))]
    future = handle_row(first_seen_at=minute(900), removed_at=NOON)
    assert rows(chat_handles) == [future, handle_row(id=12)]


def test_a_removed_chat_returns(
    engine: Engine, save: Save, rows: Rows, events: Callable[[], list[Item]]
) -> None:
    """Listed again, it is restored with its membership, and its first day stays."""
    save(listing(chat()))
    mark_removed(engine, minute(1))
    assert save(listing(chat(), at=minute(2))) == {A: counts(chats_updated=1, chats_unchanged=0)}
    assert rows(chats) == [chat_row(changed_at=minute(2))]
    assert rows(chat_phone_numbers) == [link_row()]
    assert rows(chat_message_counts) == [count_row()]
    assert events() == [event_row("restored", observed_at=minute(2))]


def test_a_membership_alone_returns(engine: Engine, save: Save, rows: Rows) -> None:
    """A chat that was still listed elsewhere is itself unchanged."""
    save(listing(chat()))
    with writing(engine) as connection:
        connection.execute(update(chat_phone_numbers).values(removed_at=minute(1)))
    assert save(listing(chat(), at=minute(2))) == {A: counts(chats_unchanged=1)}
    assert rows(chat_phone_numbers) == [link_row()]


# Digests


def digests(engine: Engine) -> list[int | None]:
    with engine.connect() as connection:
        return list(connection.execute(select(chats.c.digest).order_by(chats.c.id)).scalars())


@pytest.mark.parametrize(
    "other",
    [
        chat(display_name="Bo"),
        chat(chat_handles=[handle(service="SMS")]),
        chat(chat_handles=[handle(), handle(12)]),
        chat(chat_handles=[]),
    ],
)
def test_back_and_forth_is_two_changes(engine: Engine, save: Save, rows: Rows, other: Item) -> None:
    """What is as it was long ago differs from what is stored, which the digest tells."""
    first = listing(chat())
    save(first)
    save(listing(other, at=minute(1)))
    changed = rows(chats), rows(chat_handles)
    assert digests(engine) == [listing(other).page.chats[0].digest]
    assert save(listing(other, at=minute(2))) == {A: counts(chats_unchanged=1)}
    assert (rows(chats), rows(chat_handles)) == changed
    save(listing(chat(), at=minute(3)))
    assert digests(engine) == [first.page.chats[0].digest]
    here = [row for row in rows(chat_handles) if row["removed_at"] is None]
    assert [(row["id"], row["service"]) for row in here] == [(11, "iMessage")]
    assert rows(chats)[0]["display_name"] == "Ada"


def test_a_chat_without_a_digest_is_compared_and_gets_one(
    engine: Engine, save: Save, rows: Rows
) -> None:
    """As after an upgrade; what somebody has altered meanwhile is mended."""
    page = listing(chat(1), chat(2))
    save(page)
    with writing(engine) as connection:
        connection.execute(update(chats).values(digest=None))
        connection.execute(update(chats).where(chats.c.id == 2).values(display_name="Bo"))
    assert save(listing(chat(1), chat(2), at=minute(1)))[A]["chats_updated"] == 1
    assert rows(chats) == [chat_row(1), chat_row(2, changed_at=minute(1))]
    assert digests(engine) == [each.digest for each in page.page.chats]


def test_what_is_left_out_again_and_again_writes_nothing(
    engine: Engine, save: Save, rows: Rows
) -> None:
    """It differs from what is stored and changes nothing, not even the digest."""
    save(listing(chat()))
    before = rows(chats), rows(chat_handles), digests(engine)
    for number in (1, 2):
        page = listing(without(chat(), "service", "chat_handles"), at=minute(number))
        assert save(page) == {A: counts(chats_unchanged=1)}
    assert (rows(chats), rows(chat_handles), digests(engine)) == before


# What is no chat


def test_what_cannot_be_stored_is_kept_beside(save: Save, rows: Rows) -> None:
    """A record that makes no sense is kept with its reason; the others of its page are stored."""
    nameless, number = {"id": "x", "mood": "👍"}, 2**63
    told = save(listing(nameless, chat(), {"id": number}, under=B, number=3))
    assert told == {B: counts(chats_inserted=1, handles_inserted=1, chats_unchanged=0, rejected=2)}
    assert rows(chats) == [chat_row()]
    kept = [without(row, "reason") for row in rows(rejected_records)]
    common = {"run_id": 1, "phone_number": B, "page": 3}
    assert kept == [
        {"id": 1, **common, "payload": nameless},
        {"id": 2, **common, "payload": {"id": number}},
    ]
    assert all("id" in row["reason"] for row in rows(rejected_records))


# History


def test_news_is_an_event(save: Save, events: Callable[[], list[Item]]) -> None:
    """Once the list was read to the end, a new chat is an event; its first participants are not."""
    save(listing(chat(1), emit_created=False))
    save(listing(chat(1), chat(2), at=minute(1), emit_created=True))
    assert events() == [event_row("created", chat_id=2)]


def test_what_changes_is_an_event(save: Save, events: Callable[[], list[Item]]) -> None:
    """One event for each change that an analyst would ask about, with before and after."""
    save(listing(chat()))
    changed = chat(
        display_name="Bo",
        service="SMS",
        group=True,
        message_count=2,
        chat_handles=[handle(12, service="SMS")],
    )
    save(listing(changed, at=minute(1)))
    assert sorted(events(), key=lambda row: row["kind"]) == [
        event_row("group_changed", "false", "true"),
        event_row("joined", new="+13125550012"),
        event_row("left", old="+13125550011"),
        event_row("renamed", "Ada", "Bo"),
        event_row("service_changed", "iMessage", "SMS"),
    ]


def test_null_is_a_change_like_any_other(save: Save, events: Callable[[], list[Item]]) -> None:
    """Before or after an event may be null."""
    save(listing(chat(group=None)))
    save(listing(chat(display_name=None, group=False), at=minute(1)))
    assert events() == [
        event_row("renamed", "Ada", None),
        event_row("group_changed", None, "false"),
    ]


def test_a_message_count_has_a_row_for_each_change(save: Save, rows: Rows) -> None:
    """The first value, then one row whenever it changed, also down and to null."""
    told = [1, 1, 5, 5, 3, None, None, 3]
    for number, value in enumerate(told):
        save(listing(chat(message_count=value, display_name=str(number)), at=minute(number)))
    assert rows(chat_message_counts) == [
        count_row(),
        count_row(observed_at=minute(2), message_count=5),
        count_row(observed_at=minute(4), message_count=3),
        count_row(observed_at=minute(5), message_count=None),
        count_row(observed_at=minute(7), message_count=3),
    ]


# Transactions


def test_a_batch_is_stored_together_or_not_at_all(engine: Engine, run_id: int, rows: Rows) -> None:
    """A failure after the last write leaves nothing of the batch."""

    def fail_late() -> None:
        with writing(engine) as connection:
            store_pages(connection, [listing(chat(), {"id": None})], run_id=run_id, now=EVENING)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_late()
    assert [rows(table) for table in (*DATA, rejected_records)] == [[], [], [], [], [], []]


def test_a_participant_needs_its_chat(engine: Engine, save: Save) -> None:
    """Parents before children: the database refuses a participant without a chat."""
    save(listing(chat()))
    orphan = handle_row(chat_id=2)
    with pytest.raises(DatabaseError), writing(engine) as connection:
        connection.execute(insert(chat_handles), orphan)


def test_a_chat_deleted_by_hand_is_stored_again(engine: Engine, save: Save, rows: Rows) -> None:
    """Its membership and counts, which somebody left behind, are no obstacle."""
    save(listing(chat()))
    with writing(engine) as connection:
        connection.execute(delete(chat_handles))
        connection.execute(delete(chats))
    save(listing(chat(), at=minute(1)))
    assert rows(chats) == [chat_row(first_seen_at=minute(1), changed_at=minute(1))]
    assert rows(chat_phone_numbers) == [link_row()]


# Cost


def page_of(first: int, name: str = "Ada", at: datetime = NOON) -> ObservedPage:
    """A hundred chats, from that id on, with two participants each."""
    numbers = range(first, first + 100)
    both = [handle(11), handle(12)]
    return listing(*(chat(n, display_name=name, chat_handles=both) for n in numbers), at=at)


def mixed_batch(first: int, at: datetime) -> list[ObservedPage]:
    """Pages of unchanged, changed and new chats, and one whose participants all leave."""
    ids = range(first, first + 100)
    left = listing(*(chat(n, chat_handles=[]) for n in ids), at=at)
    others = (
        page_of(first + 100, at=at),
        page_of(first + 200, "Bo", at),
        page_of(10**6 + first, at=at),
    )
    return [left, *others]


def load(save: Save, size: int) -> None:
    """Store that many chats."""
    firsts = range(0, size, 100)
    for start in range(0, len(firsts), 50):
        save(*map(page_of, firsts[start : start + 50]))


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_batch_reads_its_own_rows_in_postgresql(engine: Engine, save: Save, run_id: int) -> None:
    """Where a table is large only the batch's rows are read, whatever the planner knows of them."""
    load(save, 20_000)
    touched = table("pg_stat_xact_user_tables", column("relname"), schema="pg_catalog")
    sums = func.sum(column("seq_tup_read")), func.sum(column("idx_tup_fetch"))
    query = select(*sums).select_from(touched).where(touched.c.relname.in_([t.name for t in DATA]))
    for first, at in ((0, minute(1)), (1000, minute(2))):
        with writing(engine) as connection:
            # As if each page of a table were a thousand.
            connection.exec_driver_sql("SET LOCAL seq_page_cost = 1000")
            read_through, read_by_key = connection.execute(query).one()
            store_pages(connection, mixed_batch(first, at), run_id=run_id, now=EVENING)
            more_through, more_by_key = connection.execute(query).one()
        assert more_through == read_through
        assert more_by_key - read_by_key < 10 * 400
        with engine.begin() as connection:
            connection.exec_driver_sql("ANALYZE")


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_who_is_in_every_chat_costs_no_more_in_postgresql(
    engine: Engine, save: Save, run_id: int
) -> None:
    """The index of participants does not go through all rows of one to add another."""
    load(save, 20_000)
    query = "SELECT pg_stat_get_xact_blocks_fetched('ix_chat_handles_phone_number'::regclass)"
    with writing(engine) as connection:
        before = connection.exec_driver_sql(query).scalar_one()
        store_pages(connection, [page_of(10**6)], run_id=run_id, now=EVENING)
        fetched = connection.exec_driver_sql(query).scalar_one() - before
    assert 0 < fetched < 10 * 200


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_batch_costs_the_same_in_a_large_sqlite_file(engine: Engine, save: Save) -> None:
    """Its steps in the database's machine do not grow with the tables."""
    steps = Counter[str]()

    def step() -> int:
        steps["hundreds"] += 1
        return 0

    @event.listens_for(engine, "checkout")
    def count_steps(connection: Any, *_: Any) -> None:
        connection.set_progress_handler(step, 100)

    def cost(first: int, at: datetime) -> int:
        steps.clear()
        save(*mixed_batch(first, at))
        return steps["hundreds"]

    load(save, 1_000)
    small = cost(0, minute(1))
    load(save, 10_000)
    assert cost(5_000, minute(2)) < 1.2 * small


# Any sequence of batches

CHAT_NAMES = {
    "display_name": "display_name",
    "service": "service",
    "group": "is_group",
    "message_count": "message_count",
}
HANDLE_NAMES = {name: name for name in ("phone_number", "service", "joined_at")}


@dataclass(frozen=True)
class Told:
    """A page of a number's list, before it is written as JSON."""

    under: str
    at: datetime
    emit_created: bool
    items: list[Item]

    def listing(self) -> ObservedPage:
        return listing(*self.items, under=self.under, at=self.at, emit_created=self.emit_created)


@dataclass
class Model:
    """What the tables should hold: the rules of storing, in the plainest way that there is."""

    chats: dict[int, Item] = field(default_factory=dict)
    handles: dict[tuple[int, int], Item] = field(default_factory=dict)
    links: dict[tuple[str, int], Item] = field(default_factory=dict)
    message_counts: list[Item] = field(default_factory=list)
    events: list[Item] = field(default_factory=list)

    def store(self, batch: Sequence[Told]) -> None:
        latest, listed = {}, {}
        for told in sorted(batch, key=lambda told: told.at):
            latest.update({item["id"]: (item, told) for item in told.items})
            listed.update({(told.under, item["id"]): told.at for item in told.items})
        for item, told in latest.values():
            self._store_chat(item, told)
        for key, at in listed.items():
            row = link_row(*key, first_seen_at=at)
            self.links.setdefault(key, row)["removed_at"] = None

    def remove_all(self, at: datetime) -> None:
        for row in self.chats.values():
            row.update(changed_at=at, removed_at=at)
        for row in self.links.values():
            row.update(removed_at=at)

    def _store_chat(self, item: Item, told: Told) -> None:
        id, old = item["id"], self.chats.get(item["id"])  # noqa: A001
        new = self.chats[id] = _merged(old, item, CHAT_NAMES, told.at, {"id": id})
        if old is None or old["message_count"] != new["message_count"]:
            self.message_counts.append(count_row(id, told.at, new["message_count"]))
        if old is None and told.emit_created:
            self._happened("created", told.at, id)
        if old and old["removed_at"]:
            self._happened("restored", told.at, id)
        for name, kind in (
            ("display_name", "renamed"),
            ("service", "service_changed"),
            ("is_group", "group_changed"),
        ):
            if old and old[name] != new[name]:
                self._happened(kind, told.at, id, old[name], new[name])
        if item.get("chat_handles") is not None:
            self._store_handles(item, told.at, joins_count=old is not None)

    def _store_handles(self, item: Item, at: datetime, *, joins_count: bool) -> None:
        listed = {(item["id"], member["id"]): member for member in item["chat_handles"]}
        for key, member in listed.items():
            old = self.handles.get(key)
            new = _merged(old, member, HANDLE_NAMES, at, {"chat_id": key[0], "id": key[1]})
            self.handles[key] = new
            if joins_count and (old is None or old["removed_at"]):
                self._happened("joined", at, key[0], None, new["phone_number"])
        for key, row in self.handles.items():
            if key[0] == item["id"] and key not in listed and not row["removed_at"]:
                row.update(changed_at=at, removed_at=at)
                self._happened("left", at, key[0], row["phone_number"], None)

    def _happened(
        self, kind: str, at: datetime, chat_id: int, old: Any = None, new: Any = None
    ) -> None:
        texts = {True: "true", False: "false"}
        values = [texts[v] if isinstance(v, bool) else v for v in (old, new)]
        self.events.append(event_row(kind, *values, observed_at=at, chat_id=chat_id))


def _merged(
    old: Item | None, item: Item, names: Mapping[str, str], at: datetime, key: Item
) -> Item:
    """The row after the item was read: the same if nothing differs."""
    told = {stored: item[name] for name, stored in names.items() if name in item}
    if told.get("joined_at"):
        told["joined_at"] = datetime.fromisoformat(told["joined_at"])
    unknown = {"extra": {"mood": item["mood"]} if "mood" in item else None}
    blank: Item = {**key, **dict.fromkeys(names.values()), "first_seen_at": at}
    row = {**(old or blank), **told, **unknown, "removed_at": None}
    return old if old and row == old else {**row, "changed_at": at}


def some(ids: st.SearchStrategy[int], **fields: Any) -> st.SearchStrategy[Item]:
    """Records with such an id and some of these fields, each with one of its values."""
    values = {
        name: st.sampled_from(value) if isinstance(value, list) else value
        for name, value in fields.items()
    }
    return st.fixed_dictionaries({"id": ids}, optional=values)


MEMBERS = some(
    st.integers(11, 13),
    phone_number=["+13125550011", "bo@example.com", None],
    service=["SMS", "iMessage"],
    joined_at=["2025-05-21T15:30:00-05:00", "2025-05-21T20:30:00Z", "2025-01-01T00:00Z", None],
    mood=["good", None],
)
CHATS = some(
    st.integers(1, 4),
    display_name=["Ada", "Bo", None],
    service=["SMS", "iMessage", None],
    group=[True, False, None],
    message_count=[0, 1, BIGGEST, None],
    mood=["good", {"a": [1]}],
    chat_handles=st.none() | st.lists(MEMBERS, max_size=4),
)
PAGES = st.tuples(
    st.sampled_from([A, B]), st.integers(0, 3), st.booleans(), st.lists(CHATS, max_size=4)
)
# Explaining takes a minute with a database, and the shrunk history says it all.
WITHOUT_EXPLAIN = set(Phase) - {Phase.explain}
# None stands for the removal of everything.
HISTORIES = st.lists(st.none() | st.lists(PAGES, min_size=1, max_size=3), max_size=5)


def test_any_sequence_of_batches_leaves_what_a_plain_model_has(
    engine: Engine, run_id: int, save: Save, rows: Rows
) -> None:
    """Whatever is told in whatever order, all rows of all tables are as the rules say."""

    @settings(max_examples=75 if engine.dialect.name == "sqlite" else 20, phases=WITHOUT_EXPLAIN)
    @given(HISTORIES)
    def check(history: list[Any]) -> None:
        model = Model()
        with writing(engine) as connection:
            for emptied in reversed(DATA):
                connection.execute(delete(emptied))
        for hour, batch in enumerate(history):
            if batch is None:
                mark_removed(engine, minute(60 * hour))
                model.remove_all(minute(60 * hour))
                continue
            told = [
                Told(u, minute(60 * hour + m), emit_created, items)
                for u, m, emit_created, items in batch
            ]
            save(*(page.listing() for page in told))
            model.store(told)
        assert rows(chats) == [model.chats[key] for key in sorted(model.chats)]
        assert rows(chat_handles) == [model.handles[key] for key in sorted(model.handles)]
        assert rows(chat_phone_numbers) == [model.links[key] for key in sorted(model.links)]
        assert rows(chat_message_counts) == sorted(
            model.message_counts, key=lambda row: (row["chat_id"], row["observed_at"])
        )
        events = [without(row, "id") for row in rows(chat_events)]
        assert sorted(events, key=repr) == sorted(model.events, key=repr)

    check()

"""Texts, numbers, times and unknown fields come back as the API sent them."""

import json
import tracemalloc
from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine

from etl.db.tables import chat_events, chat_handles, chat_phone_numbers, chats
from tests.db.store.conftest import Store, counts, forget_digests
from tests.support.builders import (
    JOINED,
    A,
    Rows,
    chat,
    chat_row,
    handle,
    handle_row,
    link_row,
    minute,
    observed_page,
)
from tests.support.marks import only_sqlite, slow_on_mysql

# As deep as a record may be: a participant's field is in the third level.
NESTED: object = json.loads('{"a":' * 397 + "1" + "}" * 397)

# Inserts and updates take different ways into the database.
both_ways = pytest.mark.parametrize("known", [False, True], ids=["inserted", "updated"])


def store_bare(store: Store, chat_ids: range | list[int], handle_ids: range | list[int]) -> None:
    """Store these chats, each with these participants, without values."""
    handles = [{"id": handle_id} for handle_id in handle_ids]
    store(observed_page(*({"id": chat_id, "chat_handles": handles} for chat_id in chat_ids)))


@both_ways
def test_text_is_stored_verbatim(store: Store, rows: Rows, known: bool) -> None:
    """Each character, in both tables and in unknown fields."""
    texts = [
        "\U0001f468\u200d\U0001f469\u200d\U0001f467 Café \u202e 中文 \U0001f9ff",
        "x" * 100_000,
        "'; DROP TABLE chats; --\\N\t\r\n\"{}\x7f\x01",
        "NULL",
        "12345678901234567890",
        "true",
        " ",
    ]
    records = [
        chat(
            number,
            display_name=text,
            service=text,
            mood=text,
            chat_handles=[handle(12, service=text)],
        )
        for number, text in enumerate(texts)
    ]
    if known:
        store_bare(store, range(len(texts)), [12])
    store(observed_page(*records))
    assert rows(chats) == [
        chat_row(number, display_name=text, service=text, extra={"mood": text})
        for number, text in enumerate(texts)
    ]
    assert [row["service"] for row in rows(chat_handles)] == texts
    assert store(observed_page(*records, at=minute(1)))[A]["chats_unchanged"] == len(texts)


def test_a_long_address_is_stored(store: Store, rows: Rows) -> None:
    """An e-mail address as long as the standard allows."""
    address = "a" * 64 + "@" + "b" * 185 + ".com"
    store(observed_page(chat(chat_handles=[handle(phone_number=address)])))
    assert rows(chat_handles) == [handle_row(phone_number=address)]


def test_text_that_no_database_holds_is_cleaned_and_counted(store: Store, rows: Rows) -> None:
    """NUL and lone surrogates become U+FFFD, also in unknown fields; read again, no change."""
    record = chat(display_name="a\0b", mood={"\ud83d": "\0\0"})
    assert store(observed_page(record))[A]["texts_cleaned"] == 3
    assert rows(chats) == [
        chat_row(display_name="a\ufffdb", extra={"mood": {"\ufffd": "\ufffd\ufffd"}})
    ]
    assert store(observed_page(record, at=minute(1)))[A]["chats_unchanged"] == 1


@both_ways
def test_numbers_have_64_bits(store: Store, rows: Rows, known: bool) -> None:
    """Ids and counts are exact to the last digit."""
    numbers = [-(2**63), -1, 0, 2**53 + 1, 2**63 - 1]
    if known:
        store_bare(store, numbers, numbers)
    records = (chat(n, message_count=n, chat_handles=[handle(n)]) for n in numbers)
    store(observed_page(*records))
    assert [(row["id"], row["message_count"]) for row in rows(chats)] == [(n, n) for n in numbers]
    present = [row for row in rows(chat_handles) if row["removed_at"] is None]
    assert [(row["chat_id"], row["id"]) for row in present] == [(n, n) for n in numbers]
    assert rows(chat_phone_numbers) == [link_row(chat_id=n) for n in numbers]


@both_ways
def test_times_are_utc_to_the_microsecond(store: Store, rows: Rows, known: bool) -> None:
    """Whatever the offset and the fraction; the same instant in other words is no change."""
    instants = {
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
    if known:
        store_bare(store, [1], range(len(instants)))
    as_sent = [handle(number, joined_at=text) for number, text in enumerate(instants)]
    store(observed_page(chat(chat_handles=as_sent)))
    assert rows(chat_handles) == [
        handle_row(1, number, joined_at=at) for number, at in enumerate(instants.values())
    ]
    in_utc = [handle(n, joined_at=at.isoformat()) for n, at in enumerate(instants.values())]
    again = store(observed_page(chat(chat_handles=in_utc), at=minute(1)))
    assert again == {A: counts(chats_unchanged=1)}


@only_sqlite
@both_ways
def test_times_in_sqlite_sort_as_text(engine: Engine, store: Store, known: bool) -> None:
    """All have the same form, so that SQL can compare them without a function."""
    if known:
        store_bare(store, [1], [11])
    store(observed_page(chat(chat_handles=[handle(joined_at="2025-05-21T20:30:00.5Z")])))
    columns = "changed_at, first_seen_at, joined_at"
    with engine.connect() as connection:
        written = connection.exec_driver_sql(f"SELECT {columns} FROM chat_handles").one()
    noon = "2025-06-01 12:00:00.000000"
    assert tuple(written) == (noon, noon, "2025-05-21 20:30:00.500000")


def test_unknown_fields_compare_by_value(store: Store, rows: Rows) -> None:
    """Another order of keys is no change, another value is; a field sent no more is dropped."""
    store(observed_page(chat(tags={"a": 1, "b": [True, None]}, z=1)))
    reordered = chat(z=1, tags={"b": [True, None], "a": 1})
    assert store(observed_page(reordered, at=minute(1)))[A]["chats_unchanged"] == 1
    store(observed_page(chat(tags={"a": 1, "b": [True, 0]}), at=minute(2)))
    changed = {"extra": {"tags": {"a": 1, "b": [True, 0]}}, "changed_at": minute(2)}
    assert rows(chats) == [chat_row(**changed)]
    store(observed_page(chat(), at=minute(3)))
    assert rows(chats) == [chat_row(changed_at=minute(3))]


@pytest.mark.parametrize("value", [1e16, 1e23, 0.1, -0.0, 5e-324, 2**70, "1e16", True, NESTED])
def test_unknown_values_are_unchanged_when_read_again(
    engine: Engine, store: Store, value: object
) -> None:
    """Also without a digest, when the value is compared with what the database made of it."""
    store(observed_page(chat(size=value, chat_handles=[handle(size=value)])))
    forget_digests(engine)
    again = chat(size=value, chat_handles=[handle(size=value)])
    assert store(observed_page(again, at=minute(1))) == {A: counts(chats_unchanged=1)}


@slow_on_mysql
def test_large_stored_texts_are_compared_in_little_memory(store: Store, rows: Rows) -> None:
    """However little replaces them, many of them are never in memory at once."""
    name = "😀" + "a" * (2**20 - 1)  # 4 MiB in memory
    for number in range(40):
        store(observed_page(chat(number, display_name=name)))

    short = observed_page(*map(chat, range(40)), at=minute(1))
    tracemalloc.start()
    try:
        store(short)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 100 * 2**20
    assert {row["display_name"] for row in rows(chats)} == {"Ada"}


def test_chats_that_are_compared_one_by_one(
    store: Store, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counts and the order of events are those of a single portion."""
    monkeypatch.setattr("etl.db.store.read.PORTION_BYTES", 1)
    store(observed_page(chat(1), chat(2), chat(3)))
    changed = (chat(number, display_name="Bo", chat_handles=[]) for number in (1, 2, 3))
    found = store(observed_page(*changed, chat(4), at=minute(1)))[A]
    names = ("chats_seen", "chats_inserted", "chats_updated", "handles_removed")
    assert [found[name] for name in names] == [4, 1, 3, 3]
    happened = [(row["chat_id"], row["kind"]) for row in rows(chat_events)]
    changes = [(n, kind) for n in (1, 2, 3) for kind in ("renamed", "left")]
    assert happened == [(4, "created"), *changes]

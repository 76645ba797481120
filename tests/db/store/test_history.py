"""Events and message counts."""

import pytest
from sqlalchemy import Engine

from etl.db import run_log
from etl.db.engine import writing
from etl.db.run_log import NumberOutcome
from etl.db.tables import chat_message_counts
from tests.db.store.conftest import Events, Store
from tests.support.builders import (
    NOON,
    A,
    B,
    Rows,
    chat,
    count_row,
    event_row,
    handle,
    load_numbers,
    minute,
    observed_page,
    start_run,
)


def test_a_new_chat_is_an_event_after_the_first_full_read(store: Store, events: Events) -> None:
    """Its first participants are none, and neither is a chat found by the first full read."""
    store(observed_page(chat(1)))
    store(observed_page(chat(1), chat(2), at=minute(1)))
    assert events() == [event_row("created", chat_id=2)]


def test_each_change_is_an_event(store: Store, events: Events) -> None:
    """With the value before and after; a change of the message count is not an event."""
    store(observed_page(chat()))
    changed = chat(
        display_name="Bo",
        service="SMS",
        group=True,
        message_count=2,
        chat_handles=[handle(12, service="SMS")],
    )
    store(observed_page(changed, at=minute(1)))
    assert sorted(events(), key=lambda row: row["kind"]) == [
        event_row("group_changed", "false", "true"),
        event_row("joined", None, "+13125550012"),
        event_row("left", "+13125550011"),
        event_row("renamed", "Ada", "Bo"),
        event_row("service_changed", "iMessage", "SMS"),
    ]


def test_null_is_a_value_like_any_other(store: Store, events: Events) -> None:
    """An event can lead from null or to null."""
    store(observed_page(chat(group=None)))
    store(observed_page(chat(display_name=None, group=False), at=minute(1)))
    assert events() == [
        event_row("renamed", "Ada", None),
        event_row("group_changed", None, "false"),
    ]


def test_a_message_count_has_a_row_per_change(store: Store, rows: Rows) -> None:
    """The first value, then one row whenever it changed, also down and to null."""
    for number, value in enumerate([1, 1, 5, 5, 3, None, None, 3]):
        record = chat(message_count=value, display_name=str(number))
        store(observed_page(record, at=minute(number)))
    assert rows(chat_message_counts) == [
        count_row(1, NOON, 1),
        count_row(1, minute(2), 5, gained=4, since=minute(1)),
        count_row(1, minute(4), 3, gained=0, since=minute(3)),
        count_row(1, minute(5), None),
        count_row(1, minute(7), 3),
    ]


# First loads


def test_a_first_load_makes_no_events(engine: Engine, store: Store, events: Events) -> None:
    """Not even if chats change between its readings."""
    store(observed_page(chat()))
    load_numbers(engine, A, at=None)
    store(observed_page(chat(display_name="Bo", chat_handles=[handle(12)]), at=minute(1)))
    assert events() == []


def test_a_chat_that_a_loaded_number_lists_is_watched_during_another_first_load(
    engine: Engine, store: Store, rows: Rows, events: Events
) -> None:
    """The gain counts from the last time that one of the lists was read with the chat."""
    store(observed_page(chat()))
    store(observed_page(chat(), phone_number=B, at=minute(1)))
    load_numbers(engine, B, at=None)
    changed = chat(display_name="Bo", message_count=3)
    store(observed_page(changed, phone_number=B, at=minute(2)))
    assert events() == [
        event_row("renamed", "Ada", "Bo", observed_at=minute(2)),
    ]
    assert rows(chat_message_counts) == [
        count_row(1, NOON, 1),
        count_row(1, minute(2), 3, gained=2, since=NOON),
    ]


@pytest.mark.parametrize("first", [A, B])
def test_a_new_chat_of_two_numbers_is_watched_if_one_is_loaded(
    store: Store, events: Events, first: str
) -> None:
    """Whichever page comes first in a batch."""
    store(observed_page(chat(1)))
    loaded, new = observed_page(chat(2), at=minute(1)), observed_page(chat(2), phone_number=B)
    store(*((new, loaded) if first == B else (loaded, new)))
    assert events() == [event_row("created", chat_id=2)]


def test_a_list_that_was_read_without_a_change_dates_the_gain(
    engine: Engine, store: Store, rows: Rows
) -> None:
    """From the start of the last run that read it to the end, over midnight: two days."""
    store(observed_page(chat()))
    walk, _ = start_run(engine, A, now=minute(60))
    read = NumberOutcome(A, "succeeded", completeness="consistent", evidence={"missing": 0})
    with writing(engine) as connection:
        run_log.close_number(connection, walk, read, minute(61))
    store(observed_page(chat(message_count=4), at=minute(721)), now=minute(722))
    assert rows(chat_message_counts) == [
        count_row(1, NOON, 1),
        count_row(1, minute(721), 4, gained=3, since=minute(60)),
    ]
    assert [row["spread_days"] for row in rows(chat_message_counts)] == [None, 2]

"""Events and message counts."""

from etl.db.tables import chat_message_counts
from tests.db.store.conftest import Events, Store
from tests.support.builders import (
    NOON,
    Rows,
    chat,
    count_row,
    event_row,
    handle,
    minute,
    observed_page,
)


def test_a_new_chat_is_an_event_after_the_first_full_read(store: Store, events: Events) -> None:
    """Its first participants are none, and neither is a chat found by the first full read."""
    store(observed_page(chat(1), emit_created=False))
    store(observed_page(chat(1), chat(2), at=minute(1), emit_created=True))
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
        count_row(1, minute(2), 5),
        count_row(1, minute(4), 3),
        count_row(1, minute(5), None),
        count_row(1, minute(7), 3),
    ]

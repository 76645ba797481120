"""Answers that are stored in another order than they were given, and clocks that were wrong."""

from sqlalchemy import Engine

from etl.db.tables import chat_handles, chat_message_counts, chat_phone_numbers, chats
from tests.db.store.conftest import Events, Store, counts, remove_everything
from tests.support.builders import (
    NOON,
    A,
    Rows,
    chat,
    chat_row,
    count_row,
    event_row,
    handle,
    handle_row,
    link_row,
    minute,
    observed_page,
)


def test_an_older_page_does_not_change_a_newer_row(store: Store, rows: Rows) -> None:
    """An answer from before the row's last change is ignored, participants included."""
    newer = chat(display_name="New", chat_handles=[handle(service="SMS")])
    store(observed_page(chat(chat_handles=[handle(), handle(12)])))
    store(observed_page(newer, at=minute(2)))
    stored = rows(chats), rows(chat_handles)
    older = chat(display_name="Old", chat_handles=[handle(service="RCS"), handle(12)])
    assert store(observed_page(older, at=minute(1))) == {A: counts(chats_unchanged=1)}
    emptied = store(observed_page(chat(chat_handles=[]), at=minute(1)))
    assert emptied[A]["handles_removed"] == 0
    assert (rows(chats), rows(chat_handles)) == stored


def test_an_older_page_does_not_change_a_newer_participant(store: Store, rows: Rows) -> None:
    """Where only a participant has changed since, the whole answer is ignored too."""
    store(observed_page(chat()))
    store(observed_page(chat(chat_handles=[handle(service="SMS")]), at=minute(2)))
    stored = rows(chats), rows(chat_handles)
    store(observed_page(chat(display_name="Old", chat_handles=[]), at=minute(1)))
    assert (rows(chats), rows(chat_handles)) == stored


def test_of_two_answers_of_one_instant_the_second_is_stored(store: Store, rows: Rows) -> None:
    """Their order is unknown."""
    store(observed_page(chat()))
    store(observed_page(chat(display_name="Bo")))
    assert rows(chats) == [chat_row(display_name="Bo")]


def test_a_row_from_the_future_can_be_changed(store: Store, rows: Rows) -> None:
    """A row that was written under a wrong clock follows the next answer."""
    store(observed_page(chat(), at=minute(900)), now=minute(900))
    store(observed_page(chat(display_name="Bo", chat_handles=[handle(12)])), now=minute(1))
    assert rows(chats) == [chat_row(display_name="Bo", first_seen_at=minute(900))]
    left = handle_row(first_seen_at=minute(900), removed_at=NOON)
    assert rows(chat_handles) == [left, handle_row(1, 12)]


def test_a_removed_chat_is_restored(
    engine: Engine, store: Store, rows: Rows, events: Events
) -> None:
    """Listed again, it returns with its membership, and the time when it was first seen stays."""
    store(observed_page(chat()))
    remove_everything(engine, minute(1))
    assert store(observed_page(chat(), at=minute(2))) == {
        A: counts(chats_updated=1, chats_unchanged=0)
    }
    assert rows(chats) == [chat_row(changed_at=minute(2))]
    assert rows(chat_phone_numbers) == [link_row()]
    assert rows(chat_message_counts) == [count_row()]
    assert events() == [event_row("restored", observed_at=minute(2))]


def test_an_older_page_does_not_restore_a_removed_chat(
    engine: Engine, store: Store, rows: Rows, events: Events
) -> None:
    """An answer from before the removal proves nothing."""
    store(observed_page(chat()))
    remove_everything(engine, minute(2))
    assert store(observed_page(chat(), at=minute(1))) == {A: counts(chats_unchanged=1)}
    assert rows(chats) == [chat_row(changed_at=minute(2), removed_at=minute(2))]
    assert rows(chat_phone_numbers) == [link_row(removed_at=minute(2))]
    assert events() == []

"""Participants who leave and come back."""

import pytest

from etl.db.tables import chat_handles
from tests.db.store.conftest import Events, Store, counts
from tests.support.builders import (
    A,
    Row,
    Rows,
    chat,
    event_row,
    handle,
    handle_row,
    minute,
    observed_page,
    without,
)


def test_a_participant_who_is_no_longer_listed_has_left(
    store: Store, rows: Rows, events: Events
) -> None:
    """Marked with the time of the answer, never deleted; the others are not written."""
    store(observed_page(chat(chat_handles=[handle(11), handle(12)])))
    left = store(observed_page(chat(chat_handles=[handle(11)]), at=minute(1)))
    assert left == {A: counts(handles_removed=1, chats_unchanged=1)}
    gone = handle_row(1, 12, changed_at=minute(1), removed_at=minute(1))
    assert rows(chat_handles) == [handle_row(), gone]
    assert events() == [event_row("left", "+13125550012")]
    again = store(observed_page(chat(chat_handles=[handle(11)]), at=minute(2)))
    assert again == {A: counts(chats_unchanged=1)}
    assert rows(chat_handles) == [handle_row(), gone]


def test_a_participant_who_returns_is_restored(store: Store, rows: Rows, events: Events) -> None:
    """With the values of now, and the time when the participant was first seen."""
    store(observed_page(chat()))
    store(observed_page(chat(chat_handles=[]), at=minute(1)))
    returned = chat(chat_handles=[handle(service="SMS")])
    assert store(observed_page(returned, at=minute(2))) == {
        A: counts(handles_updated=1, chats_unchanged=1)
    }
    assert rows(chat_handles) == [handle_row(service="SMS", changed_at=minute(2))]
    assert events() == [
        event_row("left", "+13125550011"),
        event_row("joined", None, "+13125550011", observed_at=minute(2)),
    ]


def test_an_empty_list_means_that_all_have_left(store: Store, rows: Rows) -> None:
    """An empty list says something; a missing one does not."""
    store(observed_page(chat(chat_handles=[handle(11), handle(12)])))
    left = store(observed_page(chat(chat_handles=[]), at=minute(1)))
    assert left[A]["handles_removed"] == 2
    assert {row["removed_at"] for row in rows(chat_handles)} == {minute(1)}


@pytest.mark.parametrize(
    "silent", [without(chat(), "chat_handles"), chat(chat_handles=None)], ids=["missing", "null"]
)
def test_without_a_list_all_participants_stay(store: Store, rows: Rows, silent: Row) -> None:
    """Whether the list is missing or null."""
    store(observed_page(chat()))
    assert store(observed_page(silent, at=minute(1))) == {A: counts(chats_unchanged=1)}
    assert rows(chat_handles) == [handle_row()]


def test_a_participant_listed_twice_is_one(store: Store, rows: Rows) -> None:
    """The last entry counts."""
    twice = chat(chat_handles=[handle(service="SMS"), handle(12), handle(service="RCS")])
    assert store(observed_page(twice))[A]["handles_inserted"] == 2
    assert rows(chat_handles) == [handle_row(service="RCS"), handle_row(1, 12)]


def test_a_handle_id_belongs_to_its_chat(store: Store, rows: Rows) -> None:
    """The same handle id in two chats is two rows, and one of them can leave."""
    store(observed_page(chat(1), chat(2)))
    store(observed_page(chat(2, chat_handles=[]), at=minute(1)))
    gone = handle_row(2, changed_at=minute(1), removed_at=minute(1))
    assert rows(chat_handles) == [handle_row(), gone]

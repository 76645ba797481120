"""Chats that a walk did not see: gone, no longer in this list, or missing."""

from collections.abc import Callable

import pytest
from sqlalchemy import Engine

from etl.db.engine import reading, writing
from etl.db.store import removals
from etl.db.store.removals import Removals, known_chats, store_removals
from etl.db.tables import chat_handles, chat_phone_numbers, chats
from tests.db.store.conftest import Events, Store
from tests.support.builders import (
    A,
    B,
    Rows,
    chat,
    chat_row,
    event_row,
    handle_row,
    link_row,
    minute,
    observed_page,
)

Remove = Callable[..., int]


@pytest.fixture
def remove(engine: Engine, run_id: int) -> Remove:
    """Stores the outcome of a walk of A a minute past noon; returns the count of removed chats."""

    def remove(
        gone: tuple[int, ...] = (),
        left: tuple[int, ...] = (),
        missing: tuple[int, ...] = (),
        phone_number: str = A,
        at: int = 1,
    ) -> int:
        outcome = Removals(phone_number, gone, left, missing, minute(at))
        with writing(engine) as connection:
            return store_removals(connection, outcome, run_id=run_id)

    return remove


def test_a_chat_that_is_gone_is_marked(
    store: Store, remove: Remove, rows: Rows, events: Events
) -> None:
    """Chat and membership have the time of the answer, its participants stay, an event tells it."""
    store(observed_page(chat(1), chat(2)))
    assert remove(gone=(2,)) == 1
    assert rows(chats) == [chat_row(1), chat_row(2, changed_at=minute(1), removed_at=minute(1))]
    assert rows(chat_phone_numbers) == [link_row(A, 1), link_row(A, 2, removed_at=minute(1))]
    assert rows(chat_handles) == [handle_row(1), handle_row(2)]
    assert events() == [event_row("removed", chat_id=2)]


def test_a_removed_chat_is_not_removed_again(
    store: Store, remove: Remove, rows: Rows, events: Events
) -> None:
    """Its first removal keeps its time and its only event."""
    store(observed_page(chat()))
    assert [remove(gone=(1,)), remove(gone=(1,), at=2)] == [1, 0]
    assert rows(chats) == [chat_row(changed_at=minute(1), removed_at=minute(1))]
    assert rows(chat_phone_numbers) == [link_row(removed_at=minute(1))]
    assert events() == [event_row("removed")]


def test_a_chat_that_another_number_lists_stays(
    store: Store, remove: Remove, rows: Rows, events: Events
) -> None:
    """It is removed only when the last number that lists it has found it gone."""
    store(observed_page(chat()), observed_page(chat(), phone_number=B))
    assert remove(gone=(1,)) == 0
    assert rows(chats) == [chat_row()]
    assert rows(chat_phone_numbers) == [link_row(B), link_row(A, removed_at=minute(1))]
    assert events() == []
    assert remove(gone=(1,), phone_number=B, at=2) == 1
    assert rows(chats) == [chat_row(changed_at=minute(2), removed_at=minute(2))]
    assert events() == [event_row("removed", observed_at=minute(2))]


def test_a_chat_that_left_the_list_exists(
    store: Store, remove: Remove, rows: Rows, events: Events
) -> None:
    """Only its membership is marked, although no number lists it."""
    store(observed_page(chat()))
    assert remove(left=(1,)) == 0
    assert rows(chats) == [chat_row()]
    assert rows(chat_phone_numbers) == [link_row(removed_at=minute(1))]
    assert events() == []


def test_a_missing_chat_is_marked_once(store: Store, remove: Remove, rows: Rows) -> None:
    """The mark says since when; once the chat is known to have left, that mark is cleared."""
    store(observed_page(chat()))
    assert [remove(missing=(1,)), remove(missing=(1,), at=2)] == [0, 0]
    assert rows(chats) == [chat_row()]
    assert rows(chat_phone_numbers) == [link_row(missing_since=minute(1))]
    remove(left=(1,), at=3)
    assert rows(chat_phone_numbers) == [link_row(removed_at=minute(3))]


def test_known_chats_are_those_that_the_number_lists(
    engine: Engine, store: Store, remove: Remove
) -> None:
    """In two groups: listed by the last walk, or missed by it. Removed ones are left out."""
    store(observed_page(*map(chat, range(1, 6))), observed_page(chat(6), phone_number=B))
    remove(gone=(1,), left=(2,), missing=(3,))
    with reading(engine) as connection:
        known = [(missing, sorted(ids)) for missing, ids in known_chats(connection, A)]
    assert known == [(False, [4, 5]), (True, [3])]


def test_any_number_of_chats_is_read_and_marked(
    engine: Engine, store: Store, remove: Remove, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than fit into one statement."""
    monkeypatch.setattr(removals, "CHUNK", 2)
    store(observed_page(*map(chat, range(5))))
    with reading(engine) as connection:
        chunks = [(missing, len(ids)) for missing, ids in known_chats(connection, A)]
    assert chunks == [(False, 2), (False, 2), (False, 1)]
    assert remove(gone=tuple(range(5))) == 5
    assert {row["removed_at"] for row in rows(chats)} == {minute(1)}
    assert {row["removed_at"] for row in rows(chat_phone_numbers)} == {minute(1)}

"""Which number lists which chat: added, and restored when it is listed again."""

import pytest
from sqlalchemy import Engine, update

from etl.db.engine import writing
from etl.db.tables import chat_events, chat_phone_numbers, chats
from tests.db.store.conftest import Store, counts
from tests.support.builders import (
    A,
    B,
    Rows,
    chat,
    chat_row,
    link_row,
    minute,
    observed_page,
)

both_marks = pytest.mark.parametrize("mark", ["removed_at", "missing_since"])


def mark_all(engine: Engine, mark: str, at: int) -> None:
    with writing(engine) as connection:
        connection.execute(update(chat_phone_numbers).values({mark: minute(at)}))


def test_a_second_number_adds_only_its_membership(store: Store, rows: Rows) -> None:
    """A known chat in another number's list is not written again."""
    store(observed_page(chat()))
    page = observed_page(chat(), phone_number=B, at=minute(1))
    assert store(page) == {B: counts(chats_unchanged=1)}
    assert rows(chats) == [chat_row()]
    assert rows(chat_phone_numbers) == [link_row(B, first_seen_at=minute(1)), link_row(A)]


def test_a_chat_asked_for_by_id_is_in_no_list(store: Store, rows: Rows) -> None:
    """It is stored and counted, but neither as a page nor as a membership."""
    assert store(observed_page(chat(), listed=False)) == {
        A: counts(pages=0, chats_inserted=1, handles_inserted=1, chats_unchanged=0)
    }
    assert rows(chats) == [chat_row()]
    assert rows(chat_phone_numbers) == []


@both_marks
def test_a_membership_returns_alone(engine: Engine, store: Store, rows: Rows, mark: str) -> None:
    """The chat that exists all the while is unchanged, and there is no event."""
    store(observed_page(chat()))
    mark_all(engine, mark, at=1)
    assert store(observed_page(chat(), at=minute(2))) == {A: counts(chats_unchanged=1)}
    assert rows(chat_phone_numbers) == [link_row()]
    assert rows(chats) == [chat_row()]
    assert rows(chat_events) == []


@both_marks
def test_only_the_number_that_lists_the_chat_restores_it(
    engine: Engine, store: Store, rows: Rows, mark: str
) -> None:
    """Another number's membership of the same chat stays as it is."""
    store(observed_page(chat()), observed_page(chat(), phone_number=B))
    mark_all(engine, mark, at=1)
    store(observed_page(chat(), at=minute(2)))
    assert rows(chat_phone_numbers) == [link_row(B, **{mark: minute(1)}), link_row(A)]


@both_marks
def test_an_older_page_does_not_restore_a_membership(
    engine: Engine, store: Store, rows: Rows, mark: str
) -> None:
    """An answer from before the removal proves nothing."""
    store(observed_page(chat()))
    mark_all(engine, mark, at=2)
    store(observed_page(chat(), at=minute(1)))
    assert rows(chat_phone_numbers) == [link_row(**{mark: minute(2)})]


@both_marks
def test_a_mark_from_the_future_is_removed(
    engine: Engine, store: Store, rows: Rows, mark: str
) -> None:
    """A membership that was marked under a wrong clock follows the next answer."""
    store(observed_page(chat()))
    mark_all(engine, mark, at=900)
    store(observed_page(chat(), at=minute(1)), now=minute(2))
    assert rows(chat_phone_numbers) == [link_row()]

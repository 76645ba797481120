"""A chat that is read more than once, in one batch or in several; unchanged chats by digest."""

import pytest
from sqlalchemy import Engine, update

from etl.db.engine import writing
from etl.db.tables import chat_handles, chat_phone_numbers, chats
from tests.db.store.conftest import Store, counts, digests
from tests.support.builders import (
    A,
    B,
    Row,
    Rows,
    chat,
    chat_row,
    handle,
    handle_row,
    link_row,
    minute,
    observed_page,
    without,
)

# Within a batch


def test_a_chat_twice_in_a_batch_is_stored_as_last_read(store: Store, rows: Rows) -> None:
    """Two pages between which the list moved: the later one counts, in whatever order they come."""
    earlier = observed_page(chat(display_name="Old", chat_handles=[handle(12)]))
    later = observed_page(chat(display_name="New"), at=minute(1), page_number=2)
    expected = counts(
        pages=2, chats_seen=2, chats_inserted=1, handles_inserted=1, chats_unchanged=1
    )
    assert store(later, earlier) == {A: expected}
    times = {"first_seen_at": minute(1), "changed_at": minute(1)}
    assert rows(chats) == [chat_row(display_name="New", **times)]
    assert rows(chat_handles) == [handle_row(**times)]


def test_a_chat_twice_on_a_page_is_stored_as_the_second(store: Store, rows: Rows) -> None:
    """Within one answer, the last record counts."""
    expected = counts(chats_seen=2, chats_inserted=1, handles_inserted=1, chats_unchanged=1)
    assert store(observed_page(chat(display_name="One"), chat(display_name="Two"))) == {A: expected}
    assert rows(chats) == [chat_row(display_name="Two")]


def test_a_chat_in_two_numbers_lists_is_one_chat(store: Store, rows: Rows) -> None:
    """One row with two memberships, counted as inserted for the number that listed it first."""
    assert store(observed_page(chat()), observed_page(chat(), phone_number=B, at=minute(1))) == {
        A: counts(chats_inserted=1, handles_inserted=1, chats_unchanged=0),
        B: counts(chats_unchanged=1),
    }
    times = {"first_seen_at": minute(1), "changed_at": minute(1)}
    assert rows(chats) == [chat_row(**times)]
    assert rows(chat_handles) == [handle_row(**times)]
    assert rows(chat_phone_numbers) == [link_row(B, first_seen_at=minute(1)), link_row(A)]


# Digests


@pytest.mark.parametrize(
    "other",
    [
        chat(display_name="Bo"),
        chat(chat_handles=[handle(service="SMS")]),
        chat(chat_handles=[handle(), handle(12)]),
        chat(chat_handles=[]),
    ],
    ids=["renamed", "participant changed", "joined", "left"],
)
def test_back_and_forth_is_two_changes(
    engine: Engine, store: Store, rows: Rows, other: Row
) -> None:
    """The digest follows the stored values, so that the way back is noticed too."""
    first, second = observed_page(chat()), observed_page(other, at=minute(1))
    store(first)
    store(second)
    changed = rows(chats), rows(chat_handles)
    assert digests(engine) == [second.page.chats[0].digest]
    assert store(observed_page(other, at=minute(2))) == {A: counts(chats_unchanged=1)}
    assert (rows(chats), rows(chat_handles)) == changed
    store(observed_page(chat(), at=minute(3)))
    assert digests(engine) == [first.page.chats[0].digest]
    present = [row for row in rows(chat_handles) if row["removed_at"] is None]
    assert [(row["id"], row["service"]) for row in present] == [(11, "iMessage")]
    assert rows(chats)[0]["display_name"] == "Ada"


def test_a_chat_without_a_digest_is_compared_and_gets_one(
    engine: Engine, store: Store, rows: Rows
) -> None:
    """A value that was changed by hand meanwhile is corrected."""
    page = observed_page(chat(1), chat(2))
    store(page)
    with writing(engine) as connection:
        connection.execute(update(chats).values(digest=None))
        connection.execute(update(chats).where(chats.c.id == 2).values(display_name="Bo"))
    assert store(observed_page(chat(1), chat(2), at=minute(1)))[A]["chats_updated"] == 1
    assert rows(chats) == [chat_row(1), chat_row(2, changed_at=minute(1))]
    assert digests(engine) == [each.digest for each in page.page.chats]


def test_leaving_out_the_same_fields_again_writes_nothing(
    engine: Engine, store: Store, rows: Rows
) -> None:
    """The digest differs and no value does, so not even the digest is written."""
    store(observed_page(chat()))
    before = rows(chats), rows(chat_handles), digests(engine)
    for number in (1, 2):
        shorter = without(chat(), "service", "chat_handles")
        assert store(observed_page(shorter, at=minute(number))) == {A: counts(chats_unchanged=1)}
    assert (rows(chats), rows(chat_handles), digests(engine)) == before

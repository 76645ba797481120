"""Names of chats where participants are hashed: groups keep theirs only if they name nobody."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine

from etl.api.privacy import Privacy
from etl.config import PrivacyKey
from etl.db.engine import reading, writing
from etl.db.store.batch import ObservedPage
from etl.db.store.names import with_settled_name
from etl.db.store.pages import store_pages
from etl.db.tables import chat_events, chat_handles, chat_name_hashes, chats
from tests.db.store.conftest import EVENING, Events, digests
from tests.support.builders import A, Rows, chat, event_row, load_numbers, minute, observed_page

PRIVACY = Privacy("hashed", PrivacyKey(b"f3c1a97be2054d68" * 2))

Store = Callable[..., None]


@pytest.fixture
def store(engine: Engine, run_id: int) -> Store:
    """Stores records as one page of a sync that hashes; minutes are counted from noon."""

    def store(*records: Any, at: int) -> None:
        page = observed_page(*records, at=minute(at))
        observed = ObservedPage(A, PRIVACY.page(page.page))
        with writing(engine) as connection:
            names = PRIVACY.name_hashes
            store_pages(connection, [observed], run_id=run_id, now=EVENING, name_hashes=names)
        load_numbers(engine, A)

    return store


@pytest.fixture
def names(rows: Rows) -> Callable[[], dict[int, str | None]]:
    return lambda: {row["id"]: row["display_name"] for row in rows(chats)}


def group(chat_id: int = 2, name: str = "Ada, Ben", **fields: Any) -> dict[str, Any]:
    return chat(chat_id, display_name=name, group=True, **fields)


@pytest.mark.parametrize("records", [[chat(), group()], [group(), chat()]])
def test_in_one_page(
    store: Store, names: Callable[[], dict[int, str | None]], records: list[Any]
) -> None:
    """The order does not matter."""
    store(*records, group(3, "Lunch, then bowling"), at=0)
    assert names() == {1: None, 2: None, 3: "Lunch, then bowling"}


@pytest.mark.parametrize("name", ["Ada, Ben", "Ben,ADA ", "Ada"])
def test_the_group_first(
    store: Store,
    names: Callable[[], dict[int, str | None]],
    rows: Rows,
    events: Events,
    engine: Engine,
    name: str,
) -> None:
    """Its stored name is erased without an event, and the next reading writes nothing."""
    store(group(name=name), at=0)
    assert names() == {2: name}
    store(chat(), at=1)
    assert names() == {1: None, 2: None}
    assert [row["changed_at"] for row in rows(chats)] == [minute(1), minute(1)]
    before = rows(chats), rows(chat_handles), rows(chat_name_hashes), digests(engine)
    store(group(name=name), chat(), at=2)
    store(group(name=name), at=3)
    assert (rows(chats), rows(chat_handles), rows(chat_name_hashes), digests(engine)) == before
    assert events() == [event_row("created")]


def test_a_group_in_the_same_page_as_its_person(store: Store, events: Events, rows: Rows) -> None:
    """The name that was stored before is in no event."""
    store(group(), at=0)
    store(group(message_count=2), chat(), at=1)
    assert [(row["display_name"], row["message_count"]) for row in rows(chats)] == [
        (None, 1),
        (None, 2),
    ]
    assert events() == [event_row("created")]


def test_the_history_of_a_name(store: Store, events: Events, rows: Rows) -> None:
    """A former name that holds a person's is erased from the events; the present name stays."""
    store(group(name="Ada, Ben"), at=0)
    store(group(name="Night shift"), at=1)
    store(chat(), at=2)
    assert rows(chats)[1]["display_name"] == "Night shift"
    assert events() == [
        event_row("renamed", None, "Night shift", chat_id=2),
        event_row("created", observed_at=minute(2)),
    ]


def test_a_group_that_is_renamed(
    store: Store, events: Events, names: Callable[[], dict[int, str | None]]
) -> None:
    """Into a name with a person in it, and out of it: that name is null."""
    store(group(name="Night shift"), chat(), at=0)
    store(group(name="Ada"), at=1)
    assert names() == {1: None, 2: None}
    store(group(name="Day shift"), at=2)
    assert names() == {1: None, 2: "Day shift"}
    assert events() == [
        event_row("renamed", "Night shift", None, chat_id=2),
        event_row("renamed", None, "Day shift", chat_id=2, observed_at=minute(2)),
    ]


def test_who_is_no_contact(store: Store, names: Callable[[], dict[int, str | None]]) -> None:
    """The name of a chat that does not say whether it is a group, with two people, is nobody's."""
    two = [{"id": each, "phone_number": f"+1312555000{each}"} for each in (1, 2)]
    unsaid = chat(1, display_name="Night shift", chat_handles=two)
    store({name: value for name, value in unsaid.items() if name != "group"}, at=0)
    store(group(name="Night shift"), at=1)
    assert names() == {1: None, 2: "Night shift"}


def test_a_single_answer(store: Store, engine: Engine) -> None:
    """verify looks a name up without writing."""
    store(chat(), at=0)
    page = observed_page(group(), group(3, "Night shift"))
    with reading(engine) as connection:
        settled = [
            with_settled_name(connection, each, PRIVACY.name_hashes).display_name
            for each in PRIVACY.page(page.page).chats
        ]
    assert settled == [None, "Night shift"]


def test_no_event_names_a_person(store: Store, rows: Rows) -> None:
    """Nothing is left of a name in any table but its hash."""
    store(group(), at=0)
    store(group(name="Ben, Ada"), at=1)
    store(chat(), at=2)
    everything = repr([rows(table) for table in (chats, chat_events, chat_name_hashes)])
    assert "Ada" not in everything

"""Stores pages as a run does, and reads what they left."""

from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

import pytest
from sqlalchemy import Connection, Engine, select, text, update

from etl.db.engine import reading, writing
from etl.db.store.batch import ObservedPage
from etl.db.store.pages import Counts, store_pages
from etl.db.tables import (
    chat_events,
    chat_handles,
    chat_message_counts,
    chat_phone_numbers,
    chats,
)
from tests.support.builders import A, B, Row, Rows, load_numbers, minute, start_run, without

DATA_TABLES = (chats, chat_handles, chat_phone_numbers, chat_message_counts, chat_events)
EVENING = minute(600)

Events = Callable[[], list[Row]]


class Store(Protocol):
    """Stores pages in one transaction of run 1; their numbers are loaded at noon, by then."""

    def __call__(self, *pages: ObservedPage, now: datetime = EVENING) -> Counts: ...


@pytest.fixture
def run_id(engine: Engine) -> int:
    run_id, _ = start_run(engine, A, B)
    return run_id


@pytest.fixture
def store(engine: Engine, run_id: int) -> Store:
    def store(*pages: ObservedPage, now: datetime = EVENING) -> Counts:
        with writing(engine) as connection:
            counts = store_pages(connection, pages, run_id=run_id, now=now).counts
        load_numbers(engine, *{page.phone_number for page in pages})
        return counts

    return store


@pytest.fixture
def events(rows: Rows) -> Events:
    """Reads all events without their ids, in the order in which they were written."""
    return lambda: [without(row, "id") for row in rows(chat_events)]


def counts(**named: int) -> Counter[str]:
    """A number's counts after one page with one chat, except for those that are named."""
    return Counter({"pages": 1, "chats_seen": 1, **named})


def digests(engine: Engine) -> list[int | None]:
    """The stored digests in the order of the chats' ids."""
    with reading(engine) as connection:
        return list(connection.execute(select(chats.c.digest).order_by(chats.c.id)).scalars())


def session_status(connection: Connection, pattern: str) -> dict[str, int]:
    """What MySQL's session has counted, by name."""
    query = text("SHOW SESSION STATUS LIKE :pattern")
    found = connection.execute(query, {"pattern": pattern})
    return {name: int(number) for name, number in found}


def remove_everything(engine: Engine, removed_at: datetime) -> None:
    """Mark every chat and every membership as removed."""
    with writing(engine) as connection:
        connection.execute(update(chats).values(changed_at=removed_at, removed_at=removed_at))
        connection.execute(update(chat_phone_numbers).values(removed_at=removed_at))


def forget_digests(engine: Engine) -> None:
    """Make the next batch compare every chat that it reads."""
    with writing(engine) as connection:
        connection.execute(update(chats).values(digest=None))

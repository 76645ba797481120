"""What a batch costs the database depends on the batch, not on the tables."""

from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import Engine, Integer, column, event, func, select, table

from etl.db.engine import writing
from etl.db.store.batch import ObservedPage
from etl.db.store.pages import store_pages
from tests.db.store.conftest import DATA_TABLES, EVENING, Store, session_status
from tests.support.builders import NOON, chat, handle, minute, observed_page
from tests.support.marks import only_mysql, only_postgres, only_sqlite

Load = Callable[[int], None]


def hundred_chats(first: int, name: str = "Ada", at: datetime = NOON) -> ObservedPage:
    """A page of 100 chats, from that id on, with two participants each."""
    both = [handle(11), handle(12)]
    records = (chat(n, display_name=name, chat_handles=both) for n in range(first, first + 100))
    return observed_page(*records, at=at)


def mixed_batch(first: int, at: datetime) -> list[ObservedPage]:
    """Unchanged, changed and new chats, and some whose participants all leave."""
    emptied = (chat(n, chat_handles=[]) for n in range(first, first + 100))
    return [
        observed_page(*emptied, at=at),
        hundred_chats(first + 100, at=at),
        hundred_chats(first + 200, "Bo", at),
        hundred_chats(10**6 + first, at=at),
    ]


@pytest.fixture
def load(store: Store) -> Load:
    """Stores that many chats."""

    def load(size: int) -> None:
        firsts = range(0, size, 100)
        for start in range(0, len(firsts), 50):
            store(*map(hundred_chats, firsts[start : start + 50]))

    return load


@only_postgres
def test_a_batch_reads_only_its_own_rows_in_postgresql(
    engine: Engine, load: Load, run_id: int
) -> None:
    """No table is scanned, whether the planner has statistics or not."""
    load(20_000)
    statistics = table("pg_stat_xact_user_tables", column("relname"), schema="pg_catalog")
    scanned_rows, fetched_rows = column("seq_tup_read", Integer), column("idx_tup_fetch", Integer)
    ours = statistics.c.relname.in_([table.name for table in DATA_TABLES])
    sums = select(func.sum(scanned_rows), func.sum(fetched_rows))
    query = sums.select_from(statistics).where(ours)
    for first, at in ((0, minute(1)), (1000, minute(2))):
        with writing(engine) as connection:
            # As if each page of a table were a thousand.
            connection.exec_driver_sql("SET LOCAL seq_page_cost = 1000")
            scanned_before, fetched_before = connection.execute(query).one()
            store_pages(connection, mixed_batch(first, at), run_id=run_id, now=EVENING)
            scanned, fetched = connection.execute(query).one()
        assert scanned == scanned_before
        assert fetched - fetched_before < 10 * 400
        with engine.begin() as connection:
            connection.exec_driver_sql("ANALYZE")


@only_mysql
def test_a_batch_reads_only_its_own_rows_in_mysql(engine: Engine, load: Load, run_id: int) -> None:
    """No table is scanned, whether the planner has statistics or not."""
    load(3_000)
    for first, at in ((0, minute(1)), (1000, minute(2))):
        with writing(engine) as connection:
            before = session_status(connection, "Handler_read_%")
            store_pages(connection, mixed_batch(first, at), run_id=run_id, now=EVENING)
            after = session_status(connection, "Handler_read_%")
        found = Counter({name: after[name] - before[name] for name in after})
        assert found["Handler_read_rnd_next"] < 8 * 400, found  # the given rows
        assert found.total() < 18 * 400, found
        with engine.begin() as connection:
            connection.exec_driver_sql("ANALYZE TABLE chats, chat_handles, chat_phone_numbers")


@only_postgres
def test_a_participant_of_every_chat_costs_no_more_in_postgresql(
    engine: Engine, load: Load, run_id: int
) -> None:
    """To insert a participant, the index does not read all the rows of the same phone number."""
    load(20_000)
    query = "SELECT pg_stat_get_xact_blocks_fetched('ix_chat_handles_phone_number'::regclass)"
    with writing(engine) as connection:
        before = connection.exec_driver_sql(query).scalar_one()
        store_pages(connection, [hundred_chats(10**6)], run_id=run_id, now=EVENING)
        fetched = connection.exec_driver_sql(query).scalar_one() - before
    assert 0 < fetched < 10 * 200


@only_sqlite
def test_a_batch_costs_the_same_in_a_large_sqlite_file(
    engine: Engine, load: Load, store: Store
) -> None:
    """The steps of SQLite's virtual machine do not grow with the tables."""
    steps = Counter[str]()

    def step() -> int:
        steps["hundreds"] += 1
        return 0

    @event.listens_for(engine, "checkout")
    def count_steps(connection: Any, *_: Any) -> None:
        connection.set_progress_handler(step, 100)

    def cost(first: int, at: datetime) -> int:
        steps.clear()
        store(*mixed_batch(first, at))
        return steps["hundreds"]

    load(1_000)
    small = cost(0, minute(1))
    load(10_000)
    assert cost(5_000, minute(2)) < 1.2 * small

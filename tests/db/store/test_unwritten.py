"""What a dry run counts: as much as the same batches count when they are stored."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete

from etl.db.engine import reading, writing
from etl.db.store.batch import ObservedPage
from etl.db.store.pages import Counts, count_pages
from etl.db.store.removals import Removals, count_removals, store_removals
from etl.db.store.unwritten import Unwritten
from etl.db.tables import rejected_records
from tests.db.store.conftest import DATA_TABLES, EVENING, Store, counts
from tests.support.builders import A, B, Row, Rows, chat, handle, minute, observed_page
from tests.support.store_model import CHAT_RECORDS

Batch = Sequence[ObservedPage] | Removals
PHASES = set(Phase) - {Phase.explain}
NUMBERS = st.sampled_from([A, B])
IDS = st.lists(st.integers(0, 9), max_size=4)
LISTS = st.lists(CHAT_RECORDS, unique_by=lambda record: record["id"], max_size=8)


def count(engine: Engine, batches: Sequence[Batch]) -> list[Counts | int]:
    """What a dry run counts for each batch."""
    found: list[Counts | int] = []
    with Unwritten() as unwritten:
        for batch in batches:
            with reading(engine) as connection:
                if isinstance(batch, Removals):
                    found.append(count_removals(connection, batch, unwritten))
                else:
                    found.append(count_pages(connection, batch, unwritten, now=EVENING))
            unwritten.keep()
    return found


def store_all(
    engine: Engine, store: Store, run_id: int, batches: Sequence[Batch]
) -> list[Counts | int]:
    found: list[Counts | int] = []
    for batch in batches:
        if isinstance(batch, Removals):
            with writing(engine) as connection:
                found.append(store_removals(connection, batch, run_id=run_id))
        else:
            found.append(store(*batch))
    return found


def pages_of(records: Sequence[Row], places: Any, at: int) -> list[list[ObservedPage]]:
    """Batches of pages; each number lists the chats at those places, some of them repeatedly."""
    return [
        [
            observed_page(
                *(records[place % len(records)] for place in dict.fromkeys(some) if records),
                phone_number=number,
                at=minute(at + hour),
                listed=listed,
            )
            for number, some, listed in batch
        ]
        for hour, batch in enumerate(places)
    ]


BATCHES = st.lists(st.lists(st.tuples(NUMBERS, IDS, st.booleans()), min_size=1, max_size=3))


@pytest.mark.slow
def test_any_batches_count_what_they_write(engine: Engine, run_id: int, store: Store) -> None:
    """Chats that two numbers list, that pages repeat, that changed, came back or are gone."""

    @settings(max_examples=30 if engine.dialect.name == "sqlite" else 10, phases=PHASES)
    @given(LISTS, BATCHES, IDS, LISTS, BATCHES, st.lists(st.tuples(NUMBERS, IDS, IDS)))
    def check(
        before: list[Row], stored: Any, gone_before: list[int], now: list[Row], read: Any, lost: Any
    ) -> None:
        with writing(engine) as connection:
            for table in (*reversed(DATA_TABLES), rejected_records):
                connection.execute(delete(table))
        earlier: list[Batch] = [
            *pages_of(before, stored, 0),
            Removals(A, tuple(gone_before), (), (), minute(50)),
        ]
        store_all(engine, store, run_id, earlier)
        batches: list[Batch] = [
            *pages_of(now, read, 60),
            *(Removals(n, tuple(gone), tuple(left), (), minute(200)) for n, gone, left in lost),
        ]
        counted = count(engine, batches)
        assert counted == store_all(engine, store, run_id, batches)

    check()


def test_a_chat_counts_once(engine: Engine, store: Store) -> None:
    """Whatever else is read of it later."""
    store(observed_page(chat(1)))
    changed = chat(1, display_name="Bo", chat_handles=[handle(11), handle(12)])
    again = chat(1, display_name="Cy", chat_handles=[])
    new, newer = chat(2), chat(2, display_name="Di")
    first, second = count(
        engine,
        [
            [observed_page(changed, new, at=minute(1))],
            [observed_page(again, newer, at=minute(2), phone_number=B)],
        ],
    )
    changes = {"chats_updated": 1, "chats_inserted": 1, "handles_inserted": 2}
    unchanged = {"chats_unchanged": 0, "texts_cleaned": 0, "rejected": 0}
    assert first == {A: counts(chats_seen=2, **changes, **unchanged)}
    assert second == {B: counts(chats_seen=2, **unchanged | {"chats_unchanged": 2})}


@pytest.mark.parametrize("lists", ["both", "one, and the other from now on"])
def test_a_chat_is_removed_once_by_the_last_number_that_lists_it(
    engine: Engine, store: Store, lists: str
) -> None:
    """What the run itself would have added or removed before counts as done."""
    shared = observed_page(chat(1), phone_number=B, at=minute(1))
    store(observed_page(chat(1)), *([shared] if lists == "both" else []))
    gone = [Removals(number, (1,), (), (), minute(2)) for number in (A, B)]
    assert count(engine, [[shared], *gone])[1:] == [0, 1]
    assert count(engine, [*gone])[-1] == (1 if lists == "both" else 0)


def test_what_is_discarded_is_counted_again(engine: Engine, run_id: int) -> None:
    """A transaction that is repeated counts as much as the first time."""
    page = observed_page(chat(1), chat("x"))  # type: ignore[arg-type]
    with Unwritten() as unwritten, reading(engine) as connection:
        found = []
        for _ in range(2):
            unwritten.discard()
            found.append(count_pages(connection, [page], unwritten, now=EVENING))
    assert found[0] == found[1]
    assert (found[0][A]["chats_inserted"], found[0][A]["rejected"]) == (1, 1)


def test_nothing_is_written(engine: Engine, store: Store, rows: Rows) -> None:
    """Neither data nor rejected records, even if the transaction were committed."""
    store(observed_page(chat(1)))
    tables = (*DATA_TABLES, rejected_records)
    before = [rows(table) for table in tables]
    with Unwritten() as unwritten, writing(engine) as connection:
        page = observed_page(chat(1, display_name="Bo"), chat(2), {"id": "x"}, at=minute(1))
        count_pages(connection, [page], unwritten, now=EVENING)
        count_removals(connection, Removals(A, (1,), (), (), minute(2)), unwritten)
    assert [rows(table) for table in tables] == before

"""Any sequence of batches leaves the rows that a plain model has."""

from typing import Any

from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete

from etl.db.engine import writing
from etl.db.tables import chat_events, chat_handles, chat_message_counts, chat_phone_numbers, chats
from tests.db.store.conftest import DATA_TABLES, Store, remove_everything
from tests.support.builders import A, B, Rows, load_numbers, minute, without
from tests.support.store_model import CHAT_RECORDS, Model, ModelPage

PAGES = st.tuples(st.sampled_from([A, B]), st.integers(0, 3), st.lists(CHAT_RECORDS, max_size=4))
BEFORE = minute(-60)
# None stands for the removal of everything.
HISTORIES = st.lists(st.none() | st.lists(PAGES, min_size=1, max_size=3), max_size=5)
# With a database, explaining a failure takes a minute, and the shrunk history shows it as well.
PHASES = set(Phase) - {Phase.explain}


def test_any_sequence_of_batches_follows_the_rules(
    engine: Engine, run_id: int, store: Store, rows: Rows
) -> None:
    """All rows of all tables are as in the model."""

    @settings(max_examples=75 if engine.dialect.name == "sqlite" else 20, phases=PHASES)
    @given(HISTORIES, st.sets(st.sampled_from([A, B])))
    def check(history: list[Any], loaded: set[str]) -> None:
        model = Model(loaded=dict.fromkeys(loaded, BEFORE))
        with writing(engine) as connection:
            for table in reversed(DATA_TABLES):
                connection.execute(delete(table))
        for hour, batch in enumerate(history):
            start = 60 * hour
            if batch is None:
                remove_everything(engine, minute(start))
                model.remove_everything(minute(start))
                continue
            pages = [
                ModelPage(phone_number, minute(start + after), records)
                for phone_number, after, records in batch
            ]
            load_numbers(engine, A, B, at=None)
            load_numbers(engine, *loaded, at=BEFORE)
            store(*(page.observed() for page in pages))
            model.store(pages)
        assert rows(chats) == [model.chats[key] for key in sorted(model.chats)]
        assert rows(chat_handles) == [model.handles[key] for key in sorted(model.handles)]
        assert rows(chat_phone_numbers) == [model.links[key] for key in sorted(model.links)]
        assert rows(chat_message_counts) == sorted(
            model.message_counts, key=lambda row: (row["chat_id"], row["observed_at"])
        )
        events = [without(row, "id") for row in rows(chat_events)]
        assert sorted(events, key=repr) == sorted(model.events, key=repr)

    check()

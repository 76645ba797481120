"""Whole syncs against a model: random histories before, between and during the runs."""

import asyncio
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import Engine, select

from etl import config
from etl.db import schema
from etl.db.engine import open_database, reading
from etl.db.run_log import Record
from etl.db.tables import chat_handles, chats
from etl.sandbox import World
from etl.sync.number import RunOptions
from etl.sync.progress import LogProgress
from etl.sync.run import sync
from tests.support.memory_api import MemoryLinq, change

NUMBER = "+13343284472"
KINDS = ("create", "delete", "jump", "rename", "join", "leave", "change_service")


def settings_with(max_passes: int) -> config.Config:
    environ = {
        "LINQ_INTEGRATION_TOKEN": "t",
        "LINQ_ETL_API__MAX_CONCURRENCY": "2",
        "LINQ_ETL_SYNC__MAX_PASSES": str(max_passes),
    }
    return config.load_config(environ=environ, needs_numbers=False)


changes = st.builds(
    partial, st.just(change), st.just(NUMBER), st.sampled_from(KINDS), st.integers(0, 30)
)
histories = st.lists(st.lists(changes, max_size=3), max_size=30)


class Model(RuleBasedStateMachine):
    """An account that changes at will, and a database that follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.engine = self.make_database()
        self.completed: list[set[int]] = []  # what was deleted before each run that completed
        self.deleted: set[int] = set()

    def make_database(self) -> Engine:
        engine = open_database(f"sqlite:///{self.folder / 'linq.db'}")
        schema.upgrade(engine)
        return engine

    def teardown(self) -> None:
        self.engine.dispose()
        shutil.rmtree(self.folder)

    @initialize(
        order=st.sampled_from(["id", "id-desc", "recency", "shuffled"]),
        size=st.integers(0, 30),
        # A single pass leaves many chats missing, of which the API then has to be asked.
        max_passes=st.sampled_from([1, 1, 3]),
    )
    def begin(self, order: Any, size: int, max_passes: int) -> None:
        self.settings = settings_with(max_passes)
        self.world = World((NUMBER,), order=order, seed=size)
        self.world.populate([(NUMBER,)] * size)
        self.linq = MemoryLinq(self.world, NUMBER, per_page=3)
        self.born = set(self.world.listing(NUMBER))

    @rule(change=changes)
    def something_happens(self, change: Any) -> None:
        before = set(self.world.listing(NUMBER))
        change(self.world)
        self.deleted |= before - set(self.world.listing(NUMBER))

    @rule(history=histories)
    def run(self, history: Any) -> None:
        known = set(self.stored())
        throughout = set(self.world.listing(NUMBER))
        deleted = set(self.deleted)
        self.linq.changes = list(history)
        before = set(throughout)
        record = self.sync()
        self.linq.changes = []
        seen = frozenset().union(before, *self.linq.lists)
        self.deleted |= seen - set(self.world.listing(NUMBER))
        assert record["status"] == "succeeded"
        self.completed.append(deleted)
        for chat_id in known & throughout & set(self.world.listing(NUMBER)):
            assert self.stored()[chat_id] == as_stored(self.linq.sent[chat_id])

    def sync(self) -> Record:
        number = config.PhoneNumber(NUMBER)
        plan = RunOptions((number,), allow_removals=True)
        job = sync(self.settings, self.engine, self.linq, plan=plan, report=LogProgress())
        return asyncio.run(job).record

    def stored(self) -> dict[int, dict[str, Any]]:
        with reading(self.engine) as connection:
            rows = {row.id: dict(row._mapping) for row in connection.execute(select(chats))}
            for row in rows.values():
                row["handles"] = {}
            for handle in connection.execute(select(chat_handles)):
                if handle.removed_at is None:
                    rows[handle.chat_id]["handles"][handle.id] = handle.phone_number
        wanted = ("display_name", "service", "is_group", "message_count", "removed_at", "handles")
        return {chat_id: {name: row[name] for name in wanted} for chat_id, row in rows.items()}

    @invariant()
    def the_living_are_not_buried(self) -> None:
        """A chat that the API still has is never marked as removed."""
        if hasattr(self, "world"):
            alive = set(self.world.listing(NUMBER))
            rows = self.stored()
            assert not {i for i in alive & rows.keys() if rows[i]["removed_at"]}

    @invariant()
    def the_dead_are_marked(self) -> None:
        """A chat that was deleted before a run is marked within two runs that complete."""
        if len(self.completed) >= 2:
            rows = self.stored()
            gone = self.completed[-2] & rows.keys()
            assert not {i for i in gone if rows[i]["removed_at"] is None}


def as_stored(sent: dict[str, Any]) -> dict[str, Any]:
    """A chat that the API sent, as its row should be; what it left out is null."""
    handles = sent.get("chat_handles") or []
    return {
        "display_name": sent.get("display_name"),
        "service": sent.get("service"),
        "is_group": sent.get("group"),
        "message_count": sent.get("message_count"),
        "removed_at": None,
        "handles": {handle["id"]: handle.get("phone_number") for handle in handles},
    }


Model.TestCase.settings = settings(max_examples=30, stateful_step_count=10)
TestModel = pytest.mark.slow(Model.TestCase)

"""Whole syncs against a model: random histories before, between and during the runs."""

import asyncio
import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import Engine, select

from etl.config import PhoneNumber
from etl.db import schema
from etl.db.engine import open_engine, reading
from etl.db.run_log import Record
from etl.db.tables import chat_handles, chats
from etl.sandbox import World
from etl.sandbox.world import Order
from etl.sync.context import RunOptions
from etl.sync.progress import LogProgress
from etl.sync.run import sync
from tests.support.builders import A, config_with
from tests.support.memory_api import Change, MemoryClient, change

KINDS = ("create", "delete", "jump", "rename", "join", "leave", "change_service")
changes = st.builds(
    partial, st.just(change), st.just(A), st.sampled_from(KINDS), st.integers(0, 30)
)
histories = st.lists(st.lists(changes, max_size=3), max_size=30)


class Model(RuleBasedStateMachine):
    """An account that changes at will, and a database that follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.engine = self.make_database()
        self.completed: list[set[int]] = []  # ids deleted before each run that completed
        self.deleted: set[int] = set()

    def make_database(self) -> Engine:
        engine = open_engine(f"sqlite:///{self.folder / 'linq.db'}")
        schema.upgrade(engine)
        return engine

    def teardown(self) -> None:
        self.engine.dispose()
        shutil.rmtree(self.folder)

    @initialize(
        order=st.sampled_from(["id", "id-desc", "recency", "shuffled"]),
        size=st.integers(0, 30),
        # A single pass leaves many chats missing, so that the sync asks for them one by one.
        max_passes=st.sampled_from([1, 1, 3]),
    )
    def begin(self, order: Order, size: int, max_passes: int) -> None:
        self.config = config_with(API__MAX_CONCURRENCY=2, SYNC__MAX_PASSES=max_passes)
        self.world = World((A,), order=order, seed=size)
        self.world.populate([(A,)] * size)
        self.client = MemoryClient(self.world, A, per_page=3)

    def listed(self) -> set[int]:
        return set(self.world.listing(A))

    @rule(change=changes)
    def change(self, change: Change) -> None:
        before = self.listed()
        change(self.world)
        self.deleted |= before - self.listed()

    @rule(history=histories)
    def run(self, history: Sequence[Sequence[Change]]) -> None:
        known, before, deleted = set(self.stored()), self.listed(), set(self.deleted)
        self.client.changes = list(history)
        record = self.sync()
        self.client.changes = []
        self.deleted |= before.union(*self.client.lists) - self.listed()
        assert record["status"] == "succeeded"
        self.completed.append(deleted)
        for chat_id in known & before & self.listed():
            assert self.stored()[chat_id] == as_stored(self.client.sent[chat_id])

    def sync(self) -> Record:
        client: Any = self.client
        options = RunOptions((PhoneNumber(A),), allow_removals=True)
        run = sync(self.config, self.engine, client, options=options, progress=LogProgress())
        return asyncio.run(run).record

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
    def no_living_chat_is_removed(self) -> None:
        """A chat that the API still has is never marked as removed."""
        if hasattr(self, "world"):
            stored = self.stored()
            assert not {i for i in self.listed() & stored.keys() if stored[i]["removed_at"]}

    @invariant()
    def every_deleted_chat_is_removed(self) -> None:
        """A chat deleted before a run is marked within two runs that complete."""
        if len(self.completed) >= 2:
            stored = self.stored()
            gone = self.completed[-2] & stored.keys()
            assert not {i for i in gone if stored[i]["removed_at"] is None}


def as_stored(sent: dict[str, Any]) -> dict[str, Any]:
    """The row of a chat that the API sent; fields it left out are null."""
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

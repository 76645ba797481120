"""Whole syncs while the database fails: nothing is lost, nothing is written or counted twice."""

import asyncio
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pymysql
import pytest
from sqlalchemy import Connection, Engine, func, select
from tenacity import wait_none

from etl.db import transactions
from etl.db.backends import backend
from etl.db.engine import open_engine, reading
from etl.db.tables import data_dictionary, metadata, sync_runs
from etl.db.transactions import Transactions
from etl.db.types import UtcDateTime
from etl.errors import DatabaseError, DatabaseUnavailableError
from tests.support.account import Account
from tests.support.builders import Row, Rows
from tests.support.outages import failing_commits, never_end, outage

DIFFERS = {"owner", "host", "fence"}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once."""
    monkeypatch.setitem(Transactions.__init__.__kwdefaults__ or {}, "wait", wait_none())


@pytest.fixture
def undisturbed(migrated_file: Path, tmp_path: Path) -> Iterator[Engine]:
    """Another database, where nothing fails."""
    engine = open_engine(f"sqlite:///{shutil.copy(migrated_file, tmp_path / 'undisturbed.db')}")
    yield engine
    engine.dispose()


def run_history(engine: Engine, rows: Rows) -> None:
    """Load, change, sync the changes, and load again what has changed back."""
    account = Account(engine, rows)
    world = account.world
    renamed, joined, deleted, broken, gone = account.listed[:5]
    world.edit(broken, message_count="plenty")
    assert account.sync().exit_code == 3
    world.rename(renamed, "Opening night")
    world.join(joined)
    world.delete(deleted)
    world.leave_list("+13343284472", gone)
    assert account.sync().exit_code == 3
    world.restore(deleted)
    assert account.sync().exit_code == 3


def everything(engine: Engine) -> dict[str, list[Row]]:
    """Every row that runs write, without times and what tells one process from another.

    Keys that the database assigns are ranks: a transaction that is rolled back leaves a gap.
    """
    found = {}
    with reading(engine) as connection:
        for table in set(metadata.sorted_tables) - {data_dictionary}:
            columns = [
                func.dense_rank().over(order_by=column).label(column.name)
                if column.name.endswith("run_id") or (column.name == "id" and column.autoincrement)
                else column
                for column in table.columns
                if not isinstance(column.type, UtcDateTime) and column.name not in DIFFERS
            ]
            query = select(*columns).order_by(*table.primary_key)
            found[table.name] = [dict(row) for row in connection.execute(query).mappings()]
    return found


@pytest.mark.parametrize("is_committed", [True, False], ids=["lost answers", "lost transactions"])
def test_a_run_goes_on_after_each_lost_connection(
    engine: Engine, undisturbed: Engine, rows: Rows, is_committed: bool
) -> None:
    """Each transaction fails once; data, history, counts and run log are as if none had."""
    run_history(undisturbed, rows)
    with failing_commits(
        engine, lambda n: n % 2 == 0, outage(engine), is_committed=is_committed
    ) as commits:
        run_history(engine, rows)
    assert len(commits) >= 2 * 3 * len(("start", "claim", "batch", "finish"))
    assert everything(engine) == everything(undisturbed)


def test_a_database_that_refuses_a_batch_fails_the_run(engine: Engine, rows: Rows) -> None:
    """At once; the run log says so, and the next sync stores everything."""
    account = Account(engine, rows)
    full = {
        "mysql": pymysql.err.OperationalError(1021, "disk full"),
        "sqlite": sqlite3.OperationalError("disk full"),
        "postgresql": psycopg.errors.DiskFull("disk full"),
    }
    error = full[engine.dialect.name]
    with (
        failing_commits(engine, lambda n: n == 5, error, is_committed=False) as commits,
        pytest.raises(DatabaseError, match="disk full") as caught,
    ):
        account.sync()
    assert len(commits) == 7
    (run,) = rows(sync_runs)
    assert (run["status"], run["error_kind"]) == ("failed", "database")
    assert run["error_detail"] == str(caught.value)
    assert account.sync().exit_code == 0


def test_patience_ends_the_run(engine: Engine, rows: Rows) -> None:
    """With exit code 6. Its row could not be closed; it stays as it is until its lease expires."""
    account = Account(engine, rows)
    with (
        failing_commits(engine, lambda n: n >= 2, outage(engine), is_committed=False),
        pytest.raises(DatabaseUnavailableError) as caught,
    ):
        account.sync(patience=0.01)
    assert caught.value.exit_code == 6
    assert [row["status"] for row in rows(sync_runs)] == ["running"]


def test_a_database_that_is_back_after_patience_gets_the_runs_end(
    engine: Engine, rows: Rows
) -> None:
    """As failed, with the cause."""
    account = Account(engine, rows)
    with (
        failing_commits(engine, lambda n: n == 5, outage(engine), is_committed=False),
        pytest.raises(DatabaseUnavailableError),
    ):
        account.sync(patience=0)
    (run,) = rows(sync_runs)
    assert (run["status"], run["error_kind"]) == ("failed", "database")


def test_a_run_can_be_interrupted_before_it_has_started(
    engine: Engine, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first statement, which asks for the time, gets no answer."""
    monkeypatch.setattr(transactions, "GRACE_SECONDS", 0.05)
    account = Account(engine, rows)

    async def interrupt() -> None:
        loop, asked = asyncio.get_running_loop(), asyncio.Event()

        def never_answer(connection: Connection) -> None:
            loop.call_soon_threadsafe(asked.set)
            never_end(connection)

        monkeypatch.setattr(backend(engine.dialect), "server_time", never_answer)
        run = asyncio.ensure_future(account.run())
        await asked.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

    asyncio.run(interrupt())
    assert rows(sync_runs) == []

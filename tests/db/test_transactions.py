"""Transactions that are repeated, given up or broken off, and what then is in the database."""

import asyncio
import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, insert, text
from tenacity import wait_fixed, wait_none

from etl import log
from etl.db import leases, transactions
from etl.db.engine import writing
from etl.db.tables import chats
from etl.db.transactions import CONFLICT_TRIES, Transactions
from etl.errors import DatabaseConflictError, DatabaseError, DatabaseUnavailableError
from tests.support.builders import NOON, A, Rows, start_run
from tests.support.marks import only_servers
from tests.support.outages import (
    Failing,
    conflict,
    do_not_wait_for_locks,
    lost_answers,
    never_end,
    outage,
    session_of,
)

CONFLICTS = ["another's change", "deadlock", "unique key"]
FOREVER = wait_fixed(3600)


def add_a_chat(connection: Connection) -> str:
    connection.execute(insert(chats), {"id": 1, "first_seen_at": NOON, "changed_at": NOON})
    return "added"


def add_and_never_end(connection: Connection) -> None:
    add_a_chat(connection)
    never_end(connection)


def write(engine: Engine, function: Callable[[Connection], Any], *, patience: float = 60) -> Any:
    """Call the function in a writing transaction that is repeated without a pause."""

    async def run() -> Any:
        patient = Transactions(engine, patience=patience, wait=wait_none())
        return await patient.write(function)

    return asyncio.run(run())


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Break off a transaction soon after its call was cancelled."""
    monkeypatch.setattr(transactions, "GRACE_SECONDS", 0.05)


# Repeated


@only_servers
@pytest.mark.parametrize("times", [1, 2, CONFLICT_TRIES - 1])
@pytest.mark.parametrize("kind", CONFLICTS)
def test_a_conflict_repeats_the_transaction(
    engine: Engine, rows: Rows, kind: str, times: int
) -> None:
    """From its start, until it is committed, without waiting for the database."""
    add = Failing(add_a_chat, *[conflict(engine, kind)] * times)
    assert write(engine, add, patience=0) == "added"
    assert add.calls == times + 1
    assert len(rows(chats)) == 1


@only_servers
@pytest.mark.parametrize("kind", CONFLICTS)
def test_a_conflict_that_does_not_end_is_an_error(engine: Engine, rows: Rows, kind: str) -> None:
    """With the exit code of the database, after a few tries."""
    add = Failing(add_a_chat, *[conflict(engine, kind)] * 99)
    with pytest.raises(DatabaseConflictError) as caught:
        write(engine, add)
    assert (caught.value.exit_code, add.calls) == (6, CONFLICT_TRIES)
    assert rows(chats) == []


@pytest.mark.parametrize("reads", [False, True])
def test_a_database_that_comes_back_within_patience_is_waited_for(
    engine: Engine, reads: bool
) -> None:
    """For a reading transaction, too."""
    ask = Failing(
        lambda connection: connection.execute(text("SELECT 7")).scalar(),
        *[outage(engine) for _ in range(50)],
    )

    async def run() -> Any:
        patient = Transactions(engine, patience=60, wait=wait_none())
        return await (patient.read(ask) if reads else patient.write(ask))

    assert asyncio.run(run()) == 7
    assert ask.calls == 51


def test_patience_ends(engine: Engine, rows: Rows) -> None:
    """The error says what the database said last; nothing was written."""
    for patience in (0, 0.01):
        add = Failing(add_a_chat, *(outage(engine) for _ in range(100_000)))
        with pytest.raises(DatabaseUnavailableError) as caught:
            write(engine, add, patience=patience)
        assert caught.value.exit_code == 6
        assert outage(engine).args[-1] in str(caught.value)
        assert add.calls == 1 or patience
    assert rows(chats) == []


def test_another_error_is_not_repeated(engine: Engine) -> None:
    """The statement would be refused again."""
    ask = Failing(lambda connection: connection.execute(text("SELECT nonsense")))
    with pytest.raises(DatabaseError):
        write(engine, ask)
    assert ask.calls == 1


def test_a_lost_answer_runs_the_function_again(engine: Engine) -> None:
    """Although its transaction was committed: that is why each must bear it."""
    calls = Failing(lambda connection: connection.execute(text("SELECT 1")))
    with lost_answers(engine, {0}) as commits:
        write(engine, calls)
    assert (calls.calls, len(commits)) == (2, 2)


def test_waiting_is_logged_once(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """With the reason, so that a silent run is not taken for a hanging one."""
    with caplog.at_level(logging.WARNING, "etl"):
        write(engine, Failing(add_a_chat, *(outage(engine) for _ in range(3))))
    (record,) = caplog.records
    fields = vars(record)["fields"]
    assert (record.getMessage(), fields["seconds"]) == ("waiting_for_database", 60)
    assert outage(engine).args[-1] in fields["reason"]


@only_servers
def test_the_holder_of_a_lock_is_named(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its run and its server process or session, so that an operator can end it."""
    do_not_wait_for_locks(engine, monkeypatch)
    run_id, _ = start_run(engine, A)
    with writing(engine, run_id) as stalled:
        leases.lock_writers(stalled)
        session = session_of(stalled)
        with pytest.raises(DatabaseUnavailableError) as caught:
            write(engine, leases.lock_writers, patience=0)
    kind = {"postgresql": "process", "mysql": "session"}[engine.dialect.name]
    holder = f"linq-etl/{run_id} (server {kind} {session})"
    assert str(caught.value).endswith(f"; open transactions: {holder}")


# Given up and broken off


def test_a_cancelled_call_is_committed_if_it_ends_soon(engine: Engine, rows: Rows) -> None:
    """Then the caller is cancelled."""

    async def run() -> None:
        loop, begun, ready = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

        def add_later(connection: Connection) -> None:
            loop.call_soon_threadsafe(begun.set)
            ready.wait(30)
            add_a_chat(connection)

        call = asyncio.ensure_future(Transactions(engine, patience=60).write(add_later))
        await begun.wait()
        call.cancel()
        await asyncio.sleep(0)
        ready.set()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(run())
    assert len(rows(chats)) == 1


@pytest.mark.usefixtures("short_grace")
def test_a_cancelled_call_is_broken_off_if_it_does_not_end(engine: Engine, rows: Rows) -> None:
    """Nothing of it is written, and other calls go on: they still wait for the database."""
    add = Failing(add_a_chat, *(outage(engine) for _ in range(3)))

    async def run() -> None:
        patient = Transactions(engine, patience=60, wait=wait_none())
        loop, begun = asyncio.get_running_loop(), asyncio.Event()

        def begin(connection: Connection) -> None:
            loop.call_soon_threadsafe(begun.set)
            add_and_never_end(connection)

        call = asyncio.ensure_future(patient.write(begin))
        await begun.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await patient.write(add) == "added"

    asyncio.run(run())
    assert add.calls == 4
    assert len(rows(chats)) == 1


@pytest.mark.usefixtures("short_grace")
def test_at_the_end_a_transaction_takes_not_long(engine: Engine, rows: Rows) -> None:
    """The run's row is closed by the next run, if it cannot be closed now."""

    async def run() -> None:
        patient = Transactions(engine, patience=60, wait=FOREVER)
        patient.end()
        with pytest.raises(DatabaseUnavailableError, match="did not answer in time") as caught:
            await patient.write(add_and_never_end)
        assert caught.value.exit_code == 6
        with pytest.raises(DatabaseUnavailableError):
            await patient.write(Failing(add_a_chat, outage(engine), outage(engine)))

    asyncio.run(run())
    assert rows(chats) == []


@pytest.mark.parametrize("outages", [1, 2], ids=["back", "away"])
def test_the_end_wakes_a_call_that_waits_for_the_database(
    engine: Engine, outages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tries once more."""
    add = Failing(add_a_chat, *(outage(engine) for _ in range(outages)))

    async def run() -> Any:
        loop, waits = asyncio.get_running_loop(), asyncio.Event()
        tell = partial(loop.call_soon_threadsafe, waits.set)
        monkeypatch.setattr(log, "warning", lambda *_, **__: tell())
        patient = Transactions(engine, patience=60, wait=FOREVER)
        call = asyncio.ensure_future(patient.write(add))
        await waits.wait()
        patient.end()
        await asyncio.wait([call])
        return call.exception() or call.result()

    ended = asyncio.run(run())
    assert isinstance(ended, str if outages == 1 else DatabaseUnavailableError)
    assert add.calls == 2


def test_few_transactions_read_at_once(engine: Engine) -> None:
    """A run with many numbers leaves connections for others."""

    async def run() -> int:
        patient = Transactions(engine, patience=60)
        most = 0

        def look(connection: Connection) -> None:
            nonlocal most
            connection.execute(text("SELECT 1"))
            most = max(most, len(patient._calls))

        await asyncio.gather(*(patient.read(look) for _ in range(40)))
        return most

    assert asyncio.run(run()) <= transactions.READERS

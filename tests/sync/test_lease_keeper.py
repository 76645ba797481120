"""The heartbeat of a run, and what it does with the runs that have none."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta

import pytest
from sqlalchemy import Engine

from etl.db import leases
from etl.db.backends import backend
from etl.db.engine import writing
from etl.db.tables import run_fences, sync_runs
from etl.db.transactions import Transactions
from etl.errors import DatabaseUnavailableError, LeaseLostError
from etl.sync.lease_keeper import LeaseKeeper
from tests.support.builders import NOON, A, B, Rows, close_dead_runs, second, start_run
from tests.support.marks import only_servers
from tests.support.outages import lost_answers, session_of

LEASE = 60


class Time:
    """A clock whose sleeps pass at once; they end the test's run after so many."""

    def __init__(self, now: datetime = NOON, *, sleeps: int = 1) -> None:
        self.now = now
        self.slept: list[float] = []
        self.before_waking: Callable[[], None] = lambda: None
        self._sleeps = sleeps

    def clock(self) -> datetime:
        return self.now

    async def sleep(self, seconds: float) -> None:
        if len(self.slept) == self._sleeps:
            raise asyncio.CancelledError
        self.slept.append(seconds)
        self.now += timedelta(seconds=seconds)
        self.before_waking()


def keeper(engine: Engine, time: Time) -> LeaseKeeper:
    return LeaseKeeper(Transactions(engine, patience=0), time.clock, LEASE, time.sleep)


def keep(engine: Engine, run_id: int, time: Time) -> None:
    """Keep the run's lease until the time is over."""
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(keeper(engine, time).run(run_id))


def close(engine: Engine, now: datetime) -> None:
    asyncio.run(keeper(engine, Time(now)).close_dead_runs())


def expiries(rows: Rows) -> list[datetime]:
    return [row["lease_expires_at"] for row in rows(sync_runs)]


def statuses(rows: Rows) -> list[str]:
    return [row["status"] for row in rows(sync_runs)]


def test_a_lease_is_renewed_three_times_before_it_expires(engine: Engine, rows: Rows) -> None:
    """So that two failures in a row do not end it."""
    run_id, _ = start_run(engine, A)
    time = Time(sleeps=4)
    keep(engine, run_id, time)
    assert time.slept == [20, 20, 20, 20]
    assert expiries(rows) == [second(80 + LEASE)]


def test_an_outage_does_not_end_the_heartbeat(engine: Engine, rows: Rows) -> None:
    """The writer waits for the database; a lease that ran out and that nobody took is renewed."""
    run_id, _ = start_run(engine, A)
    with lost_answers(engine, {0, 1, 2}):
        keep(engine, run_id, Time(sleeps=4))
    assert (statuses(rows), expiries(rows)) == (["running"], [second(80 + LEASE)])


def test_a_run_that_was_closed_stops(engine: Engine) -> None:
    """With exit code 7, although it had nothing to write."""
    run_id, _ = start_run(engine, A)
    close_dead_runs(engine, second(LEASE))
    with pytest.raises(LeaseLostError) as caught:
        asyncio.run(keeper(engine, Time()).run(run_id))
    assert caught.value.exit_code == 7


def test_a_heartbeat_closes_dead_runs(engine: Engine, rows: Rows) -> None:
    """One that stalls while this run goes on would keep the writers' lock."""
    start_run(engine, B)
    run_id, _ = start_run(engine, A, now=second(30))
    keep(engine, run_id, Time(second(30), sleeps=1))
    assert statuses(rows) == ["running", "running"]
    keep(engine, run_id, Time(second(50), sleeps=1))
    assert statuses(rows) == ["abandoned", "running"]


def test_after_an_outage_no_run_closes_another_at_once(engine: Engine, rows: Rows) -> None:
    """All their leases ran out, and each renews its own, one after the other."""
    first, _ = start_run(engine, A)
    second_run, _ = start_run(engine, B, now=second(1))
    time = Time(sleeps=1)

    def be_away() -> None:
        time.now = second(100)

    time.before_waking = be_away
    keep(engine, first, time)
    assert statuses(rows) == ["running", "running"]
    keep(engine, second_run, Time(second(101)))
    assert statuses(rows) == ["running", "running"]


def test_dead_runs_are_closed(engine: Engine, rows: Rows) -> None:
    """All of them, with their fences; a living one is not."""
    for number in range(3):
        start_run(engine, now=second(20 * number))
    close(engine, second(20 + LEASE))
    assert statuses(rows) == ["abandoned", "abandoned", "running"]
    assert [row["run_id"] for row in rows(run_fences)] == [leases.WRITERS, 3]


@only_servers
@pytest.mark.parametrize("may_end", [True, False])
def test_the_session_of_a_stalled_run_is_ended(
    engine: Engine,
    rows: Rows,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    may_end: bool,
) -> None:
    """It holds the writers' lock in a batch. One that another role started is left, and named."""
    if not may_end:
        monkeypatch.setattr(backend(engine.dialect), "end_sessions", lambda *_: [])
    stalled, _ = start_run(engine, A)
    with suppress(DatabaseUnavailableError), writing(engine, stalled) as connection:
        leases.lock_writers(connection)
        leases.move_fence(connection, stalled, 1)
        process = session_of(connection)
        with caplog.at_level(logging.WARNING, "etl"):
            close(engine, second(LEASE))
        found = statuses(rows)
    assert found == ["abandoned" if may_end else "running"]
    (record,) = caplog.records
    assert record.getMessage() == "stalled_run"
    ended = [process] if may_end else None
    assert vars(record)["fields"] == {"run": stalled, "ended_sessions": ended}

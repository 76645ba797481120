"""Pruning: old runs leave the run log, what is still read stays, and nobody waits for it."""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, TypeVar

import psycopg
import pymysql
import pytest
from sqlalchemy import Connection, Engine, Table, event, func, insert, select

from etl.db import leases, retention, run_log
from etl.db.engine import reading, writing
from etl.db.retention import Pruned
from etl.db.tables import (
    metadata,
    number_leases,
    number_status,
    phone_numbers,
    quick_recall,
    rejected_records,
    run_fences,
    sync_run_numbers,
    sync_runs,
)
from etl.db.transactions import Transactions
from etl.errors import DatabaseError
from tests.support.account import Account
from tests.support.builders import A, B, C, Row, Rows, start_run
from tests.support.marks import only_servers
from tests.support.outages import failing_commits

T = TypeVar("T")

NOW = datetime.now(UTC)
OLD, RECENT = NOW - timedelta(days=100), NOW - timedelta(days=80)
AGE = timedelta(days=90)
LOG = (sync_runs, sync_run_numbers, rejected_records, quick_recall)

GOOD: Row = {"status": "succeeded", "completeness": "consistent"}
QUICK: Row = {"status": "succeeded", "completeness": "quick"}
PARTIAL: Row = {"status": "partial", "completeness": "unproved"}
UNREAD: Row = {"status": "partial", "completeness": None}
FAILED: Row = {"status": "failed", "error_kind": "unavailable"}
REFUSED: Row = {"status": "failed", "error_kind": "refused"}
BUSY: Row = {"status": "failed", "error_kind": "busy"}
KILLED: Row = {"status": "abandoned"}


@pytest.fixture(autouse=True)
def _numbers(engine: Engine) -> None:
    write(engine, phone_numbers, ({"phone_number": n, "first_seen_at": OLD} for n in (A, B, C)))


def write(engine: Engine, table: Table, rows: Iterable[Row]) -> None:
    with writing(engine) as connection:
        connection.execute(insert(table), list(rows))


def log_run(
    engine: Engine,
    run_id: int,
    numbers: Mapping[str, Row],
    *,
    started_at: datetime = OLD,
    rejected: int = 0,
    **fields: Any,
) -> None:
    """A run that is closed, with its numbers and so many rejected records."""
    times = {"started_at": started_at, "finished_at": started_at, "lease_expires_at": started_at}
    about = {"version": "0", "host": "here", "owner": "", "numbers_failed": 0}
    run = {"command": "sync", "status": "succeeded", "numbers_total": len(numbers)}
    record = {"run_id": run_id, "phone_number": A, "reason": "no id", "payload": '{"a": 1}'}
    with writing(engine) as connection:
        added = connection.execute(insert(sync_runs), {**run, **times, **about, **fields})
        assert added.inserted_primary_key == (run_id,)
        for phone_number, entry in numbers.items():
            of_run = {"run_id": run_id, "phone_number": phone_number, "finished_at": started_at}
            connection.execute(insert(sync_run_numbers), {**of_run, **entry})
        if rejected:
            records = [{**record, "digest": digest} for digest in range(rejected)]
            connection.execute(insert(rejected_records), records)


def prune(engine: Engine) -> Pruned:
    return run_prune(Transactions(engine, patience=5))


def run_prune(transactions: Transactions, pause: Callable[[], object] = bool) -> Pruned:
    """Prune; instead of pausing, call `pause`."""

    async def sleep(_: float) -> None:
        pause()

    return asyncio.run(retention.prune(transactions, AGE, sleep=sleep))


def counts_of(pruned: Pruned) -> tuple[int, int, int, int]:
    return pruned.runs, pruned.numbers, pruned.rejected, pruned.kept_runs


def log_of(rows: Rows) -> dict[str, list[Row]]:
    return {table.name: rows(table) for table in LOG}


def runs_in(rows: Rows) -> list[int]:
    return [row["id"] for row in rows(sync_runs)]


# What goes


def test_an_old_run_goes_with_all_its_rows(engine: Engine, rows: Rows) -> None:
    """Newer runs stay as they are; the time tells how old a run must be."""
    log_run(engine, 1, {A: GOOD, B: FAILED}, rejected=2)
    log_run(engine, 2, {A: GOOD, B: GOOD}, rejected=1, started_at=RECENT)
    before, began = log_of(rows), datetime.now(UTC)
    pruned = prune(engine)
    assert counts_of(pruned) == (1, 2, 2, 0)
    assert abs(pruned.older_than - (began - AGE)) < timedelta(minutes=5)
    assert log_of(rows) == {
        name: [row for row in found if row.get("run_id", row.get("id")) == 2]
        for name, found in before.items()
    }


def test_an_old_dry_run_goes(engine: Engine, rows: Rows) -> None:
    """No later run reads anything of it."""
    log_run(engine, 1, {}, mode="dry-run", numbers_total=2)
    assert counts_of(prune(engine)) == (1, 0, 0, 0)
    assert runs_in(rows) == []


def test_the_data_stay(engine: Engine, rows: Rows) -> None:
    """Every row of every other table."""
    with writing(engine) as connection:
        connection.execute(phone_numbers.delete())
    account = Account(engine, rows)
    for _ in range(3):
        account.world.rename(account.listed[0], f"{account.listed}")
        account.world.delete(account.listed[-1])
        account.sync()
    with writing(engine) as connection:
        connection.execute(sync_runs.update().values(started_at=OLD))
    others = [table for table in metadata.sorted_tables if table not in LOG]
    before = {table.name: rows(table) for table in others}
    assert prune(engine).runs == 2
    assert {table.name: rows(table) for table in others} == before


def test_nothing_to_delete(engine: Engine) -> None:
    """Neither in an empty run log nor the second time."""
    assert counts_of(prune(engine)) == (0, 0, 0, 0)
    log_run(engine, 1, {A: GOOD})
    log_run(engine, 2, {A: GOOD})
    assert counts_of(prune(engine)) == (1, 1, 0, 1)
    assert counts_of(prune(engine)) == (0, 0, 0, 1)


def test_a_run_without_numbers_goes(engine: Engine, rows: Rows) -> None:
    """It ended before it claimed any."""
    log_run(engine, 1, {}, status="abandoned")
    assert counts_of(prune(engine)) == (1, 0, 0, 0)
    assert runs_in(rows) == []


# What stays


@pytest.mark.parametrize(
    ("entries", "kept"),
    [
        ([GOOD, GOOD, GOOD], [3]),
        ([GOOD, GOOD, QUICK, QUICK], [2, 4]),
        ([GOOD, GOOD, FAILED, FAILED, FAILED], [2, 3, 5]),
        ([PARTIAL, UNREAD, UNREAD], [1, 3]),
        ([GOOD, FAILED, KILLED, FAILED, REFUSED, REFUSED], [1, 2, 3, 5, 6]),
        ([FAILED, FAILED, FAILED], [1, 3]),
        ([GOOD, FAILED, FAILED, BUSY, BUSY], [1, 2, 3, 4, 5]),
        ([GOOD, UNREAD, BUSY, BUSY, BUSY], [1, 2, 3, 5]),
        ([FAILED, GOOD, UNREAD, FAILED, FAILED, UNREAD], [2, 4, 6]),
    ],
    ids=[
        "good",
        "quick",
        "failing",
        "unread",
        "failing in many ways",
        "never good",
        "busy",
        "busy, never failed",
        "mixed",
    ],
)
def test_what_is_still_read_stays(
    entries: list[Row], kept: list[int], engine: Engine, rows: Rows
) -> None:
    """Its last entry, its last attempt, its last complete reading, its first failures since."""
    for run_id, entry in enumerate(entries, 1):
        log_run(engine, run_id, {A: entry})
    before = rows(sync_run_numbers)
    with reading(engine) as connection:
        walk = run_log.last_walk(connection, A, run_id=9)
        status = connection.execute(select(number_status)).all()
    assert counts_of(prune(engine)) == (len(entries) - len(kept),) * 2 + (0, len(kept))
    assert runs_in(rows) == kept
    assert rows(sync_run_numbers) == [row for row in before if row["run_id"] in kept]
    with reading(engine) as connection:
        assert run_log.last_walk(connection, A, run_id=9) == walk
        assert connection.execute(select(number_status)).all() == status


def test_a_run_stays_with_all_its_numbers(engine: Engine, rows: Rows) -> None:
    """Also those whose entry is not needed; but not with its rejected records."""
    log_run(engine, 1, {A: GOOD, B: GOOD}, rejected=3)
    log_run(engine, 2, {A: GOOD})
    before = rows(sync_run_numbers)
    assert counts_of(prune(engine)) == (0, 0, 3, 2)
    assert (runs_in(rows), rows(sync_run_numbers)) == ([1, 2], before)


def test_each_number_keeps_its_own(engine: Engine, rows: Rows) -> None:
    """One that is no longer synced keeps its last run for ever."""
    log_run(engine, 1, {A: GOOD, C: GOOD})
    log_run(engine, 2, {A: GOOD, B: GOOD})
    log_run(engine, 3, {A: GOOD})
    log_run(engine, 4, {A: GOOD, B: FAILED}, started_at=RECENT)
    assert counts_of(prune(engine)) == (1, 1, 0, 2)
    assert runs_in(rows) == [1, 2, 4]


def test_a_run_in_progress_and_later_ones_stay(engine: Engine, rows: Rows) -> None:
    """And the last walk before it, which it may prove, although that is no longer the last one."""
    log_run(engine, 1, {A: GOOD})
    log_run(engine, 2, {A: GOOD})
    start_run(engine, A, now=OLD)
    log_run(engine, 4, {A: {**FAILED, "error_kind": "busy"}})
    log_run(engine, 5, {A: GOOD})
    assert counts_of(prune(engine)) == (1, 1, 0, 4)
    assert runs_in(rows) == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("table", "row"),
    [(run_fences, {"fence": 1}), (number_leases, {"phone_number": A})],
    ids=["fence", "lease"],
)
def test_a_run_that_can_still_write_stays(
    table: Table, row: Row, engine: Engine, rows: Rows
) -> None:
    """It holds a fence or a lease, whatever its status."""
    for run_id in (1, 2, 3):
        log_run(engine, run_id, {A: GOOD})
    write(engine, table, [{"run_id": 2, **row}])
    assert counts_of(prune(engine)) == (0, 0, 0, 3)
    assert runs_in(rows) == [1, 2, 3]


@pytest.mark.parametrize("reads", range(1, 7))
def test_a_run_that_starts_meanwhile_keeps_its_last_walk(
    reads: int, engine: Engine, rows: Rows
) -> None:
    """Its own entry does not count as the last one, whenever it comes."""
    for run_id in (1, 2):
        log_run(engine, run_id, {A: GOOD})
    pruned = run_prune(_Meanwhile(engine, reads, lambda: start_run(engine, A, now=NOW)))
    assert counts_of(pruned) == (1, 1, 0, 1)
    assert runs_in(rows) == [2, 3]


class _Meanwhile(Transactions):
    """Something else happens after so many reading transactions."""

    def __init__(self, engine: Engine, reads: int, happens: Callable[[], object]) -> None:
        super().__init__(engine, patience=5)
        self._reads = reads
        self._happens = happens

    async def read(self, function: Callable[[Connection], T]) -> T:
        result = await super().read(function)
        self._reads -= 1
        if not self._reads:
            self._happens()
        return result


def test_a_clock_that_was_wrong_does_not_stop_it(engine: Engine, rows: Rows) -> None:
    """A run of the future stays; older ones after it go."""
    log_run(engine, 1, {A: GOOD}, started_at=NOW + timedelta(days=9000))
    for run_id in (2, 3, 4):
        log_run(engine, run_id, {A: GOOD})
    assert counts_of(prune(engine)) == (2, 2, 0, 1)
    assert runs_in(rows) == [1, 4]


# How it goes


@pytest.fixture
def history(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty runs of three numbers, one of them with more rows than a transaction deletes."""
    monkeypatch.setattr(retention, "ROWS", 9)
    monkeypatch.setattr(retention, "RUNS", 7)
    for run_id in range(1, 41):
        good = {A: GOOD, B: GOOD} | ({C: FAILED} if run_id > 5 else {C: GOOD})
        log_run(engine, run_id, good, rejected=23 if run_id == 11 else run_id % 3)


def count_log(connection: Connection) -> int:
    return sum(connection.execute(select(func.count()).select_from(t)).scalar_one() for t in LOG)


@pytest.mark.usefixtures("history")
def test_transactions_are_small(engine: Engine, rows: Rows) -> None:
    """None deletes more than its rows, and none is empty."""
    counts = []

    def count(connection: Connection) -> None:
        counts.append(count_log(connection))

    with reading(engine) as connection:
        counts.append(count_log(connection))
    event.listen(engine, "commit", count)
    pruned = prune(engine)
    event.remove(engine, "commit", count)
    assert runs_in(rows) == [5, 6, 40]
    assert counts_of(pruned) == (37, 37 * 3, 61, 3)
    sizes = [before - after for before, after in pairwise(counts)]
    assert sum(sizes) == 37 + 37 * 3 + 61
    assert 0 < min(sizes) <= max(sizes) <= 9


@pytest.mark.usefixtures("history")
@pytest.mark.parametrize("commits", [0, 1, 2, 9, 20])
@pytest.mark.parametrize("is_committed", [True, False])
def test_it_may_be_broken_off_anywhere(
    commits: int, is_committed: bool, engine: Engine, rows: Rows
) -> None:
    """Each run that is left is whole, and the next one deletes the rest."""
    full = {
        "mysql": pymysql.err.OperationalError(1021, "Disk full"),
        "sqlite": sqlite3.OperationalError("disk full"),
        "postgresql": psycopg.errors.DiskFull("disk full"),
    }[engine.dialect.name]
    with (
        failing_commits(engine, lambda n: n == commits, full, is_committed=is_committed),
        pytest.raises(DatabaseError),
    ):
        prune(engine)
    numbers = Counter(row["run_id"] for row in rows(sync_run_numbers))
    assert numbers == dict.fromkeys(runs_in(rows), 3)
    pruned = prune(engine)
    assert (pruned.runs, pruned.kept_runs) == (len(numbers) - 3, 3)
    assert runs_in(rows) == [5, 6, 40]
    kept = [row["run_id"] for row in rows(sync_run_numbers)]
    assert kept == [5] * 3 + [6] * 3 + [40] * 3
    assert rows(rejected_records) == []


@pytest.mark.usefixtures("history")
def test_two_at_once_do_no_harm(engine: Engine, rows: Rows) -> None:
    """The second one begins after each transaction of the first one."""
    others: list[Pruned] = []
    pruned = run_prune(
        Transactions(engine, patience=5), lambda: others.append(prune_beside(engine))
    )
    assert runs_in(rows) == [5, 6, 40]
    assert pruned.runs + sum(other.runs for other in others) == 37
    assert others[0].runs > 0


def prune_beside(engine: Engine) -> Pruned:
    """Prune in another thread, whose event loop is its own."""
    with ThreadPoolExecutor() as threads:
        return threads.submit(prune, engine).result()


@pytest.mark.usefixtures("history")
def test_a_sync_goes_on_between_two_transactions(engine: Engine, rows: Rows) -> None:
    """The pauses leave the database to others."""
    started: list[int] = []

    def sync() -> None:
        run_id, claimed = start_run(engine, A, now=NOW + timedelta(seconds=len(started)))
        assert claimed.held == {A}
        started.append(run_id)
        with writing(engine) as connection:
            leases.lock_writers(connection)
            run_log.finish(connection, run_id, run_log.RunOutcome("succeeded"), NOW)

    run_prune(Transactions(engine, patience=5), sync)
    assert len(started) > 10
    assert runs_in(rows) == [5, 6, 40, *started]


@only_servers
@pytest.mark.usefixtures("history")
def test_a_batch_that_is_being_written_is_not_waited_for(engine: Engine, rows: Rows) -> None:
    """The writers' lock is not taken, and the rows of the running sync are not touched."""
    run_id, _ = start_run(engine, A, now=NOW)
    with writing(engine, run_id) as batch:
        leases.lock_writers(batch)
        leases.move_fence(batch, run_id, 1)
        leases.ensure_held(batch, run_id, [A])
        run_log.add_counts(batch, run_id, {A: Counter(chats_seen=1)}, {})
        assert prune(engine).runs == 37
    assert runs_in(rows) == [5, 6, 40, run_id]

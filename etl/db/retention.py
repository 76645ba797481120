"""Delete old runs with their numbers and rejected records from the run log; never the data.

Later runs and `status` read some old entries, so the runs of these stay, each with all its numbers:
a run is deleted as a whole or not at all. No lock is taken but those of the deleted rows, and the
order of the deletions leaves a valid run log wherever they are broken off.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from sqlalchemy import Column, Connection, Table, delete, func, or_, select

from etl import log
from etl.db import leases
from etl.db.engine import clock_of
from etl.db.run_log import GOOD, was_not_left_out
from etl.db.tables import (
    FULL,
    number_leases,
    phone_numbers,
    rejected_records,
    run_fences,
    sync_run_numbers,
    sync_runs,
)
from etl.db.transactions import Transactions
from etl.errors import BusyError

ROWS: Final = 4_000  # that one transaction deletes at most
RUNS: Final = 500  # that one statement names at most
# SQLite has no queue of writers: one that waits tries again at least every 100 ms.
PAUSE_SECONDS: Final = 0.15
_LOG_EVERY_SECONDS: Final = 10.0
# What orders the rows of a run, by table; in this order they are deleted.
_KEYS: Final[dict[Table, Column[Any]]] = {
    rejected_records: rejected_records.c.id,
    sync_run_numbers: sync_run_numbers.c.phone_number,
}


@dataclass(frozen=True, slots=True)
class Pruned:
    """The rows that were deleted, and how many older runs were kept."""

    older_than: datetime
    runs: int
    numbers: int
    rejected: int
    kept_runs: int

    def as_record(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _OldRun:
    """A run, and the rows to delete with it; of one that is kept, only its rejected records."""

    id: int
    is_kept: bool
    rejected: int
    numbers: int

    @property
    def rows(self) -> int:
        return self.rejected + (0 if self.is_kept else self.numbers + 1)


async def prune(
    transactions: Transactions,
    age: timedelta,
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Pruned:
    """Delete what the run log holds of runs that began longer ago than `age`.

    Between two transactions, a pause at least as long as the transaction lets others write.
    """
    now = await transactions.read(clock_of)
    older_than = now() - age
    limit = await transactions.read(_limit)
    needed: set[int] = set()
    for phone_number in await transactions.read(_phone_numbers):
        needed |= await transactions.read(partial(_needed, phone_number=phone_number, limit=limit))
    pruning = _Pruning(transactions, sleep)
    kept = await transactions.read(partial(_count_from, limit=limit, older_than=older_than))
    last = 0
    while ids := await transactions.read(
        partial(_old_ids, after=last, limit=limit, older_than=older_than)
    ):
        runs = await transactions.read(partial(_old_runs, ids=ids, needed=needed))
        kept += sum(run.is_kept for run in runs)
        await pruning.delete(runs)
        last = ids[-1]
    deleted = pruning.deleted
    return Pruned(
        older_than,
        runs=deleted[sync_runs],
        numbers=deleted[sync_run_numbers],
        rejected=deleted[rejected_records],
        kept_runs=kept,
    )


class _Pruning:
    """Deletes runs, one transaction after another, and counts the rows by table."""

    def __init__(
        self, transactions: Transactions, sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self.deleted: Counter[Table] = Counter()
        self._transactions = transactions
        self._sleep = sleep
        self._logged = time.monotonic()

    async def delete(self, runs: Sequence[_OldRun]) -> None:
        """Delete the runs in their order, as many at once as a transaction takes."""
        for some in _in_transactions(runs):
            if sum(run.rows for run in some) > ROWS:
                await self._delete_in_parts(some[0])
            await self._write(partial(_delete_runs, runs=some))

    async def _delete_in_parts(self, run: _OldRun) -> None:
        """Delete rows of a large run, until a transaction takes the rest."""
        left = run.rows
        for table in (rejected_records,) if run.is_kept else _KEYS:
            part, deleted = partial(_delete_part, table=table, run_id=run.id), ROWS
            while left > ROWS and deleted == ROWS:
                deleted = (await self._write(part))[table]
                left -= deleted

    async def _write(self, function: Callable[[Connection], Counter[Table]]) -> Counter[Table]:
        began = time.monotonic()
        deleted = await self._transactions.write(function)
        ended = time.monotonic()
        self.deleted += deleted
        if ended - self._logged >= _LOG_EVERY_SECONDS:
            self._logged = ended
            log.info("pruning", **{table.name: count for table, count in self.deleted.items()})
        await self._sleep(max(PAUSE_SECONDS, ended - began))
        return deleted


def _limit(connection: Connection) -> int:
    """The first run that must stay: the oldest that is not closed, else the next one."""
    # The newest one first: a run that starts meanwhile is not below the limit.
    newest: int = connection.execute(select(func.max(sync_runs.c.id))).scalar() or 0
    is_open = (
        select(func.min(sync_runs.c.id)).where(sync_runs.c.status == "running"),
        select(func.min(run_fences.c.run_id)).where(run_fences.c.run_id != leases.WRITERS),
        select(func.min(number_leases.c.run_id)),
    )
    oldest: list[int | None] = [connection.execute(query).scalar() for query in is_open]
    return min([newest + 1, *(run_id for run_id in oldest if run_id is not None)])


def _phone_numbers(connection: Connection) -> list[str]:
    return list(connection.execute(select(phone_numbers.c.phone_number)).scalars())


def _needed(connection: Connection, phone_number: str, limit: int) -> set[int]:
    """The runs below the limit whose entry of the number is still read.

    Its last walk, which the next one may prove, or its last backfill, which the next one may
    resume; its last attempt, which was not busy; its last complete reading; and its first failure
    of each kind since then.
    """
    table = sync_run_numbers
    of_number = table.c.phone_number == phone_number
    last = select(table.c.run_id).where(of_number).order_by(table.c.run_id.desc()).limit(1)
    walk = connection.execute(last.where(table.c.run_id < limit, was_not_left_out())).scalar()
    was_tried = or_(table.c.error_kind.is_(None), table.c.error_kind != BusyError.kind)
    attempt = connection.execute(last.where(table.c.status != "running", was_tried)).scalar()
    read = last.where(table.c.status.in_(GOOD), table.c.completeness.in_(FULL))
    good = connection.execute(read).scalar()
    failures = connection.execute(
        select(func.min(table.c.run_id))
        .where(of_number, table.c.run_id > (good or 0), table.c.status.not_in(GOOD))
        .group_by(table.c.status, table.c.error_kind)
    ).scalars()
    found = (walk, attempt, good, *failures)
    return {run_id for run_id in found if run_id is not None and run_id < limit}


def _count_from(connection: Connection, limit: int, older_than: datetime) -> int:
    """The older runs that stay because one before them, or they themselves, are not closed."""
    runs = sync_runs
    older = select(func.count()).where(runs.c.id >= limit, runs.c.started_at < older_than)
    return int(connection.execute(older).scalar_one())


def _old_ids(connection: Connection, after: int, limit: int, older_than: datetime) -> list[int]:
    """The next old runs, in their order."""
    runs = sync_runs
    old = (runs.c.id > after, runs.c.id < limit, runs.c.started_at < older_than)
    query = select(runs.c.id).where(*old).order_by(runs.c.id).limit(RUNS)
    return list(connection.execute(query).scalars())


def _old_runs(connection: Connection, ids: Sequence[int], needed: Collection[int]) -> list[_OldRun]:
    rejected = _count_by_run(connection, rejected_records, ids)
    numbers = _count_by_run(connection, sync_run_numbers, ids)
    return [
        _OldRun(run_id, run_id in needed, rejected.get(run_id, 0), numbers.get(run_id, 0))
        for run_id in ids
    ]


def _count_by_run(connection: Connection, table: Table, ids: Sequence[int]) -> dict[int, int]:
    run_id = table.c.run_id
    query = select(run_id, func.count()).where(*_of_runs(run_id, ids)).group_by(run_id)
    return dict(connection.execute(query).all())


def _in_transactions(runs: Sequence[_OldRun]) -> Iterator[list[_OldRun]]:
    """The runs that have rows to delete, in groups of at most ROWS rows, or of a larger run."""
    group: list[_OldRun] = []
    rows = 0
    for run in runs:
        if group and rows + run.rows > ROWS:
            yield group
            group, rows = [], 0
        if run.rows:
            group.append(run)
            rows += run.rows
    if group:
        yield group


def _delete_runs(connection: Connection, runs: Sequence[_OldRun]) -> Counter[Table]:
    """Delete the rows that refer to a run before its own."""
    every, closed = [run.id for run in runs], [run.id for run in runs if not run.is_kept]
    wanted = (
        (rejected_records, rejected_records.c.run_id, every),
        (sync_run_numbers, sync_run_numbers.c.run_id, closed),
        (sync_runs, sync_runs.c.id, closed),
    )
    return Counter(
        {
            table: connection.execute(delete(table).where(*_of_runs(run_id, ids))).rowcount
            for table, run_id, ids in wanted
            if ids
        }
    )


def _delete_part(connection: Connection, table: Table, run_id: int) -> Counter[Table]:
    """Delete the run's first rows in the order of their keys."""
    of_run, key = table.c.run_id == run_id, _KEYS[table]
    rest = connection.execute(select(key).where(of_run).order_by(key).offset(ROWS).limit(1))
    first = rest.scalar()
    part = of_run if first is None else of_run & (key < first)
    return Counter({table: connection.execute(delete(table).where(part)).rowcount})


def _of_runs(run_id: Column[Any], ids: Sequence[int]) -> Any:
    # The range keeps PostgreSQL on the index while it has no statistics of the table.
    return run_id.between(ids[0], ids[-1]), run_id.in_(ids)

"""The phone numbers of a list that several runs share: who holds them, and how they ended.

Each number is looked up by index, among the entries of runs that were open when this run began or
began later. What was finished before is told once, by `unfinished`.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, func, insert, select, update

from etl.db import leases
from etl.db.backends import backend
from etl.db.chunks import chunks
from etl.db.run_log import GOOD, was_not_left_out
from etl.db.tables import (
    FULL,
    number_leases,
    number_status,
    phone_numbers,
    sync_run_numbers,
    sync_runs,
)
from etl.errors import BusyError, ConfigError, RequestRefusedError, TokenRefusedError

# Of a failure that another try in the same run cannot help.
PERMANENT: Final = frozenset({ConfigError.kind, RequestRefusedError.kind, TokenRefusedError.kind})
MAX_FAILURES: Final = 3  # of one number, in all runs together, since this run began
_CHUNK: Final = 500  # numbers that one statement names


class SharedRun(NamedTuple):
    """A run that shares numbers with others.

    For it, a list is finished that was read to the end after `since`, and a number has failed that
    failed after `begun`. `first_run` is the oldest run that was open then. For one that `is_quick`,
    a quick reading is enough.
    """

    run_id: int
    since: datetime
    begun: datetime
    first_run: int
    is_quick: bool = False

    def has_finished(self, completeness: str | None) -> bool:
        """Whether a reading that was so complete is enough."""
        return completeness in FULL or (self.is_quick and completeness is not None)


class Failure(NamedTuple):
    """How a number failed; without a kind, its list was read in part."""

    kind: str | None
    detail: str | None


@dataclass(frozen=True, slots=True)
class Standing:
    """How numbers stand: leased to this run or another one, finished, failed in other runs."""

    mine: frozenset[str] = frozenset()
    held: frozenset[str] = frozenset()
    finished: frozenset[str] = frozenset()
    failures: Mapping[str, Sequence[Failure]] = field(default_factory=dict)

    def is_free(self, phone_number: str) -> bool:
        """Whether nobody has it or has done it, and another try may help."""
        taken = self.mine | self.held | self.finished
        return phone_number not in taken and not self.is_given_up(phone_number)

    def is_given_up(self, phone_number: str) -> bool:
        """Whether other runs have tried it and another try is in vain."""
        failures = self.failures.get(phone_number, ())
        return len(failures) >= MAX_FAILURES or any(each.kind in PERMANENT for each in failures)


def open_runs(connection: Connection) -> Sequence[int]:
    """The runs that are not closed, the oldest first."""
    is_open = sync_runs.c.status == "running"
    return (
        connection.execute(select(sync_runs.c.id).where(is_open).order_by(sync_runs.c.id))
        .scalars()
        .all()
    )


def unfinished(connection: Connection, numbers: Collection[str], run: SharedRun) -> list[str]:
    """The numbers whose list is not finished for the run, the longest list first.

    A list of unknown length may be the longest of all.
    """
    backend(connection.dialect).begin_report(connection)
    view = number_status.c
    columns = (view.phone_number, view.total_count, view.run_id, view.last_good_sync)
    query = select(*columns, view.fresh_as_of)
    rows = [
        row
        for some in chunks(numbers, _CHUNK)
        for row in connection.execute(query.where(view.phone_number.in_(some)))
    ]
    recent = {
        row.phone_number: row.run_id
        for row in rows
        if row.last_good_sync is not None and row.last_good_sync >= run.since
    }
    fresh = {row.phone_number for row in rows if row.fresh_as_of and row.fresh_as_of >= run.since}
    syncs = _syncs(connection, set(recent.values()))
    lengths = {row.phone_number: row.total_count for row in rows if row.total_count is not None}
    done = fresh if run.is_quick else frozenset[str]()
    left = [each for each in numbers if recent.get(each) not in syncs and each not in done]
    return sorted(left, key=lambda number: (number in lengths, -lengths.get(number, 0)))


def _syncs(connection: Connection, runs: Collection[int]) -> frozenset[int]:
    """Those of the runs that are no backfills, which do not settle what is missing."""
    found: set[int] = set()
    for some in chunks(sorted(runs), _CHUNK):
        query = select(sync_runs.c.id).where(sync_runs.c.id.in_(some))
        found |= {*connection.execute(query.where(sync_runs.c.command == "sync")).scalars()}
    return frozenset(found)


def look(connection: Connection, run: SharedRun, numbers: Collection[str]) -> Standing:
    """How the numbers stand for the run."""
    holders: dict[str, int] = {}
    finished: set[str] = set()
    failures: defaultdict[str, list[Failure]] = defaultdict(list)
    for some in chunks(numbers, _CHUNK):
        lease = number_leases.c
        query = select(lease.phone_number, lease.run_id).where(lease.phone_number.in_(some))
        holders |= {row.phone_number: row.run_id for row in connection.execute(query)}
        for row in _entries(connection, run, some):
            if row.status in GOOD and run.has_finished(row.completeness):
                if row.finished_at >= run.since:
                    finished.add(row.phone_number)
            elif row.completeness == "quick":
                continue  # It did not fail; its list has still to be read in full.
            elif row.status in (*GOOD, "failed") and row.finished_at >= run.begun:
                failure = Failure(row.error_kind, row.error_detail or row.reason)
                failures[row.phone_number].append(failure)
    mine = frozenset(number for number, holder in holders.items() if holder == run.run_id)
    held = frozenset(holders) - mine
    return Standing(mine, held, frozenset(finished) - holders.keys(), failures)


def _entries(
    connection: Connection, run: SharedRun, numbers: Collection[str]
) -> Iterable[Row[Any]]:
    """What later runs have written of the numbers, the oldest first."""
    table = sync_run_numbers
    return connection.execute(
        select(table)
        .join(sync_runs)
        .where(table.c.phone_number.in_(numbers), table.c.run_id >= run.first_run)
        .where(table.c.run_id != run.run_id, sync_runs.c.command == "sync")
        .where(table.c.status != "running")
        .where(func.coalesce(table.c.error_kind, "") != BusyError.kind, was_not_left_out())
        .order_by(table.c.run_id)
    )


def claim(
    connection: Connection,
    run: SharedRun,
    numbers: Sequence[str],
    *,
    count: int,
    claimed: int,
) -> tuple[list[str], Standing]:
    """Lease the first free ones of the numbers to the run, up to `count`.

    The run has `claimed` others already. Also returns how the others stood. Raises LeaseLostError
    if another run has closed this one.
    """
    leases.ensure_open(connection, run.run_id)
    standing = look(connection, run, numbers)
    if standing.mine:  # Committed before, but the answer was lost.
        return [number for number in numbers if number in standing.mine], standing
    taken: list[str] = []
    free = (number for number in numbers if standing.is_free(number))
    while len(taken) < count and (some := [*islice(free, count - len(taken))]):
        locked = _lock(connection, some)
        again = look(connection, run, locked)
        taken += [number for number in some if number in locked and again.is_free(number)]
    if taken:
        _note(connection, run.run_id, taken, claimed)
    return taken, standing


def _lock(connection: Connection, numbers: Collection[str]) -> frozenset[str]:
    """Those of the numbers that no other run claims at this moment; none waits for another."""
    key = phone_numbers.c.phone_number
    rows = connection.execute(select(key).where(key.in_(numbers)).with_for_update(skip_locked=True))
    return frozenset(rows.scalars())


def _note(connection: Connection, run_id: int, taken: Collection[str], claimed: int) -> None:
    rows = [{"run_id": run_id, "phone_number": number} for number in sorted(taken)]
    connection.execute(insert(number_leases), rows)
    connection.execute(insert(sync_run_numbers), [row | {"status": "running"} for row in rows])
    total = {"numbers_total": claimed + len(rows)}
    connection.execute(update(sync_runs).where(sync_runs.c.id == run_id).values(total))

"""How each phone number stands: its last good sync, its last attempt, and since when it fails.

Each number costs a few probes of an index, however long the run log is. Joins would tempt
PostgreSQL to read the whole log.
"""

from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import islice
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    ScalarSelect,
    and_,
    func,
    not_,
    or_,
    select,
)

from etl.db.run_log import GOOD, Record
from etl.db.tables import phone_numbers, sync_run_numbers, sync_runs
from etl.errors import BusyError

_RECENT_RUNS: Final = 10_000
_CHUNK: Final = 200  # rows that one statement looks up


def number_attempts(connection: Connection) -> list[Record]:
    """Every number ever configured, in the order in which they came; nulls for what never was."""
    numbers = phone_numbers.c
    rows = connection.execute(
        select(
            numbers.phone_number,
            numbers.label,
            _newest_run(_is_good).label("good_run"),
            _newest_run(_has_ended).label("last_run"),
        ).order_by(numbers.first_seen_at, numbers.phone_number)
    ).all()
    entries = _entries(
        connection,
        {(run, row.phone_number) for row in rows for run in (row.good_run, row.last_run) if run},
    )
    found = []
    for row in rows:
        good = entries.get((row.good_run, row.phone_number), {})
        last = entries.get((row.last_run, row.phone_number), {})
        failing = last and last["status"] not in GOOD
        found.append(
            {
                "phone_number": row.phone_number,
                "label": row.label,
                "run_id": row.good_run,
                "last_good_sync": good.get("finished_at"),
                "completeness": good.get("completeness"),
                "reason": good.get("reason"),
                "total_count": good.get("total_count"),
                "last_attempt_at": last.get("finished_at"),
                "last_status": last.get("status"),
                "last_started_at": last.get("started_at"),
                "last_requests": last.get("requests"),
                "last_throttled": last.get("throttled"),
                "failing_since": _first_failure(connection, row.phone_number, row.good_run or 0)
                if failing
                else None,
            }
        )
    return found


def last_runs(connection: Connection) -> list[Record]:
    """The last run of each command that has ended, if it is among the recent ones."""
    newest = connection.execute(select(func.max(sync_runs.c.id))).scalar() or 0
    found: list[Record] = []
    for command in ("backfill", "sync"):
        row = connection.execute(
            select(sync_runs)
            .where(sync_runs.c.id > newest - _RECENT_RUNS, sync_runs.c.command == command)
            .where(sync_runs.c.finished_at.is_not(None))
            .order_by(sync_runs.c.id.desc())
            .limit(1)
        )
        found += [dict(each) for each in row.mappings()]
    return found


def _is_good(entry: FromClause) -> ColumnElement[bool]:
    return and_(entry.c.status.in_(GOOD), entry.c.completeness.is_not(None))


def _has_ended(entry: FromClause) -> ColumnElement[bool]:
    """Also not if it found its number held by another run: that is no attempt."""
    was_busy = and_(entry.c.error_kind.is_not(None), entry.c.error_kind == BusyError.kind)
    return and_(entry.c.status != "running", not_(was_busy))


def _newest_run(which: Callable[[FromClause], ColumnElement[bool]]) -> ScalarSelect[Any]:
    """The number's newest run that is so."""
    entry = sync_run_numbers.alias()
    return (
        select(entry.c.run_id)
        .where(entry.c.phone_number == phone_numbers.c.phone_number, which(entry))
        .order_by(entry.c.run_id.desc())
        .limit(1)
        .correlate(phone_numbers)
        .scalar_subquery()
    )


def _first_failure(connection: Connection, number: str, good_run: int) -> datetime | None:
    """When the number's first failed attempt after its last good sync ended."""
    entry = sync_run_numbers.alias()
    moment: datetime | None = connection.execute(
        select(entry.c.finished_at)
        .where(entry.c.phone_number == number, entry.c.run_id > good_run)
        .where(_has_ended(entry), entry.c.status.not_in(GOOD))
        .order_by(entry.c.run_id)
        .limit(1)
    ).scalar()
    return moment


def _entries(
    connection: Connection, keys: Iterable[tuple[int, str]]
) -> dict[tuple[int, str], Record]:
    """These rows of the run log, with the starts of their runs."""
    found: dict[tuple[int, str], Record] = {}
    entry = sync_run_numbers.c
    remaining = iter(keys)
    while chunk := list(islice(remaining, _CHUNK)):
        # Not as (run_id, phone_number) IN …, for which SQLite reads the whole table.
        these = (and_(entry.run_id == run, entry.phone_number == number) for run, number in chunk)
        rows = connection.execute(
            select(sync_run_numbers, sync_runs.c.started_at).join(sync_runs).where(or_(*these))
        )
        found |= {(row["run_id"], row["phone_number"]): dict(row) for row in rows.mappings()}
    return found

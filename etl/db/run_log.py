"""The run log: a row before the first request, and the truth after whatever happened."""

import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    RowMapping,
    and_,
    func,
    insert,
    select,
    update,
)

from etl import __version__
from etl.api.pace import ApiUsage
from etl.config import PhoneNumber
from etl.db import leases
from etl.db.tables import COUNTS, phone_numbers, sync_run_numbers, sync_runs
from etl.errors import BusyError

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LeaseHolder:
    """The run that holds a number which this one wanted."""

    run_id: int
    host: str
    since: datetime

    def __str__(self) -> str:
        since = self.since.isoformat(" ", "seconds")
        return f"run {self.run_id} on {self.host} holds it since {since}; wait for it to end"


@dataclass(frozen=True, slots=True)
class Claim:
    """The numbers that a run may write, those of them with `news`, and who holds the others.

    What appears in a number's list is news once that list has been read to the end before.
    """

    held: frozenset[str]
    emit_created: frozenset[str]
    busy: Mapping[str, LeaseHolder]


@dataclass(frozen=True, slots=True)
class NumberOutcome:
    """How one number of a run ended."""

    phone_number: str
    status: str
    traffic: ApiUsage = field(default_factory=ApiUsage)
    completeness: str | None = None
    reason: str | None = None
    passes: int = 0
    evidence: Mapping[str, int | None] = field(default_factory=dict)  # by its columns
    proved_run: int | None = None  # the run whose walk this one has proved
    error_kind: str | None = None
    error_detail: str | None = None


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How a run ended; `traffic` is what it spent that belongs to no single number."""

    status: str
    error_kind: str | None = None
    error_detail: str | None = None
    traffic: ApiUsage = field(default_factory=ApiUsage)


@dataclass(frozen=True, slots=True)
class LastWalk:
    """The run whose walk of a number came last, and how long the list was at its end."""

    run_id: int
    total_count: int


def start(connection: Connection, command: str, *, now: datetime, lease_seconds: int) -> int:
    """Close the runs that died, write this run's row and return its id."""
    for dead in leases.dead_runs(connection, now):
        finish(connection, dead, RunOutcome("abandoned", error_detail="its process ended"), now)
    row = {
        "command": command,
        "status": "running",
        "started_at": now,
        "version": __version__,
        "host": socket.gethostname(),
        "owner": leases.owner_identity(),
        "lease_expires_at": leases.expiry(now, lease_seconds),
        "numbers_total": 0,
        "numbers_failed": 0,
    }
    run_id: int = connection.execute(insert(sync_runs).returning(sync_runs.c.id), row).scalar_one()
    return run_id


def claim(
    connection: Connection, run_id: int, numbers: Sequence[PhoneNumber], now: datetime
) -> Claim:
    """Write a row for each number and lease the run those that are free."""
    loaded = _remember_numbers(connection, numbers, now)
    wanted = [number.e164 for number in numbers]
    taken = leases.take(connection, run_id, wanted)
    busy = {n: LeaseHolder(row.id, row.host, row.started_at) for n, row in taken.items()}
    free = [
        {"run_id": run_id, "phone_number": number, "status": "running"}
        for number in wanted
        if number not in busy
    ]
    ended = [
        {"run_id": run_id, "phone_number": number, **_as_busy(holder, now)}
        for number, holder in busy.items()
    ]
    for rows in filter(None, (free, ended)):
        connection.execute(insert(sync_run_numbers), rows)
    connection.execute(
        update(sync_runs).where(sync_runs.c.id == run_id).values(numbers_total=len(wanted))
    )
    held = frozenset(wanted) - busy.keys()
    return Claim(held=held, emit_created=held & loaded, busy=busy)


def add_counts(
    connection: Connection,
    run_id: int,
    counts: Mapping[str, Counter[str]],
    traffic: Mapping[str, ApiUsage],
) -> None:
    """Add what a batch brought to the rows of its numbers; the traffic is each one's sum so far."""
    table = sync_run_numbers
    for phone_number, count in counts.items():
        added = {name: table.c[name] + number for name, number in count.items()}
        connection.execute(
            update(table)
            .where(table.c.run_id == run_id, table.c.phone_number == phone_number)
            .values(**added, **_spent(traffic[phone_number]))
        )


def close_number(
    connection: Connection, run_id: int, outcome: NumberOutcome, now: datetime
) -> None:
    """Write how the number ended and give back its lease."""
    table = sync_run_numbers
    connection.execute(
        update(table)
        .where(table.c.run_id == run_id, table.c.phone_number == outcome.phone_number)
        .values(
            status=outcome.status,
            finished_at=now,
            completeness=outcome.completeness,
            reason=outcome.reason,
            passes=outcome.passes,
            **outcome.evidence,
            error_kind=outcome.error_kind,
            error_detail=outcome.error_detail,
            **_spent(outcome.traffic),
        )
    )
    if outcome.completeness:
        connection.execute(
            update(phone_numbers)
            .where(
                phone_numbers.c.phone_number == outcome.phone_number,
                phone_numbers.c.first_loaded_at.is_(None),
            )
            .values(first_loaded_at=now)
        )
    if outcome.proved_run is not None:
        proved = and_(
            table.c.run_id == outcome.proved_run, table.c.phone_number == outcome.phone_number
        )
        connection.execute(update(table).where(proved).values(completeness="proved", reason=None))
    leases.release(connection, run_id, [outcome.phone_number])


def last_walk(connection: Connection, phone_number: str, *, before: int) -> LastWalk | None:
    """The number's last entry before that run, if it is a walk that can still be proved."""
    row = _last_entry(connection, phone_number, before)
    # A backfill does not note which of the known chats it did not see.
    if row is None or row.command != "sync" or row.status != "succeeded":
        return None
    if row.total_count is None:
        return None
    unproved = row.completeness in {"consistent", "unproved"}
    return LastWalk(row.run_id, row.total_count) if unproved else None


def resume_page(connection: Connection, phone_number: str, *, before: int, margin: int) -> int:
    """Where a backfill goes on: a few pages before an interrupted one came to, else at page 1."""
    row = _last_entry(connection, phone_number, before)
    if row is None or row.command != "backfill" or row.status in {"succeeded", "partial"}:
        return 1
    return max(int(row.first_page or 1) + int(row.pages) - margin, 1)


def note_first_page(
    connection: Connection, run_id: int, phone_number: str, first_page: int
) -> None:
    """Note where a backfill begins, before it does."""
    table = sync_run_numbers
    mine = and_(table.c.run_id == run_id, table.c.phone_number == phone_number)
    connection.execute(update(table).where(mine).values(first_page=first_page))


def _last_entry(connection: Connection, phone_number: str, before: int) -> Row[Any] | None:
    table = sync_run_numbers
    return connection.execute(
        select(table, sync_runs.c.command)
        .join(sync_runs)
        .where(table.c.phone_number == phone_number, table.c.run_id < before)
        .order_by(table.c.run_id.desc())
        .limit(1)
    ).first()


def finish(connection: Connection, run_id: int, ending: RunOutcome, now: datetime) -> None:
    """Close the run with the sums of its numbers, unless it was closed as abandoned meanwhile.

    Numbers that were still running end as the run did.
    """
    numbers = sync_run_numbers
    of_run = numbers.c.run_id == run_id
    cause = {"error_kind": ending.error_kind, "error_detail": ending.error_detail}
    unfinished = ending.status if ending.status in {"interrupted", "abandoned"} else "failed"
    connection.execute(
        update(numbers)
        .where(of_run, numbers.c.status == "running")
        .values(status=unfinished, finished_at=now, **cause)
    )
    good = numbers.c.status.in_(("succeeded", "partial"))
    failed = select(func.count()).where(of_run, ~good)
    sums: dict[str, ColumnElement[Any]] = {
        name: select(func.coalesce(func.sum(numbers.c[name]), 0)).where(of_run).scalar_subquery()
        for name in COUNTS
    }
    for name, spent in _spent(ending.traffic).items():
        sums[name] = sums[name] + spent
    connection.execute(
        update(sync_runs)
        .where(sync_runs.c.id == run_id, sync_runs.c.status == "running")
        .values(
            status=ending.status,
            finished_at=now,
            numbers_failed=failed.scalar_subquery(),
            **cause,
            **sums,
        )
    )
    leases.release(connection, run_id)


def list_runs(connection: Connection, limit: int) -> list[Record]:
    """The last runs, newest first."""
    rows = connection.execute(select(sync_runs).order_by(sync_runs.c.id.desc()).limit(limit))
    return [_public(row) for row in rows.mappings()]


def get_run(connection: Connection, run_id: int) -> Record | None:
    """A run in full, its numbers under `numbers`; None if there is none."""
    run = connection.execute(select(sync_runs).where(sync_runs.c.id == run_id)).mappings().first()
    if run is None:
        return None
    numbers = connection.execute(
        select(sync_run_numbers)
        .where(sync_run_numbers.c.run_id == run_id)
        .order_by(sync_run_numbers.c.phone_number)
    )
    return {**_public(run), "numbers": [dict(row) for row in numbers.mappings()]}


def last_good_syncs(connection: Connection) -> list[Record]:
    """Per number ever configured: its last good sync, and how complete that was."""
    table = sync_run_numbers
    good = table.c.status.in_(("succeeded", "partial"))
    last_good = (
        select(table.c.phone_number, func.max(table.c.run_id).label("run_id"))
        .where(and_(good, table.c.completeness.is_not(None)))
        .group_by(table.c.phone_number)
        .subquery()
    )
    rows = connection.execute(
        select(
            phone_numbers.c.phone_number,
            phone_numbers.c.label,
            table.c.run_id,
            table.c.finished_at.label("last_good_sync"),
            table.c.completeness,
            table.c.reason,
            table.c.total_count,
        )
        .outerjoin(last_good, last_good.c.phone_number == phone_numbers.c.phone_number)
        .outerjoin(
            table,
            and_(
                table.c.run_id == last_good.c.run_id,
                table.c.phone_number == last_good.c.phone_number,
            ),
        )
        .order_by(phone_numbers.c.phone_number)
    )
    return [dict(row) for row in rows.mappings()]


def _as_busy(holder: LeaseHolder, now: datetime) -> Record:
    error = {"error_kind": BusyError.kind, "error_detail": str(holder)}
    return {"status": "failed", "finished_at": now, **error}


def _remember_numbers(
    connection: Connection, numbers: Sequence[PhoneNumber], now: datetime
) -> frozenset[str]:
    """Keep the table of numbers in step with the configuration; return those loaded before."""
    known = {row.phone_number: row for row in connection.execute(select(phone_numbers))}
    new = [
        {"phone_number": number.e164, "label": number.label, "first_seen_at": now}
        for number in numbers
        if number.e164 not in known
    ]
    if new:
        connection.execute(insert(phone_numbers), new)
    for number in numbers:
        row = known.get(number.e164)
        if row and number.label and number.label != row.label:
            connection.execute(
                update(phone_numbers)
                .where(phone_numbers.c.phone_number == number.e164)
                .values(label=number.label)
            )
    return frozenset(number for number, row in known.items() if row.first_loaded_at)


def _spent(traffic: ApiUsage) -> dict[str, int]:
    return {
        "requests": traffic.requests,
        "retries": traffic.retries,
        "throttled": traffic.throttled,
    }


def _public(row: RowMapping) -> Record:
    """A run without what only the leases are about."""
    return {key: value for key, value in row.items() if key not in {"owner", "lease_expires_at"}}

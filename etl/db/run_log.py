"""The run log: what each run did and how it ended, also if its process died.

A run's row is written before its first request. The next run closes the rows of dead runs.
"""

import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Update,
    and_,
    func,
    insert,
    select,
    update,
)

from etl import __version__
from etl.api.models import ApiUsage
from etl.config import PhoneNumber
from etl.db import leases
from etl.db.backends import backend
from etl.db.list_orders import Reading
from etl.db.tables import (
    COUNTS,
    Completeness,
    Mode,
    Status,
    phone_numbers,
    sync_run_numbers,
    sync_runs,
)
from etl.errors import BusyError

Record = dict[str, Any]

# A number that ended like this was synced.
GOOD: Final[tuple[Status, ...]] = ("succeeded", "partial")
_OF_ENTRY: Final = (
    *("run_id", "status", "finished_at", "completeness", "reason"),
    *("total_count", "first_page", "pages"),
)
_NEWEST: Final = 8  # runs of one number that may have ended in another order than they began
# How the reason of a number begins that was not read to its end because the requests ran out.
BUDGET_REASON: Final = "budget"
TOO_LONG_REASON: Final = "budget: the list needs"  # more requests than a run of that budget has
LEFT_OUT_REASON: Final = "budget: not read"


@dataclass(frozen=True, slots=True)
class LeaseHolder:
    """Another run that holds the lease on a number."""

    run_id: int
    host: str
    since: datetime

    def __str__(self) -> str:
        since = self.since.isoformat(" ", "seconds")
        return f"run {self.run_id} on {self.host} has held it since {since}; wait for it to end"


@dataclass(frozen=True, slots=True)
class Claim:
    """The numbers that a run may write, and the runs that hold the others."""

    held: frozenset[str]
    busy: Mapping[str, LeaseHolder]


@dataclass(frozen=True, slots=True)
class NumberOutcome:
    """How one number of a run ended.

    `evidence` is keyed by column name. `proved_run` is an earlier run whose walk this one proved.
    `changes` counts the chats stored, updated or removed, once all is written. `reading` is None if
    the list was not read as far as was intended.
    """

    phone_number: str
    status: Status
    usage: ApiUsage = field(default_factory=ApiUsage)
    completeness: Completeness | None = None
    reason: str | None = None
    passes: int = 0
    evidence: Mapping[str, float | None] = field(default_factory=dict)
    proved_run: int | None = None
    error_kind: str | None = None
    error_detail: str | None = None
    changes: int = 0
    reading: Reading | None = None


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How a run ended. `usage` counts the requests that belong to the run, not to one number.

    `unwritten` are the entries of numbers that a dry run keeps to itself.
    """

    status: Status
    error_kind: str | None = None
    error_detail: str | None = None
    usage: ApiUsage = field(default_factory=ApiUsage)
    unwritten: Sequence[Record] = ()


@dataclass(frozen=True, slots=True)
class LastWalk:
    """A number's previous walk: its run, and the API's count of chats at its end."""

    run_id: int
    total_count: int


def start(
    connection: Connection,
    command: str,
    mode: Mode = "full",
    *,
    now: datetime,
    lease_seconds: int,
) -> int:
    """Write this run's row, unless it is there, and return its id."""
    row = {
        "command": command,
        "mode": mode,
        "status": "running",
        "started_at": now,
        "version": __version__,
        "host": socket.gethostname(),
        "owner": leases.owner_identity(),
        "lease_expires_at": leases.expiry(now, lease_seconds),
        "numbers_total": 0,
        "numbers_failed": 0,
    }
    same = [sync_runs.c[name] == row[name] for name in ("status", "owner", "host", "started_at")]
    run_id: int | None = connection.execute(select(sync_runs.c.id).where(*same)).scalar()
    if run_id is None:
        run_id = _insert_run(connection, row)
        leases.open_fence(connection, run_id)
    return run_id


def _insert_run(connection: Connection, row: Record) -> int:
    keys = connection.execute(insert(sync_runs), row).inserted_primary_key
    assert keys  # noqa: S101  # one row was inserted
    run_id: int = keys[0]
    return run_id


def abandon(connection: Connection, run_id: int, now: datetime) -> bool:
    """Close a dead run, unless its process left a batch open; return whether it is closed."""
    if leases.is_writing(connection, run_id):
        return False
    finish(connection, run_id, RunOutcome("abandoned", error_detail="its process ended"), now)
    return True


def claim(
    connection: Connection, run_id: int, numbers: Sequence[PhoneNumber], now: datetime
) -> Claim:
    """Write a row for each number and lease the free ones to the run.

    Writes nothing the second time.
    """
    remember_numbers(connection, numbers, now)
    wanted = [number.e164 for number in numbers]
    holders = leases.take(connection, run_id, wanted)
    busy = {n: LeaseHolder(row.id, row.host, row.started_at) for n, row in holders.items()}
    held = frozenset(wanted) - busy.keys()
    failed = [
        {"run_id": run_id, "phone_number": n, **as_busy(holder, now)} for n, holder in busy.items()
    ]
    of_run = select(sync_run_numbers.c.phone_number).where(sync_run_numbers.c.run_id == run_id)
    if connection.execute(of_run.limit(1)).first() is None:
        if held:
            names = ("run_id", "phone_number", "status")
            rows = ((run_id, number, "running") for number in sorted(held))
            backend(connection.dialect).insert_rows(connection, sync_run_numbers, names, rows)
        if failed:
            connection.execute(insert(sync_run_numbers), failed)
    connection.execute(
        update(sync_runs).where(sync_runs.c.id == run_id).values(numbers_total=len(wanted))
    )
    return Claim(held=held, busy=busy)


def add_counts(
    connection: Connection,
    run_id: int,
    counts: Mapping[str, Counter[str]],
    usage: Mapping[str | None, ApiUsage],
) -> None:
    """Add a batch's counts to the rows of its numbers, and set their usage, a total so far."""
    for phone_number, count in counts.items():
        added = {name: sync_run_numbers.c[name] + number for name, number in count.items()}
        # Not usage[phone_number]: the event loop's thread owns this defaultdict.
        spent = counts_of(usage.get(phone_number, ApiUsage()))
        connection.execute(_update_number(run_id, phone_number).values(**added, **spent))


def close_number(
    connection: Connection, run_id: int, outcome: NumberOutcome, now: datetime
) -> None:
    """Write how the number ended and release its lease."""
    phone_number = outcome.phone_number
    connection.execute(_update_number(run_id, phone_number).values(values_of(outcome, now)))
    if outcome.completeness and outcome.evidence.get("missing") is not None:
        first_load = and_(
            phone_numbers.c.phone_number == phone_number, phone_numbers.c.first_loaded_at.is_(None)
        )
        connection.execute(update(phone_numbers).where(first_load).values(first_loaded_at=now))
    if outcome.proved_run is not None:
        proved = _update_number(outcome.proved_run, phone_number)
        connection.execute(proved.values(completeness="proved", reason=None))
    leases.release(connection, run_id, [phone_number])


def values_of(outcome: NumberOutcome, now: datetime) -> Record:
    """What the number's entry says of its end."""
    return {
        "status": outcome.status,
        "finished_at": now,
        "completeness": outcome.completeness,
        "reason": outcome.reason,
        "passes": outcome.passes,
        **outcome.evidence,
        "error_kind": outcome.error_kind,
        "error_detail": outcome.error_detail,
        **counts_of(outcome.usage),
    }


def last_walk(connection: Connection, phone_number: str, *, run_id: int) -> LastWalk | None:
    """The number's last entry before that of the run, if it is a walk that can be proved."""
    row = _last_entry(connection, phone_number, run_id)
    # A backfill does not record which known chats it did not see.
    if row is None or row.command != "sync" or row.status != "succeeded":
        return None
    provable = row.total_count is not None and row.completeness in {"consistent", "unproved"}
    return LastWalk(row.run_id, row.total_count) if provable else None


def resume_page(connection: Connection, phone_number: str, *, run_id: int, margin: int) -> int:
    """Where a backfill starts: `margin` pages before an interrupted one ended, else at page 1."""
    row = _last_entry(connection, phone_number, run_id)
    if row is None or row.command != "backfill":
        return 1
    if row.status in GOOD and not (row.reason or "").startswith(BUDGET_REASON):
        return 1
    return max(int(row.first_page or 1) + int(row.pages) - margin, 1)


def note_first_page(
    connection: Connection, run_id: int, phone_number: str, first_page: int
) -> None:
    """Record the first page of a backfill, so that the next one can resume it."""
    connection.execute(_update_number(run_id, phone_number).values(first_page=first_page))


def _last_entry(connection: Connection, phone_number: str, run_id: int) -> Any:
    """What ended last in another run. That need not be the newest one: a run can claim late.

    A run that found the number busy, or left it out, did nothing with it.
    """
    table = sync_run_numbers
    newest = connection.execute(
        select(*(table.c[name] for name in _OF_ENTRY), sync_runs.c.command)
        .join(sync_runs)
        .where(table.c.phone_number == phone_number, table.c.run_id != run_id)
        .where(func.coalesce(table.c.error_kind, "") != BusyError.kind, was_not_left_out())
        .order_by(table.c.run_id.desc())
        .limit(_NEWEST)
    ).all()
    ended = [row for row in newest if row.finished_at is not None]
    return max(ended, key=lambda row: row.finished_at, default=None)


def was_not_left_out() -> ColumnElement[bool]:
    """Whether an entry is of a number that the run's budget reached."""
    reason = func.coalesce(sync_run_numbers.c.reason, "")
    return reason.not_like(f"{LEFT_OUT_REASON}%")


def finish(connection: Connection, run_id: int, outcome: RunOutcome, now: datetime) -> None:
    """Close the run with the sums of its numbers, unless another run closed it as abandoned.

    Numbers that are still running end as `interrupted` or `abandoned` with their run, else as
    `failed`.
    """
    leases.close_fence(connection, run_id)
    # No claim of the run adds a number between the statements below.
    run = select(sync_runs.c.id).where(sync_runs.c.id == run_id)
    connection.execute(run.with_for_update(key_share=True))
    numbers = sync_run_numbers
    of_run = numbers.c.run_id == run_id
    unfinished = of_unfinished(outcome, now)
    connection.execute(
        update(numbers).where(of_run, numbers.c.status == "running").values(unfinished)
    )
    failed = select(func.count()).where(of_run, numbers.c.status.not_in(GOOD)).scalar_subquery()
    connection.execute(
        update(sync_runs)
        .where(sync_runs.c.id == run_id, sync_runs.c.status == "running")
        .values(
            status=outcome.status,
            finished_at=now,
            numbers_failed=failed + sum(each["status"] not in GOOD for each in outcome.unwritten),
            error_kind=outcome.error_kind,
            error_detail=outcome.error_detail,
            **_sums(run_id, [counts_of(outcome.usage), *outcome.unwritten]),
        )
    )
    leases.release(connection, run_id)


def of_unfinished(outcome: RunOutcome, now: datetime) -> Record:
    """How a number ends that is still running when its run ends so."""
    status = outcome.status if outcome.status in {"interrupted", "abandoned"} else "failed"
    error = {"error_kind": outcome.error_kind, "error_detail": outcome.error_detail}
    return {"status": status, "finished_at": now, **error}


def _sums(run_id: int, others: Sequence[Record]) -> dict[str, ColumnElement[Any]]:
    """Each count summed over the run's numbers and these others."""
    numbers = sync_run_numbers
    more = {name: sum(each.get(name, 0) for each in others) for name in COUNTS}
    return {
        name: select(func.coalesce(func.sum(numbers.c[name]), 0) + more[name])
        .where(numbers.c.run_id == run_id)
        .scalar_subquery()
        for name in COUNTS
    }


def as_busy(holder: LeaseHolder, now: datetime) -> Record:
    error = {"error_kind": BusyError.kind, "error_detail": str(holder)}
    return {"status": "failed", "finished_at": now, **error}


def remember_numbers(connection: Connection, numbers: Sequence[PhoneNumber], now: datetime) -> None:
    """Store the numbers and their labels.

    In the order of keys, so that two runs that begin together do not deadlock.
    """
    known = {row.phone_number: row for row in connection.execute(select(phone_numbers))}
    database = backend(connection.dialect)
    at = database.encoders().time(now)
    new = [
        (number.e164, number.label, at)
        for number in sorted(numbers, key=lambda each: each.e164)
        if number.e164 not in known
    ]
    if new:
        names = ("phone_number", "label", "first_seen_at")
        database.insert_rows(connection, phone_numbers, names, new)
    for number in numbers:
        row = known.get(number.e164)
        if row and number.label and number.label != row.label:
            connection.execute(
                update(phone_numbers)
                .where(phone_numbers.c.phone_number == number.e164)
                .values(label=number.label)
            )


def _update_number(run_id: int, phone_number: str) -> Update:
    table = sync_run_numbers
    return update(table).where(table.c.run_id == run_id, table.c.phone_number == phone_number)


def counts_of(usage: ApiUsage) -> dict[str, int]:
    return {
        "requests": usage.requests,
        "retries": usage.retries,
        "throttled": usage.throttled,
    }

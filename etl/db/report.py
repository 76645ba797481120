"""The figures of `report`: each is one query on the run log, the history or a view.

A day is a UTC day. The history is read by range of days. Of the entries of phone numbers in the run
log, as many runs are read, newest first, as have ENTRIES entries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Select, and_, case, false, func, literal, select

from etl.db.engine import clock_of
from etl.db.number_status import number_status
from etl.db.run_log import Record
from etl.db.tables import (
    COUNTS,
    chat_events,
    phone_numbers,
    rejected_records,
    sync_run_numbers,
    sync_runs,
    views,
)
from etl.errors import BusyError

ENTRIES: Final = 500_000  # of the run log, which a disk reads within seconds
WEEK: Final = 7  # days of daily_numbers, which reads every participant of chats that changed
# Counts that are the same for a dry run.
_SPENT: Final = {"requests", "retries", "throttled", "pages", "chats_seen"}
_EXAMPLES: Final = 10  # rows of a list that says what went wrong


@dataclass(frozen=True, slots=True)
class Scope:
    """The runs whose entries of phone numbers are read: from `first_run` on, none if that is None.

    `cut_at` is when that run began, if older ones of the period are left out.
    """

    first_run: int | None
    cut_at: datetime | None

    def holds(self, run_id: ColumnElement[int]) -> ColumnElement[bool]:
        return false() if self.first_run is None else run_id >= self.first_run


@dataclass(frozen=True, slots=True)
class Figures:
    """What the report shows, as rows by column name; `days` are the period, the last one today.

    - `since`: when the run log and the history begin.
    - `runs`: by day, an index of `days`, and by status, with the sums of their counts.
    - `messages`: messages_per_day_total. `events`: by kind.
    - Per number: `numbers` (number_status, with what its last good run rejected), `busiest`
      (daily_numbers of the last WEEK days, most messages first), `costliest` (requests).
    - `problems`: by kind of error, the last one as an example. `rejected`: by reason.
      `bad_runs`: the newest ones that did not succeed.
    """

    now: datetime
    days: tuple[date, ...]
    since: Record
    scope: Scope
    numbers: Sequence[Record]
    runs: Sequence[Record]
    messages: Sequence[Record]
    busiest: Sequence[Record]
    events: Sequence[Record]
    costliest: Sequence[Record]
    problems: Sequence[Record]
    rejected: Sequence[Record]
    bad_runs: Sequence[Record]


def read_figures(connection: Connection, days: int, *, now: datetime | None = None) -> Figures:
    """The figures of the last `days` days, today included."""
    now = now or clock_of(connection)()
    today = now.astimezone(UTC).date()
    period = tuple(today - timedelta(days=ago) for ago in reversed(range(days)))
    scope = _scope(connection, _start(period[0]))
    return Figures(
        now,
        period,
        since=_rows(connection, _since())[0],
        scope=scope,
        runs=_rows(connection, _runs(period)),
        messages=_rows(connection, _messages(period[0])),
        busiest=_rows(connection, _busiest(period[-WEEK:][0])),
        events=_rows(connection, _events(period[0])),
        costliest=_rows(connection, _costliest(scope)),
        problems=_problems(connection, scope),
        rejected=_rows(connection, _rejected(scope)),
        bad_runs=_rows(connection, _bad_runs(period[0])),
        # Last, because its settings for look-ups last as long as the transaction.
        numbers=_numbers(connection),
    )


def _rows(connection: Connection, query: Select[Any]) -> list[Record]:
    """The query's rows; a sum of integers is one, also where the driver returns a decimal."""
    return [
        {name: int(value) if isinstance(value, Decimal) else value for name, value in row.items()}
        for row in connection.execute(query).mappings()
    ]


def _pairs(connection: Connection, query: Select[Any]) -> dict[str, Any]:
    return {row[0]: row[1] for row in connection.execute(query)}


def _start(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _scope(connection: Connection, start: datetime) -> Scope:
    runs = select(sync_runs.c.id, sync_runs.c.started_at, sync_runs.c.numbers_total)
    newest_first = runs.where(sync_runs.c.started_at >= start).order_by(sync_runs.c.id.desc())
    first_run, began, entries = None, None, 0
    for run_id, started_at, numbers in connection.execute(newest_first):
        entries += numbers
        if entries > ENTRIES and first_run:
            return Scope(first_run, began)
        first_run, began = run_id, started_at
    return Scope(first_run, None)


def _since() -> Select[Any]:
    """When the run log and the history begin."""
    numbers = phone_numbers.c.first_loaded_at
    return select(
        select(func.min(sync_runs.c.started_at)).scalar_subquery().label("first_run"),
        select(func.count()).select_from(sync_runs).scalar_subquery().label("runs"),
        select(func.min(numbers)).scalar_subquery().label("first_loaded"),
        select(func.max(numbers)).scalar_subquery().label("last_loaded"),
    )


def _numbers(connection: Connection) -> list[Record]:
    """Each number's state, what its last good run rejected, and since when no token reaches it."""
    view, entry = views.tables["number_status"].c, sync_run_numbers.c
    status = number_status(connection)
    good = and_(entry.run_id == view.run_id, entry.phone_number == view.phone_number)
    rejecting = select(entry.phone_number, entry.rejected).select_from(
        views.tables["number_status"].join(sync_run_numbers, good)
    )
    unreached = select(phone_numbers.c.phone_number, phone_numbers.c.unreached_since)
    rejected = _pairs(connection, rejecting.where(entry.rejected > 0))
    since = _pairs(connection, unreached.where(phone_numbers.c.unreached_since.is_not(None)))
    return [
        {
            **row,
            "rejected": rejected.get(row["phone_number"], 0),
            "unreached_since": since.get(row["phone_number"]),
        }
        for row in status
    ]


def _runs(days: Sequence[date]) -> Select[Any]:
    """Runs by the day on which they began, and by status."""
    began = sync_runs.c.started_at
    ends = [
        (began < _start(day + timedelta(days=1)), literal(index)) for index, day in enumerate(days)
    ]
    # In a query of its own: PostgreSQL does not see that two expressions with parameters are one.
    by_day = (
        select(case(*ends, else_=len(days) - 1).label("day"), sync_runs)
        .where(began >= _start(days[0]))
        .subquery()
    )
    is_dry = by_day.c.mode == "dry-run"  # It spent requests, but wrote nothing.
    written = {name: case((is_dry, 0), else_=by_day.c[name]) for name in COUNTS.keys() - _SPENT}
    columns = {name: written.get(name, by_day.c[name]) for name in COUNTS}
    sums = [func.sum(column).label(name) for name, column in columns.items()]
    return (
        select(by_day.c.day, by_day.c.status, func.count().label("runs"), *sums)
        .group_by(by_day.c.day, by_day.c.status)
        .order_by(by_day.c.day, by_day.c.status)
    )


def _messages(first_day: date) -> Select[Any]:
    view = views.tables["messages_per_day_total"].c
    return (
        select(view.day, view.messages, view.spread_days)
        .where(view.day >= first_day)
        .order_by(view.day)
    )


def _busiest(first_day: date) -> Select[Any]:
    view = views.tables["daily_numbers"].c
    messages = func.sum(view.messages)
    above = case((view.messages > view.advised_messages, 1), else_=0)
    return (
        select(
            view.phone_number,
            messages.label("messages"),
            func.max(view.messages).label("most_messages"),
            func.max(view.people).label("most_people"),
            func.sum(view.new_chats).label("new_chats"),
            func.sum(above).label("days_above_advice"),
        )
        .where(view.day >= first_day)
        .group_by(view.phone_number)
        .order_by(messages.desc(), view.phone_number)
    )


def _events(first_day: date) -> Select[Any]:
    kind = chat_events.c.kind
    events = select(kind, func.count().label("events"))
    return (
        events.where(chat_events.c.observed_at >= _start(first_day)).group_by(kind).order_by(kind)
    )


def _costliest(scope: Scope) -> Select[Any]:
    entry = sync_run_numbers.c
    requests = func.sum(entry.requests)
    return (
        select(
            entry.phone_number,
            requests.label("requests"),
            func.sum(entry.retries).label("retries"),
            func.sum(entry.throttled).label("throttled"),
            func.count().label("runs"),
        )
        .where(scope.holds(entry.run_id))
        .group_by(entry.phone_number)
        .order_by(requests.desc(), entry.phone_number)
    )


def _problem_kind(table: Any) -> ColumnElement[str]:
    """The kind of error; without one, how the run or the number ended."""
    return func.coalesce(table.error_kind, table.status)


def _problems(connection: Connection, scope: Scope) -> list[Record]:
    """Entries that did not succeed, by kind. One that found its number busy lost nothing."""
    entry = sync_run_numbers.c
    of_kind = (
        select(
            _problem_kind(entry).label("kind"),
            entry.phone_number,
            entry.run_id,
            func.coalesce(entry.error_detail, entry.reason).label("detail"),
        )
        .where(scope.holds(entry.run_id), entry.status.not_in(["running", "succeeded"]))
        .where(func.coalesce(entry.error_kind, "") != BusyError.kind)
        .subquery()
    )
    entries, kind = func.count(), of_kind.c.kind
    groups = (
        select(
            kind,
            entries.label("entries"),
            func.count(of_kind.c.phone_number.distinct()).label("numbers"),
            func.max(of_kind.c.run_id).label("last_run"),
        )
        .group_by(kind)
        .order_by(entries.desc(), kind)
    )
    found = _rows(connection, groups)
    for group in found:
        last = select(of_kind.c.detail).where(
            kind == group["kind"], of_kind.c.run_id == group["last_run"]
        )
        group["detail"] = connection.execute(
            last.order_by(of_kind.c.phone_number).limit(1)
        ).scalar()
    return found


def _rejected(scope: Scope) -> Select[Any]:
    record = rejected_records.c
    records = func.count()
    return (
        select(
            record.reason,
            records.label("records"),
            func.count(record.phone_number.distinct()).label("numbers"),
        )
        .where(scope.holds(record.run_id))
        .group_by(record.reason)
        .order_by(records.desc(), record.reason)
        .limit(_EXAMPLES)
    )


def _bad_runs(first_day: date) -> Select[Any]:
    run = sync_runs.c
    names = ("id", "command", "status", "started_at", "numbers_total", "numbers_failed")
    return (
        select(*(run[name] for name in (*names, "error_kind", "error_detail")))
        .where(run.started_at >= _start(first_day), run.status.not_in(["running", "succeeded"]))
        .order_by(run.id.desc())
        .limit(_EXAMPLES)
    )

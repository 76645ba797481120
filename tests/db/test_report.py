"""The figures of `report`: each is what one reads in the tables and views."""

import os
import shutil
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from sqlalchemy import Engine, insert

from etl.db import report
from etl.db.engine import open_engine, reading, writing
from etl.db.report import Figures, Scope, read_figures
from etl.db.tables import (
    COUNTS,
    chat_events,
    chat_message_counts,
    phone_numbers,
    rejected_records,
    sync_run_numbers,
    sync_runs,
    views,
)
from etl.errors import DatabaseError
from tests.support.builders import Row, Rows
from tests.support.report_rows import fill, number

NOW = datetime(2025, 6, 10, 12, 30, tzinfo=UTC)
DAYS = 4
FIRST = date(2025, 6, 7)
MIDNIGHT = datetime(2025, 6, 7, tzinfo=UTC)


def figures(engine: Engine, days: int = DAYS) -> Figures:
    with reading(engine) as connection:
        return read_figures(connection, days, now=NOW)


@pytest.fixture
def filled(engine: Engine) -> Engine:
    """Nine days of three numbers, and a run at each end of the period's first midnight."""
    fill(engine, NOW, numbers=3, days=9, labels=["Sales"])
    with writing(engine) as connection:
        for run_id, at in ((59, MIDNIGHT), (58, MIDNIGHT - timedelta(microseconds=1))):
            started = {"id": run_id, "command": "sync", "status": "succeeded", "started_at": at}
            made = {"version": "1", "host": "h", "owner": "o", "lease_expires_at": at}
            connection.execute(
                insert(sync_runs), {**started, **made, "numbers_total": 0, "numbers_failed": 0}
            )
    return engine


def test_the_runs(filled: Engine, rows: Rows) -> None:
    """By UTC day and status, with the sums of their counts."""
    expected: dict[tuple[int, str], Counter[str]] = {}
    for row in rows(sync_runs):
        if row["started_at"] >= MIDNIGHT:
            key = ((row["started_at"].date() - FIRST).days, row["status"])
            expected.setdefault(key, Counter()).update(
                {"runs": 1, **{name: row[name] for name in COUNTS}}
            )
    found = figures(filled).runs
    assert [(row["day"], row["status"]) for row in found] == sorted(expected)
    for row in found:
        key = row.pop("day"), row.pop("status")
        assert row == {"runs": 0, **dict.fromkeys(COUNTS, 0), **expected[key]}
    assert expected[0, "succeeded"]["runs"] == 3


def test_the_history(filled: Engine, rows: Rows) -> None:
    """As the views have it, from the first day on."""
    found = figures(filled)
    assert found.days == tuple(FIRST + timedelta(days=each) for each in range(DAYS))
    total = [row for row in rows(views.tables["messages_per_day_total"]) if row["day"] >= FIRST]
    assert found.messages == sorted(total, key=lambda row: row["day"])
    kinds = Counter(row["kind"] for row in rows(chat_events) if row["observed_at"] >= MIDNIGHT)
    assert found.events == [{"kind": kind, "events": kinds[kind]} for kind in sorted(kinds)]


def test_the_last_seven_days_of_daily_numbers(filled: Engine, rows: Rows) -> None:
    """And no more, most messages first."""
    much = (chat_message_counts.c.chat_id == 1) & (chat_message_counts.c.run_id == 9)
    with writing(filled) as connection:
        connection.execute(chat_message_counts.update().where(much).values(gained=7001))
    week = NOW.date() - timedelta(days=6)
    daily = [row for row in rows(views.tables["daily_numbers"]) if row["day"] >= week]
    expected: list[Row] = []
    for each in map(number, range(3)):
        of_number = [row for row in daily if row["phone_number"] == each]
        above = [row for row in of_number if row["messages"] > row["advised_messages"]]
        expected.append(
            {
                "phone_number": each,
                "messages": sum(row["messages"] for row in of_number),
                "most_messages": max(row["messages"] for row in of_number),
                "most_people": max(row["people"] for row in of_number),
                "new_chats": sum(row["new_chats"] for row in of_number),
                "days_above_advice": len(above),
            }
        )
    assert (len(daily), sum(row["days_above_advice"] for row in expected)) == (7 * 3, 1)
    found = figures(filled, 9).busiest
    assert found == sorted(expected, key=lambda row: -row["messages"])
    assert figures(filled, 1).busiest != found


def test_the_numbers(filled: Engine, rows: Rows) -> None:
    """As number_status has them, with what their last good run rejected."""
    with writing(filled) as connection:
        unreached = phone_numbers.c.phone_number == number(1)
        connection.execute(phone_numbers.update().where(unreached).values(unreached_since=NOW))
        entry = sync_run_numbers.c
        last = (entry.run_id == 91) & (entry.phone_number == number(2))
        connection.execute(sync_run_numbers.update().where(last).values(rejected=5))
    expected = [
        {
            **row,
            "rejected": 5 if row["phone_number"] == number(2) else 0,
            "unreached_since": NOW if row["phone_number"] == number(1) else None,
        }
        for row in sorted(
            rows(views.tables["number_status"]), key=lambda row: str(row["phone_number"])
        )
    ]
    found = figures(filled)
    assert found.numbers == expected
    assert found.numbers[0]["failing_since"] is not None
    starts = [row["started_at"] for row in rows(sync_runs)]
    loaded = [row["first_loaded_at"] for row in rows(phone_numbers)]
    assert found.since == {
        "first_run": min(starts),
        "runs": len(starts),
        "first_loaded": min(loaded),
        "last_loaded": max(loaded),
    }


def test_requests_and_problems(filled: Engine, rows: Rows) -> None:
    """Of the entries of runs that began in the period."""
    found = figures(filled)
    first = min(row["id"] for row in rows(sync_runs) if row["started_at"] >= MIDNIGHT)
    assert found.scope == Scope(first, None)
    entries = [row for row in rows(sync_run_numbers) if row["run_id"] >= first]
    costs: list[Row] = []
    for each in map(number, range(3)):
        of_number = [row for row in entries if row["phone_number"] == each]
        sums = {
            name: sum(row[name] for row in of_number)
            for name in ("requests", "retries", "throttled")
        }
        costs.append({"phone_number": each, **sums, "runs": len(of_number)})
    assert found.costliest == sorted(costs, key=lambda row: -row["requests"])
    kinds = Counter(
        row["error_kind"] or row["status"] for row in entries if row["status"] != "succeeded"
    )
    assert {row["kind"]: row["entries"] for row in found.problems} == kinds
    assert {row["kind"]: (row["numbers"], row["detail"]) for row in found.problems} == {
        "unavailable": (1, "Cannot reach the API. Try again later."),
        "partial": (1, "the list moved"),
    }
    reasons = Counter(row["reason"] for row in rows(rejected_records) if row["run_id"] >= first)
    assert found.rejected == [
        {"reason": reason, "records": count, "numbers": 1} for reason, count in reasons.items()
    ]
    bad = [
        {name: row[name] for name in found.bad_runs[0]}
        for row in reversed(rows(sync_runs))
        if row["started_at"] >= MIDNIGHT and row["status"] in {"failed", "partial"}
    ]
    assert found.bad_runs == bad[:10]


def test_a_number_that_was_busy_is_no_problem(filled: Engine) -> None:
    """Another run had it."""
    before = figures(filled)
    busy: dict[str, Any] = {"run_id": 59, "phone_number": number(0), "status": "failed"}
    with writing(filled) as connection:
        connection.execute(insert(sync_run_numbers), {**busy, "error_kind": "busy"})
    assert figures(filled).problems == before.problems


def test_a_large_run_log_is_read_in_part(filled: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest runs, so many that their numbers fit; at least one."""
    whole = figures(filled)
    for limit, first in ((6, 90), (5, 91), (1, 91)):
        monkeypatch.setattr(report, "ENTRIES", limit)
        found = figures(filled)
        assert found.scope.first_run == first
        assert found.scope.cut_at is not None
        assert found.runs == whole.runs
    assert [row["runs"] for row in found.costliest] == [1, 1, 1]


def test_an_empty_database(engine: Engine) -> None:
    """No rows, and of a period without runs no entries."""
    found = figures(engine)
    assert found.since["runs"] == 0
    assert found.scope == Scope(None, None)
    for name in ("numbers", "runs", "messages", "busiest", "events", "costliest"):
        assert getattr(found, name) == []
    assert (found.problems, found.rejected, found.bad_runs) == ([], [], [])


def test_a_read_only_file(migrated_file: Path) -> None:
    """It is read, by a process that may not write it, even as root."""
    user = os.geteuid()
    with TemporaryDirectory() as folder:  # pytest's folders are closed to other users
        Path(folder).chmod(0o777)
        file = Path(folder, "linq.db")
        shutil.copy(migrated_file, file)
        file.chmod(0o444)
        engine = open_engine(f"sqlite:///{file}")
        if user == 0:
            os.seteuid(65534)
        try:
            assert figures(engine).since["runs"] == 0
            with pytest.raises(DatabaseError), writing(engine) as connection:
                connection.execute(phone_numbers.delete())
        finally:
            os.seteuid(user)
            engine.dispose()


def test_a_period_without_runs(engine: Engine) -> None:
    """The entries of older runs are not taken for it."""
    fill(engine, NOW - timedelta(days=30), numbers=2, days=2)
    found = figures(engine)
    assert (found.costliest, found.problems, found.rejected, found.runs) == ([], [], [], [])
    assert len(found.numbers) == 2

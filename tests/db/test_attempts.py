"""How each number stands, from a run log that may be long."""

from typing import Any

import pytest
from sqlalchemy import Engine, event, insert

from etl.db.attempts import last_runs, number_attempts
from etl.db.engine import reading, writing
from etl.db.tables import phone_numbers, sync_run_numbers, sync_runs
from tests.support.builders import NOON, A, B, minute

RUN = {
    "command": "sync",
    "status": "succeeded",
    "version": "1",
    "host": "here",
    "owner": "me",
    "lease_expires_at": NOON,
    "numbers_total": 1,
    "numbers_failed": 0,
}


@pytest.fixture
def log(engine: Engine) -> Engine:
    """Three runs: the first is good for A, the second unread, the third failed; B has none."""
    entries: list[dict[str, Any]] = [
        {"status": "succeeded", "completeness": "proved", "total_count": 7, "requests": 3},
        {"status": "partial", "completeness": None, "total_count": None, "requests": 4},
        {"status": "failed", "completeness": None, "total_count": None, "requests": 5},
    ]
    with writing(engine) as connection:
        connection.execute(
            insert(phone_numbers),
            [
                {"phone_number": B, "first_seen_at": minute(1), "label": "Second"},
                {"phone_number": A, "first_seen_at": minute(0), "label": None},
            ],
        )
        for run, entry in enumerate(entries, start=1):
            times = {"started_at": minute(run), "finished_at": minute(run + 1)}
            connection.execute(insert(sync_runs), {"id": run, **RUN, **times})
            row = {"run_id": run, "phone_number": A, "finished_at": minute(run + 1), **entry}
            connection.execute(insert(sync_run_numbers), row)
    return engine


def test_numbers_in_the_order_in_which_they_came(log: Engine) -> None:
    """Each with its last good sync, its last attempt, and the first failure since; else nulls."""
    with reading(log) as connection:
        first, second = number_attempts(connection)
    assert first == {
        "phone_number": A,
        "label": None,
        "run_id": 1,
        "last_good_sync": minute(2),
        "completeness": "proved",
        "reason": None,
        "total_count": 7,
        "fresh_as_of": None,
        "complete_as_of": minute(2),
        "list_order": None,
        "quick_off": None,
        "quick_hits": None,
        "quick_misses": None,
        "quick_recall_lower": None,
        "last_run_id": 3,
        "last_attempt_at": minute(4),
        "last_status": "failed",
        "last_error_kind": None,
        "last_error_detail": None,
        "always_empty": True,
        "last_started_at": minute(3),
        "last_requests": 5,
        "last_throttled": 0,
        "failing_since": minute(4),
    }
    assert second == dict.fromkeys(first) | {
        "phone_number": B,
        "label": "Second",
        "always_empty": False,
    }


def test_the_last_run_of_each_command(log: Engine) -> None:
    """Neither runs in progress nor dry runs count."""
    dry = {"mode": "dry-run", "started_at": minute(8), "finished_at": minute(9)}
    with writing(log) as connection:
        connection.execute(insert(sync_runs), {"id": 4, **RUN, **dry})
        connection.execute(
            insert(sync_runs), {"id": 5, **RUN, "status": "running", "started_at": minute(9)}
        )
    with reading(log) as connection:
        assert [(run["command"], run["id"]) for run in last_runs(connection)] == [("sync", 3)]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_no_statement_reads_the_whole_run_log(log: Engine) -> None:
    """SQLite's planner says so; PostgreSQL's would read tables as small as these."""
    ran: list[tuple[str, Any]] = []
    event.listen(
        log,
        "before_cursor_execute",
        lambda _connection, _cursor, statement, parameters, *_: ran.append((statement, parameters)),
    )
    with reading(log) as connection:
        number_attempts(connection)
        last_runs(connection)
        asked = [each for each in ran if each[0].startswith("SELECT")]
        plans = [
            step[3]
            for statement, parameters in asked
            for step in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]
    assert len(asked) >= 4
    assert [step for step in plans if step.startswith("SCAN sync_")] == []

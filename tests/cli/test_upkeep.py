"""prune: what it prints, what it refuses, and that it can be interrupted."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from etl.sandbox import Sandbox, build_world
from tests.support.builders import Row
from tests.support.command import (
    CLOSED_PORT,
    A,
    B,
    call,
    ended,
    environment,
    execute,
    running,
    select,
    wait_until,
)
from tests.support.marks import only_postgres

YEARS_AGO = "'2020-01-01 00:00:00.000000'"


@pytest.fixture
def env(database_url: str) -> dict[str, str]:
    """Three syncs of two numbers, years ago; prune needs neither token nor API."""
    world = build_world(chats_per_number=3)
    world.edit(world.listing(A)[0], message_count="plenty")
    with Sandbox(world) as sandbox:
        for _ in range(3):
            assert call("sync", env=environment(sandbox, database_url, A, B)).code == 3
    execute(database_url, f"UPDATE sync_runs SET started_at = {YEARS_AGO}")
    return {"LINQ_ETL_DATABASE__URL": database_url}


def counts(database_url: str) -> list[int]:
    tables = ("sync_runs", "sync_run_numbers", "rejected_records")
    return [select(database_url, f"SELECT count(*) FROM {table}")[0][0] for table in tables]


def test_prune(env: dict[str, str], database_url: str) -> None:
    """One sentence: what was deleted and what was kept."""
    assert counts(database_url) == [3, 6, 3]
    pruned = call("prune", "--older-than", "90d", env=env)
    assert (pruned.code, pruned.stderr) == (0, "")
    said = re.sub(r"before \S+ \S+:", "before TIME:", pruned.stdout)
    assert said == (
        "from before TIME: deleted 2 runs with 4 rows of phone numbers and 3 rejected records; "
        "kept 1 run still needed\n"
    )
    assert counts(database_url) == [1, 2, 0]


def test_prune_for_machines(env: dict[str, str], database_url: str) -> None:
    """The same as JSON; the data and what `status` shows stay."""
    shown = {
        name: select(database_url, f"SELECT * FROM {name}") for name in ("chats", "chat_handles")
    }
    before = call("status", "--json", env=env).data
    pruned = call("prune", "--older-than", "1d", "--json", env=env)
    record: Row = pruned.data
    older_than = datetime.fromisoformat(record.pop("older_than"))
    assert timedelta() <= datetime.now(UTC) - timedelta(days=1) - older_than < timedelta(minutes=5)
    assert (pruned.code, record) == (
        0,
        {"runs": 2, "numbers": 4, "rejected": 3, "kept_runs": 1},
    )
    assert without_ages(call("status", "--json", env=env).data) == without_ages(before)
    assert {name: select(database_url, f"SELECT * FROM {name}") for name in shown} == shown


def without_ages(rows: list[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name != "age"} for row in rows]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "Missing option '--older-than'"),
        (["--older-than", "23h"], "23h is not from 1d to 36500d."),
        (["--older-than", "0d"], "0d is not from 1d to 36500d."),
        (["--older-than", "36501d"], "36501d is not from 1d to 36500d."),
        (["--older-than", "90"], "'90' is not a time span"),
    ],
)
def test_an_age_that_is_refused(arguments: list[str], error: str) -> None:
    """Exit code 2; nothing is deleted by default, and nothing that is needed today."""
    refused = call("prune", *arguments, env=environment(CLOSED_PORT, "sqlite:///linq.db"))
    assert (refused.code, refused.stdout) == (2, "")
    assert error in refused.stderr
    assert not Path("linq.db").exists()


def test_the_oldest_age_is_accepted(env: dict[str, str], database_url: str) -> None:
    """A hundred years."""
    pruned = call("prune", "--older-than", "36500d", "--json", env=env)
    assert (pruned.code, pruned.data["runs"], counts(database_url)) == (0, 0, [3, 6, 3])


def test_without_a_database() -> None:
    """Exit code 6, and no file is made."""
    failed = call("prune", "--older-than", "90d", env=environment(CLOSED_PORT, "sqlite:///no.db"))
    assert (failed.code, failed.stdout) == (6, "")
    assert failed.stderr.startswith("linq-etl: There is no database file no.db.")
    assert not Path("no.db").exists()


@pytest.mark.slow
@only_postgres
def test_a_signal_ends_it(env: dict[str, str], database_url: str) -> None:
    """Within seconds, also while it waits for a row; exit code 143, and nothing is half done."""
    with psycopg.connect(database_url) as other:
        other.execute("SELECT FROM sync_runs WHERE id = 1 FOR UPDATE")
        with running("prune", "--older-than", "90d", env=env) as process:
            waits = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = "
            name = other.info.dbname
            wait_until(lambda: select(database_url, f"{waits}'{name}'"), process)
            process.terminate()
            done = ended(process, within=10)
    assert (done.code, done.stdout, done.stderr) == (143, "", "linq-etl: interrupted\n")
    assert counts(database_url) == [3, 6, 3]

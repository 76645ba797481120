"""runs, status and phone-numbers: tables for people, JSON for machines."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from etl import __version__
from etl.cli.inspect import with_age
from etl.db.tables import views
from etl.sandbox import Sandbox, build_world
from tests.cli.conftest import Synced
from tests.support.command import A, B, call, environment, execute

NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)


# runs


def test_runs(synced: Synced) -> None:
    """A line per run; with an id, that run in full with its numbers."""
    table = call("runs", env=synced.env)
    head, row = table.stdout.splitlines()
    assert (table.code, table.stderr) == (0, "")
    assert head.split()[:4] == ["id", "command", "status", "started_at"]
    assert row.split()[:3] == ["1", "sync", "succeeded"]
    one = call("runs", "1", env=synced.env)
    assert one.code == 0
    assert all(text in one.stdout for text in (A, B, "consistent", "chats_inserted    38"))


def test_runs_for_machines(synced: Synced) -> None:
    """The same as JSON, without the columns of the lease."""
    run = call("runs", "1", "--json", env=synced.env).data
    assert [(n["phone_number"], n["total_count"]) for n in run["numbers"]] == [(B, 20), (A, 20)]
    assert (run["id"], run["version"]) == (1, __version__)
    assert datetime.fromisoformat(run["started_at"]) < datetime.fromisoformat(run["finished_at"])
    assert not run.keys() & {"owner", "lease_expires_at"}


def test_an_unknown_run(synced: Synced) -> None:
    """Exit code 2."""
    refused = call("runs", "42", env=synced.env)
    assert (refused.code, refused.stdout) == (2, "")
    assert refused.stderr == "linq-etl: There is no run 42. `linq-etl runs` lists them.\n"


# Other schemas

OLDER_OR_NEWER = {
    "older": ["UPDATE linq_etl_alembic_version SET version_num = '0006_baseline'"],
    "unknown": [
        "UPDATE linq_etl_alembic_version SET version_num = '9999_of_tomorrow'",
        "ALTER TABLE sync_runs DROP COLUMN throttled",
        "ALTER TABLE sync_run_numbers DROP COLUMN reason",
        "ALTER TABLE phone_numbers DROP COLUMN label",
        "ALTER TABLE sync_runs ADD COLUMN mode TEXT",
    ],
}


DROP_VIEWS = [f"DROP VIEW {name}" for name in views.tables]


@pytest.fixture(params=OLDER_OR_NEWER)
def other_schema(request: pytest.FixtureRequest, database_url: str) -> dict[str, str]:
    """An environment with a synced database whose schema another version has made."""
    with Sandbox(build_world(numbers=[A], chats_per_number=5)) as sandbox:
        env = environment(sandbox, database_url, A)
        assert call("sync", env=env).code == 0
    for statement in (*DROP_VIEWS, *OLDER_OR_NEWER[request.param]):
        execute(database_url, statement)
    return env


def test_monitoring_works_while_a_version_is_rolled_out(other_schema: dict[str, str]) -> None:
    """runs and status read what there is; a column that is missing is null."""
    status = call("status", "--max-age", "1h", "--json", env=other_schema)
    assert (status.code, status.stderr) == (0, "")
    assert [(n["phone_number"], n["total_count"], n["label"]) for n in status.data] == [
        (A, 5, None)
    ]
    runs = call("runs", "--json", env=other_schema)
    assert (runs.code, [run["status"] for run in runs.data]) == (0, ["succeeded"])
    one = call("runs", str(runs.data[0]["id"]), "--json", env=other_schema)
    assert (one.code, one.data["numbers"][0]["completeness"]) == (0, "consistent")
    assert call("runs", env=other_schema).code == call("status", env=other_schema).code == 0


@pytest.mark.parametrize("arguments", [["runs"], ["status", "--json"]])
@pytest.mark.parametrize(
    "statement",
    ["ALTER TABLE sync_run_numbers RENAME TO numbers_of_runs", "DROP TABLE sync_run_numbers"],
)
def test_a_run_log_that_cannot_be_read(
    statement: str, arguments: list[str], synced: Synced, tmp_path: Path
) -> None:
    """Exit code 6 and a sentence about the versions."""
    shutil.copy(synced.url.removeprefix("sqlite:///"), tmp_path / "linq.db")
    url = "sqlite:///linq.db"
    for drop in DROP_VIEWS:
        execute(url, drop)
    execute(url, "UPDATE linq_etl_alembic_version SET version_num = '9999'")
    execute(url, "ALTER TABLE sync_runs RENAME COLUMN id TO run_number")
    execute(url, statement)
    failed = call(*arguments, env={"LINQ_ETL_DATABASE__URL": url})
    assert (failed.code, failed.stdout) == (6, "")
    assert failed.stderr.startswith("linq-etl: The run log of revision 9999 cannot be read by this")


# status


def test_status(synced: Synced) -> None:
    """A line per number with its age; needs neither token nor API."""
    env = {"LINQ_ETL_DATABASE__URL": synced.url}
    table = call("status", "--max-age", "1h", env=env)
    assert (table.code, table.stderr) == (0, "")
    assert [line.split()[0] for line in table.stdout.splitlines()] == ["phone_number", B, A]
    rows = call("status", "--json", env=env).data
    assert [(n["completeness"], n["total_count"]) for n in rows] == [("consistent", 20)] * 2
    assert all(0 <= n["age"] < 600 for n in rows)


def test_a_status_that_is_too_old() -> None:
    """Exit code 3 if a number's last good sync is older than asked, or there was none."""
    url = "sqlite:///linq.db"
    with Sandbox(build_world(chats_per_number=5)) as sandbox:
        env = environment(sandbox, url)
        assert call("sync", "--phone-number", A, env=env).code == 0
    never = call("status", "--max-age", "2h", "--json", env=env)
    assert (never.code, [n["age"] is None for n in never.data]) == (3, [False, True])
    only_a = {"LINQ_ETL_SYNC__PHONE_NUMBERS": A}
    execute(url, "UPDATE sync_run_numbers SET finished_at = '2025-01-01 00:00:00.000000'")
    assert call("status", "--max-age", "2h", env=env | only_a).code == 3


def test_an_age_is_in_whole_seconds() -> None:
    """From the last good sync to now; null without one."""
    row: dict[str, Any] = {"phone_number": A, "last_good_sync": NOON}
    later = NOON + timedelta(minutes=1, microseconds=999_999)
    assert with_age(row, A, later) == row | {"age": timedelta(minutes=1)}
    assert with_age(None, A, later) == {
        **dict.fromkeys(
            ("label", "last_good_sync", "age", "completeness", "total_count", "reason")
        ),
        "phone_number": A,
    }


# phone-numbers


def test_phone_numbers(synced: Synced) -> None:
    """The token's numbers, configured or not; the configuration may be without numbers."""
    env = synced.env | {"LINQ_ETL_SYNC__PHONE_NUMBERS": A}
    listed = call("phone-numbers", "--json", env=env)
    assert listed.code == 0
    assert listed.data == [
        {"phone_number": B, "configured": "no", "label": None},
        {"phone_number": A, "configured": "yes", "label": None},
    ]
    table = call("phone-numbers", env=env | {"LINQ_ETL_SYNC__PHONE_NUMBERS": ""})
    assert [line.split() for line in table.stdout.splitlines()[1:]] == [[B, "no"], [A, "no"]]

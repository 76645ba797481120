"""runs, status and phone-numbers: tables for people, JSON for machines."""

import os
import pty
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from etl import __version__
from etl.cli.runs import in_full
from etl.cli.status import NULLS, with_age
from etl.db.tables import views
from etl.sandbox import Sandbox, build_world
from tests.cli.conftest import Synced, read_terminal
from tests.support.builders import C
from tests.support.command import CLOSED_PORT, A, B, call, ended, environment, execute, running

NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)


# runs


def test_runs(synced: Synced) -> None:
    """A line per run; with an id, that run in full with its numbers."""
    table = call("runs", env=synced.env)
    head, row = table.stdout.splitlines()
    assert (table.code, table.stderr) == (0, "")
    assert head.split() == ["id", "status", "started", "took", "numbers", "changed", "error"]
    assert (row.split()[:2], row.split()[-3:]) == (["1", "succeeded"], ["2", "0", "+38"])
    wide = call("runs", "--wide", env=synced.env).stdout.splitlines()[0].split()
    assert wide[:4] == ["id", "command", "mode", "status"]
    assert {"host", "requests", "chats_inserted", "error_kind"} <= set(wide)
    one = call("runs", "1", env=synced.env)
    assert one.code == 0
    *fields, summary = one.stdout.splitlines()
    assert fields[0] == "id                1"
    assert "chats_inserted    38" in fields
    assert fields[-3:] == ["", "2 numbers succeeded without a problem", ""]
    assert summary.startswith("Run 1: 2 numbers, 40 chats, 38 new, 0 changed, lists consistent, ")


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
        "ALTER TABLE sync_runs ADD COLUMN weather TEXT",
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
    unknown = ("last_attempt_at", "last_error_kind", "failing_since", "always_empty")
    assert [status.data[0][name] for name in unknown] == [None] * 4
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
    *lines, empty, summary = table.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["phone_number", B, A]
    assert (empty, summary) == ("", "2 fresh")
    rows = call("status", "--json", env=env).data
    assert [(n["completeness"], n["total_count"]) for n in rows] == [("consistent", 20)] * 2
    assert all(0 <= n["age"] < 600 for n in rows)


def test_a_status_that_is_too_old() -> None:
    """Exit code 3 if a number is fresh as of longer ago than asked, or was never synced."""
    url = "sqlite:///linq.db"
    with Sandbox(build_world(chats_per_number=5)) as sandbox:
        env = environment(sandbox, url)
        assert call("sync", "--phone-number", A, env=env).code == 0
    never = call("status", "--max-age", "2h", "--json", env=env)
    assert (never.code, [n["age"] is None for n in never.data]) == (3, [False, True])
    only_a = {"LINQ_ETL_SYNC__PHONE_NUMBERS": A}
    execute(url, "UPDATE sync_runs SET started_at = '2025-01-01 00:00:00.000000'")
    assert call("status", "--max-age", "2h", env=env | only_a).code == 3


def test_an_age_is_in_whole_seconds() -> None:
    """Of what is fresh and of what is complete; null if that is not known."""
    row: dict[str, Any] = {**NULLS, "phone_number": A, "fresh_as_of": NOON}
    later = NOON + timedelta(minutes=1, microseconds=999_999)
    ages = {"age": timedelta(minutes=1), "complete_age": None}
    assert with_age(row, A, later) == row | ages
    row |= {"fresh_as_of": later, "complete_as_of": NOON}
    ages = {"age": timedelta(), "complete_age": timedelta(minutes=1)}
    assert with_age(row, A, later) == row | ages
    nulls = {"age": None, "complete_age": None}
    assert with_age(None, A, later) == {**NULLS, "phone_number": A, **nulls}


def test_a_status_for_machines(synced: Synced) -> None:
    """Every name, in every row; a number that was never synced has nulls."""
    env = {"LINQ_ETL_DATABASE__URL": synced.url, "LINQ_ETL_SYNC__PHONE_NUMBERS": f"{A},{C}"}
    good, never = call("status", "--json", env=env).data
    assert never == dict.fromkeys(good) | {"phone_number": C}
    assert (good["last_attempt_at"], good["last_status"]) == (good["last_good_sync"], "succeeded")
    assert (good["failing_since"], good["always_empty"]) == (None, False)


def test_a_status_of_a_number_that_fails() -> None:
    """Exit code 3 with --failing only; it says since when and why, and the worst come first."""
    env = {"LINQ_ETL_API__MAX_ATTEMPTS": "1"}
    url = "sqlite:///linq.db"
    with Sandbox(build_world(chats_per_number=5)) as sandbox:
        assert call("sync", "--phone-number", B, env=environment(sandbox, url)).code == 0
    away = environment(CLOSED_PORT, url, A, B, C) | env
    for _ in range(2):
        assert call("sync", "--phone-number", B, env=away).code == 5
    shown = call("status", env=away)
    head, *rows = shown.stdout.splitlines()[:4]
    assert (shown.code, head.split()[-3:]) == (0, ["last_attempt_at", "failing_since", "error"])
    assert [row.split()[0] for row in rows] == [B, C, A]
    assert " failing, fresh " in rows[0]
    assert rows[0].endswith("Cannot reach 127.0.0.1 (connection refused), gave up after 1 try.")
    assert rows[1].split()[1:] == ["never", "never", "synced", "never"]
    assert shown.stdout.splitlines()[-1] == "1 fresh, 2 never synced; of these 1 failing"
    assert call("status", "--failing", env=away).code == 3
    assert call("status", "--failing", env=away | {"LINQ_ETL_SYNC__PHONE_NUMBERS": A}).code == 0
    failed = call("status", "--json", env=away).data[1]
    first, _ = (run["finished_at"] for run in reversed(call("runs", "--json", env=away).data[:2]))
    assert (failed["failing_since"][:19], failed["last_error_kind"]) == (first[:19], "unavailable")


@pytest.mark.parametrize("columns", [80, 30])
def test_a_status_on_a_terminal(synced: Synced, tmp_path: Path, columns: int) -> None:
    """A label with markup and a line break, or a narrow terminal, changes nothing but the look."""
    shutil.copy(synced.url.removeprefix("sqlite:///"), tmp_path / "linq.db")
    execute("sqlite:///linq.db", "UPDATE phone_numbers SET label = '[red]' || char(10) || '[/x]'")
    env = {"LINQ_ETL_DATABASE__URL": "sqlite:///linq.db", "TERM": "xterm", "LINES": "40"}
    ours, theirs = pty.openpty()
    with running("status", env=env | {"COLUMNS": str(columns)}, stdout=theirs) as process:
        os.close(theirs)
        shown = read_terminal(ours).splitlines()
        assert ended(process).code == 0
    assert max(map(len, shown)) <= columns
    assert [sum(line.count(number) for line in shown) for number in (A, B)] == [1, 1]
    assert sum("[red] [/x]" in line for line in shown) == 2
    assert shown[-1] == "2 fresh"


def test_a_number_that_was_always_empty_is_marked() -> None:
    """In words, and in JSON."""
    with Sandbox(build_world(numbers=[A], chats_per_number=0)) as sandbox:
        env = environment(sandbox, "sqlite:///linq.db", A)
        assert call("sync", env=env).code == 0
    shown = call("status", env=env).stdout.splitlines()
    assert " fresh, always empty " in shown[1]
    assert shown[-1] == "1 fresh; of these 1 always empty"
    assert call("status", "--json", env=env).data[0]["always_empty"] is True


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


@pytest.mark.parametrize(
    ("failed", "others", "named"), [(3, 0, 0), (3, 1, 3), (50, 1, 50), (70, 1, 50)]
)
def test_numbers_with_the_same_problem(failed: int, others: int, named: int) -> None:
    """They are named in full, but no wall of digits is printed: not more than 50, and not all."""
    record = stored_run(failed=failed, succeeded=others)
    lines = [line for line in in_full(record, 80) if line.startswith("  +") or "others:" in line]
    shown = " ".join(lines).split()
    assert len([word for word in shown if word.startswith("+")]) == named
    assert (f"and {failed - named} others: --json" in " ".join(shown)) == (0 < named < failed)


def stored_run(*, failed: int, succeeded: int) -> dict[str, Any]:
    """A run's record with so many numbers that failed for the same reason."""
    number = {"rejected": 0, "reason": None, "total_count": 1, "completeness": None}
    error = {"status": "failed", "error_detail": "Cannot reach the API.", **number}
    good = {"status": "succeeded", "error_detail": None, **number, "completeness": "consistent"}
    numbers = [error] * failed + [good] * succeeded
    return {
        "id": 1,
        "status": "partial",
        "numbers": [{"phone_number": f"+1312555{i:04}", **each} for i, each in enumerate(numbers)],
    }

"""runs, status and phone-numbers: tables for people, JSON for machines."""

from datetime import UTC, datetime, timedelta
from typing import Any

import click
import pytest

from etl import __version__
from etl.cli.inspect import Duration, with_age
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
    assert "there is no run 42" in refused.stderr


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


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("90s", timedelta(seconds=90)),
        ("15m", timedelta(minutes=15)),
        ("2h", timedelta(hours=2)),
        ("1d", timedelta(days=1)),
        ("999999d", timedelta(days=999_999)),
    ],
)
def test_a_duration(text: str, span: timedelta) -> None:
    """A whole number and a unit."""
    assert Duration().convert(text, None, None) == span


@pytest.mark.parametrize("text", ["", "2", "h", "-2h", "1.5h", "2 h", "2H", "2w", "1000000d"])
def test_other_text_is_not_a_duration(text: str) -> None:
    """The error shows what to write."""
    with pytest.raises(click.BadParameter, match=r"is not a time span; write e\.g\. 90s"):
        Duration().convert(text, None, None)


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

"""What each command takes, prints and exits with."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import click
import pytest

from etl import __version__
from etl.cli.main import cli
from etl.sandbox import Sandbox, build_world
from tests.support.command import (
    TOKEN,
    A,
    B,
    ended,
    execute,
    linq_etl,
    running,
    select,
    settings,
)

CLOSED_PORT = "http://127.0.0.1:1"


@dataclass(frozen=True)
class Synced:
    """A sandbox whose numbers have been synced once, and the settings and streams of that."""

    sandbox: Sandbox
    url: str
    env: dict[str, str]
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def synced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Synced]:
    url = f"sqlite:///{tmp_path_factory.mktemp('synced')}/linq.db"
    with Sandbox(build_world(chats_per_number=20)) as sandbox:
        env = settings(sandbox, url)
        done = linq_etl("--log-json", "sync", env=env)
        assert done.code == 0
        yield Synced(sandbox, url, env, done.stdout, done.stderr)


def commands(group: click.Group, *path: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        else:
            yield " ".join((*path, name)), command


# Before anything happens


@pytest.mark.parametrize(("name", "command"), list(commands(cli)))
def test_every_command_explains_itself(name: str, command: click.Command) -> None:
    """Its help says what it does and shows an example that is a command."""
    text = command.get_help(click.Context(command, info_name=f"linq-etl {name}"))
    assert "Example" in text
    assert f"\n    linq-etl {name}" in text


def test_help_and_version() -> None:
    """They need no settings, and go to stdout."""
    help_ = linq_etl("--help")
    assert (help_.code, help_.stderr) == (0, "")
    assert {"sync", "runs", "status", "check", "phone-numbers", "db", "sandbox", "demo"} <= {
        line.split()[0] for line in help_.stdout.splitlines() if line.strip()
    }
    assert linq_etl("--version").stdout == f"linq-etl, version {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["phone-numbers"]])
def test_help_and_a_mistake_in_the_configuration_answer_at_once(arguments: list[str]) -> None:
    """Neither imports what talks to databases, networks or terminals."""
    program = [sys.executable, "-X", "importtime", "-m", "etl", *arguments]
    ran = subprocess.run(
        program, check=False, capture_output=True, text=True, env={"PATH": os.environ["PATH"]}
    )
    imported = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"sqlalchemy", "alembic", "httpx", "rich", "psycopg", "tenacity"}


def test_no_configuration_at_all() -> None:
    """Exit code 2, with what there has to be."""
    refused = linq_etl("sync")
    assert (refused.code, refused.stdout) == (2, "")
    assert "there is no token; set $LINQ_INTEGRATION_TOKEN" in refused.stderr
    assert "sync.phone_numbers: there is none; write e.g." in refused.stderr


def test_every_problem_of_a_configuration_is_told_at_once() -> None:
    """Each with its key and what to write; what may be a secret is not repeated."""
    Path("mine.toml").write_text(f"""
        [api]
        base_url = "http://user:hunter2@example.com"
        per_pge = 50
        timeout_seconds = "soon"
        [database]
        url = "mysql://root:hunter2@localhost/linq"
        [sync]
        phone_numbers = ["{A}", "13343284472", "555-12"]
        [logs]
    """)
    env = {"LINQ_ETL_API__MAX_ATTEMPTS": "0", "LINQ_ETL_SYNK__MAX_PASSES": "1"}
    refused = linq_etl("--config", "mine.toml", "sync", env=env)
    assert (refused.code, refused.stdout) == (2, "")
    for problem in (
        "api.base_url: will not do; write an https URL",
        "api.per_pge: no such setting; did you mean api.per_page?",
        "will not do; write seconds for one whole request",
        "will not do; write tries per request",
        "LINQ_ETL_SYNK__MAX_PASSES: no such setting; did you mean sync.max_passes?",
        "database.url: will not do; write",
        f"sync.phone_numbers, entry 2: {A} is entry 1 already",
        "sync.phone_numbers, entry 3: ",
        "logs: no such section",
        "there is no token",
    ):
        assert problem in refused.stderr
    assert "hunter2" not in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config", "missing.toml", "sync"], "missing.toml: no such file"),
        (["synch"], "No such command 'synch'"),
        (["status", "--max-age", "2 hours"], "write e.g. 90s, 15m, 2h or 1d"),
        (["sync", "--phone-number", "nobody"], "is not a phone number; write it with country code"),
        (
            ["sync", "--phone-number", "+12025550199"],
            "add +12025550199 to sync.phone_numbers first",
        ),
    ],
)
def test_a_mistake_on_the_command_line(arguments: list[str], says: str) -> None:
    """Exit code 2 and a sentence about the mistake."""
    refused = linq_etl(*arguments, env=settings(CLOSED_PORT, "sqlite:///linq.db"))
    assert (refused.code, refused.stdout) == (2, "")
    assert says in refused.stderr


# What goes wrong


def test_something_unexpected() -> None:
    """Exit code 1: where it happened is logged, its message, which may hold people's data, not."""
    Path("sitecustomize.py").write_text(
        "import etl.cli.demo\n"
        "async def crash(path): raise RuntimeError('Ava Reyes')\n"
        "etl.cli.demo.run_demo = crash\n"
    )
    crashed = linq_etl("--log-json", "demo", env={"PYTHONPATH": str(Path.cwd())})
    log, sentence = crashed.stderr.splitlines()
    assert (crashed.code, crashed.stdout) == (1, "")
    assert json.loads(log)["type"] == "RuntimeError"
    assert "sitecustomize.py:2 crash" in log
    assert "please report it with the log above" in sentence
    assert "Ava" not in crashed.stderr


def test_an_api_that_is_down() -> None:
    """Exit code 5; the run and its numbers are in the run log as failed."""
    env = settings(CLOSED_PORT, "sqlite:///linq.db", LINQ_ETL_API__MAX_ATTEMPTS="1")
    failed = linq_etl("sync", "--json", env=env)
    assert failed.code == 5
    assert "the API is unavailable after 1 tries" in failed.stderr
    assert failed.data["status"] == "failed"
    assert {n["error_kind"] for n in failed.data["numbers"]} == {"unavailable"}


@pytest.mark.parametrize("command", [["runs"], ["db", "current"]])
def test_a_database_file_that_is_not_there(command: list[str]) -> None:
    """Exit code 6, and looking does not create it."""
    failed = linq_etl(*command)
    assert (failed.code, failed.stdout) == (6, "")
    assert "there is no database file linq.db; run `linq-etl sync` first" in failed.stderr
    assert not Path("linq.db").exists()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://me:hunter2@127.0.0.1:1/linq", "the database is unavailable"),
        ("sqlite:///no/such/folder/linq.db", "cannot create the database file"),
        ("sqlite:///notes.txt", "sqlite:///notes.txt"),
    ],
)
def test_a_database_that_cannot_be_opened(url: str, says: str) -> None:
    """Exit code 6 with what to look at, before the API is asked for anything; no password."""
    Path("notes.txt").write_text("Milk, eggs, bread and the rest of what is needed.\n" * 20)
    failed = linq_etl("sync", env=settings(CLOSED_PORT, url))
    assert (failed.code, failed.stdout) == (6, "")
    assert says in failed.stderr
    assert "hunter2" not in failed.stderr


# The run log


def test_a_sync_logs_to_stderr_alone(synced: Synced) -> None:
    """With --log-json every line is JSON; numbers are shortened and nothing private is there."""
    lines = [json.loads(line) for line in synced.stderr.splitlines()]
    assert synced.stdout == ""
    assert [line["event"] for line in lines] == [
        "run_started",
        "number_ended",
        "number_ended",
        "run_ended",
    ]
    assert {line.get("phone_number") for line in lines} == {None, "…4472", "…0100"}
    assert all(datetime.fromisoformat(line["time"]).tzinfo for line in lines)
    assert lines[-1]["status"] == "succeeded"
    for private in (A[1:], B[1:], TOKEN):
        assert private not in synced.stderr


def test_runs(synced: Synced) -> None:
    """A line per run, and one run in full with its numbers."""
    table = linq_etl("runs", env=synced.env)
    head, row = table.stdout.splitlines()
    assert (table.code, table.stderr) == (0, "")
    assert head.split()[:4] == ["id", "command", "status", "started_at"]
    assert row.split()[:3] == ["1", "sync", "succeeded"]
    one = linq_etl("runs", "1", env=synced.env)
    assert one.code == 0
    assert all(text in one.stdout for text in (A, B, "consistent", "chats_inserted    38"))


def test_runs_for_machines(synced: Synced) -> None:
    """The same as JSON, without what only the leases are about."""
    run = linq_etl("runs", "1", "--json", env=synced.env).data
    assert [(n["phone_number"], n["total_count"]) for n in run["numbers"]] == [(B, 20), (A, 20)]
    assert (run["id"], run["version"]) == (1, __version__)
    assert datetime.fromisoformat(run["started_at"]) < datetime.fromisoformat(run["finished_at"])
    assert not run.keys() & {"owner", "lease_expires_at"}


def test_a_run_that_there_is_not(synced: Synced) -> None:
    """Exit code 2."""
    refused = linq_etl("runs", "42", env=synced.env)
    assert (refused.code, refused.stdout) == (2, "")
    assert "there is no run 42" in refused.stderr


def test_status(synced: Synced) -> None:
    """A line per number, in full, and its age; needs neither token nor API."""
    env = {"LINQ_ETL_DATABASE__URL": synced.url}
    table = linq_etl("status", "--max-age", "1h", env=env)
    assert (table.code, table.stderr) == (0, "")
    assert [line.split()[0] for line in table.stdout.splitlines()] == ["phone_number", B, A]
    fresh = linq_etl("status", "--json", env=env).data
    assert [(n["completeness"], n["total_count"]) for n in fresh] == [("consistent", 20)] * 2
    assert all(0 <= n["age"] < 600 for n in fresh)


def test_a_status_that_is_too_old() -> None:
    """Exit code 3 if a number's last good sync is older than asked, or there was none."""
    url = "sqlite:///linq.db"
    with Sandbox(build_world(chats_per_number=5)) as sandbox:
        env = settings(sandbox, url)
        assert linq_etl("sync", "--phone-number", A, env=env).code == 0
    never = linq_etl("status", "--max-age", "2h", "--json", env=env)
    assert (never.code, [n["age"] is None for n in never.data]) == (3, [False, True])
    only_a = {"LINQ_ETL_SYNC__PHONE_NUMBERS": A}
    execute(url, "UPDATE sync_run_numbers SET finished_at = '2025-01-01 00:00:00.000000'")
    assert linq_etl("status", "--max-age", "2h", env=env | only_a).code == 3


# Looking around


def test_check(synced: Synced) -> None:
    """A line per thing that is well; exit code 0."""
    checked = linq_etl("check", env=synced.env)
    assert (checked.code, checked.stderr) == (0, "")
    lines = [line.split(maxsplit=2) for line in checked.stdout.splitlines()]
    assert [line[:2] for line in lines] == [
        ["ok", "config"],
        ["ok", "token"],
        ["ok", "numbers"],
        ["ok", "database"],
        ["ok", "schema"],
    ]


@pytest.mark.parametrize(
    ("change", "code", "fixes"),
    [
        ({"LINQ_INTEGRATION_TOKEN": ""}, 2, {"config": "set $LINQ_INTEGRATION_TOKEN"}),
        (
            {"LINQ_ETL_SYNC__PHONE_NUMBERS": "+12025550199"},
            2,
            {"numbers": "…0199: not reached; remove them from sync.phone_numbers"},
        ),
        (
            {
                "LINQ_INTEGRATION_TOKEN": "stale",
                "LINQ_ETL_DATABASE__URL": "sqlite:///no/linq.db",
            },
            4,
            {"token": "get a valid integration token", "database": "see database.url"},
        ),
    ],
)
def test_a_check_that_fails(
    change: dict[str, str], code: int, fixes: dict[str, str], synced: Synced
) -> None:
    """Everything that fails is shown with its fix; the exit code is that of the first."""
    checked = linq_etl("check", "--json", env=synced.env | change)
    failed = {f["subject"]: f for f in checked.data if not f["ok"]}
    assert checked.code == code == next(iter(failed.values()))["exit_code"]
    assert failed.keys() == fixes.keys()
    assert all(fix in failed[subject]["detail"] for subject, fix in fixes.items())


def test_phone_numbers(synced: Synced) -> None:
    """What the token reaches, configured or not; no number needs to be configured yet."""
    env = synced.env | {"LINQ_ETL_SYNC__PHONE_NUMBERS": A}
    listed = linq_etl("phone-numbers", "--json", env=env)
    assert listed.code == 0
    assert listed.data == [
        {"phone_number": B, "configured": "no", "label": None},
        {"phone_number": A, "configured": "yes", "label": None},
    ]
    table = linq_etl("phone-numbers", env=env | {"LINQ_ETL_SYNC__PHONE_NUMBERS": ""})
    assert [line.split() for line in table.stdout.splitlines()[1:]] == [[B, "no"], [A, "no"]]


def test_a_terminal_shows_progress_and_a_table(synced: Synced, tmp_path: Path) -> None:
    """People see a table where machines get log lines; stdout is still the data alone."""
    env = settings(synced.sandbox, f"sqlite:///{tmp_path}/linq.db", TERM="xterm", COLUMNS="120")
    ours, theirs = pty.openpty()
    with running("sync", "--json", env=env, stderr=theirs) as process:
        os.close(theirs)
        shown = _read_terminal(ours)
        done = ended(process)
    assert (done.code, done.data["status"]) == (0, "succeeded")
    assert "Run 1: 2 phone number(s)" in shown
    assert all(text in shown for text in ("…4472", "…0100", "consistent", "all"))
    assert "run_ended" not in shown


def _read_terminal(descriptor: int) -> str:
    shown = b""
    try:
        while block := os.read(descriptor, 4096):
            shown += block
    except OSError:
        pass  # How Linux says that nobody has the other side open.
    finally:
        os.close(descriptor)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


# The schema


def test_the_schema_goes_up_and_down() -> None:
    """The db commands make the tables, tell the revision, compare, and take them away again."""
    url = "sqlite:///linq.db"
    env = {"LINQ_ETL_DATABASE__URL": url}
    up = linq_etl("db", "upgrade", env=env)
    head = up.stdout.split()[-1]
    assert (up.code, up.stdout) == (0, f"the schema is at revision {head}\n")
    same = linq_etl("db", "check", env=env)
    assert (same.code, same.stdout) == (0, "the schema is as expected\n")
    execute(url, "ALTER TABLE chats ADD COLUMN mood TEXT")
    differs = linq_etl("db", "check", env=env)
    assert (differs.code, "mood" in differs.stderr) == (6, True)
    execute(url, "ALTER TABLE chats DROP COLUMN mood")
    unsure = linq_etl("db", "downgrade", "base", env=env)
    assert "deleted with their data" in unsure.stdout
    assert select(url, "SELECT * FROM chats") == []
    down = linq_etl("db", "downgrade", "base", "--yes", env=env)
    assert (down.code, down.stdout) == (0, "the schema is at revision base\n")
    now = linq_etl("db", "current", env=env)
    assert (now.code, now.stdout) == (0, f"empty (this program needs {head})\n")


def test_a_schema_is_not_upgraded_unasked() -> None:
    """With auto_upgrade = false: exit code 6 and the command to run."""
    env = settings(CLOSED_PORT, "sqlite:///linq.db", LINQ_ETL_DATABASE__AUTO_UPGRADE="false")
    refused = linq_etl("sync", env=env)
    assert refused.code == 6
    assert "run `linq-etl db upgrade`" in refused.stderr


def test_a_schema_newer_than_the_program() -> None:
    """Exit code 6, and nothing is written."""
    url = "sqlite:///linq.db"
    execute(url, "CREATE TABLE linq_etl_alembic_version (version_num VARCHAR(32) PRIMARY KEY)")
    execute(url, "INSERT INTO linq_etl_alembic_version VALUES ('9999')")
    refused = linq_etl("sync", env=settings(CLOSED_PORT, url))
    assert refused.code == 6
    assert "the schema (revision 9999) is newer than this program" in refused.stderr
    assert select(url, "SELECT name FROM sqlite_schema WHERE type = 'table'") == [
        ("linq_etl_alembic_version",)
    ]


# Without a token


def test_the_sandbox_command() -> None:
    """It says how to use it, answers as it says, and ends with Ctrl-C."""
    with running("sandbox", "--port", "0", "--chats", "5") as process:
        lines = iter(process.stdout or ())
        exports = [next(lines) for _ in range(5)][2:]
        env = dict(line.removeprefix("  export ").strip().split("=") for line in exports)
        done = linq_etl("sync", "--json", env=env)
        process.send_signal(signal.SIGINT)
        assert ended(process).code == 0
    assert (done.code, done.data["chats_seen"]) == (0, 10)


def test_the_demo() -> None:
    """It leaves a database to look around in, and can be run again."""
    Path("linq-demo.db").write_text("an older one")
    shown = linq_etl("demo")
    assert (shown.code, shown.stderr) == (0, "")
    assert all(text in shown.stdout for text in ("Sales", "Support", "People who talk to both"))
    assert select("sqlite:///linq-demo.db", "SELECT status FROM sync_runs") == [("succeeded",)] * 2

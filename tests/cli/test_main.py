"""The command group: help, imports, and the exit code of each kind of error."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from etl import __version__
from etl.cli.main import cli
from tests.support.command import CLOSED_PORT, COMMAND, A, call, environment


def commands(group: click.Group, *path: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        else:
            yield " ".join((*path, name)), command


# Help


@pytest.mark.parametrize(("name", "command"), list(commands(cli)))
def test_every_command_explains_itself(name: str, command: click.Command) -> None:
    """Its help shows an example that calls it."""
    # click keeps a command's help option from its first context, for all tests that follow.
    names = cli.context_settings["help_option_names"]
    context = click.Context(command, info_name=f"linq-etl {name}", help_option_names=names)
    text = command.get_help(context)
    assert "Example" in text
    assert f"\n    linq-etl {name}" in text


@pytest.mark.parametrize(("group", "path"), [(cli, ()), (cli.commands["db"], ("db",))])
def test_a_list_of_commands_fits_a_terminal(group: click.Group, path: tuple[str, ...]) -> None:
    """At 80 columns every command has one whole line, not cut off with dots."""
    shown = call(*path, "--help", env={"COLUMNS": "80"})
    assert (shown.code, shown.stderr) == (0, "")
    lines = shown.stdout.partition("\nCommands:\n")[2].splitlines()
    assert [line.split()[0] for line in lines] == sorted(group.commands)
    assert all(line.endswith(".") and not line.endswith("..") for line in lines)
    assert max(map(len, lines)) <= 80


def test_the_version() -> None:
    """The installed command and the module print the same version."""
    for program in ([sys.executable, "-m", "etl"], [str(COMMAND)]):
        ran = subprocess.run([*program, "--version"], check=True, capture_output=True, text=True)
        assert ran.stdout == f"linq-etl, version {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["phone-numbers"]])
def test_help_and_a_mistake_in_the_configuration_answer_at_once(arguments: list[str]) -> None:
    """Neither imports the libraries for databases, networks or terminals."""
    program = [sys.executable, "-X", "importtime", "-m", "etl", *arguments]
    ran = subprocess.run(
        program, check=False, capture_output=True, text=True, env={"PATH": os.environ["PATH"]}
    )
    imported = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"sqlalchemy", "alembic", "httpx", "rich", "psycopg", "tenacity"}


# Configuration and command line: exit code 2


def test_no_configuration_at_all() -> None:
    """The error names the two settings that are required."""
    refused = call("sync")
    assert (refused.code, refused.stdout) == (2, "")
    assert "there is no token: set $LINQ_INTEGRATION_TOKEN" in refused.stderr
    assert "sync.phone_numbers: there is none; write e.g." in refused.stderr


def test_every_problem_of_a_configuration_is_reported_at_once() -> None:
    """Each with its key and the expected value, without the given one, which may be a secret."""
    Path("mine.toml").write_text(f"""
        [api]
        base_url = "http://user:hunter2@example.com"
        per_pge = 50
        timeout_seconds = "soon"
        [database]
        url = "mssql://root:hunter2@localhost/linq"
        [sync]
        phone_numbers = ["{A}", "13343284472", "555-12"]
        [logs]
    """)
    env = {"LINQ_ETL_API__MAX_ATTEMPTS": "0", "LINQ_ETL_SYNK__MAX_PASSES": "1"}
    refused = call("--config", "mine.toml", "sync", env=env)
    assert (refused.code, refused.stdout) == (2, "")
    for problem in (
        "api.base_url: invalid value; expected an https URL",
        "api.per_pge: no such setting; did you mean api.per_page?",
        "api.timeout_seconds: invalid value; expected seconds for one whole request",
        "api.max_attempts: invalid value; expected tries per request",
        "LINQ_ETL_SYNK__MAX_PASSES: no such setting; did you mean sync.max_passes?",
        "database.url: invalid value; expected",
        f"sync.phone_numbers, entry 2: {A} is already entry 1",
        "sync.phone_numbers, entry 3: ",
        "logs: no such section",
        "there is no token",
    ):
        assert problem in refused.stderr
    assert "hunter2" not in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--config", "nope.toml", "sync"],
            "linq-etl: Config file nope.toml not found. "
            "Start with: cp config.example.toml nope.toml\n",
        ),
        (["synch"], "No such command 'synch'"),
        (["sync", "--quickly"], "No such option"),
        (["status", "--max-age", "2 hours"], "write e.g. 90s, 15m, 2h or 1d"),
    ],
)
def test_a_mistake_on_the_command_line(arguments: list[str], says: str) -> None:
    """A sentence about the mistake, on stderr."""
    refused = call(*arguments, env=environment(CLOSED_PORT, "sqlite:///linq.db"))
    assert (refused.code, refused.stdout) == (2, "")
    assert says in refused.stderr


# Other errors


def test_something_unexpected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1; the log has the stack, but not the message, which may hold people's data."""

    async def crash(path: Path) -> None:
        raise RuntimeError("Ava Reyes")

    monkeypatch.setattr("etl.cli.demo.run_demo", crash)
    crashed = call("--log-json", "demo")
    log, sentence = crashed.stderr.splitlines()
    assert (crashed.code, crashed.stdout) == (1, "")
    assert json.loads(log)["type"] == "RuntimeError"
    assert json.loads(log)["stack"][-1].endswith(" crash")
    assert sentence == (
        "linq-etl: Unexpected error (RuntimeError). Please report it with the log above."
    )
    assert "Ava" not in crashed.stderr


def test_an_error_of_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1, the system's reason, and where it happened."""

    async def crash(path: Path) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("etl.cli.demo.run_demo", crash)
    crashed = call("--log-json", "demo")
    log, sentence = crashed.stderr.splitlines()
    assert (crashed.code, crashed.stdout) == (1, "")
    assert json.loads(log)["stack"][-1].endswith(" crash")
    assert sentence == (
        "linq-etl: The operating system reports an error: Too many open files. See the log above."
    )


def test_an_interrupted_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C outside a job has exit code 130 too."""

    def interrupt(path: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("etl.cli.demo.run_demo", interrupt)
    interrupted = call("demo")
    assert (interrupted.code, interrupted.stdout) == (130, "")
    assert interrupted.stderr.strip() == "linq-etl: interrupted"


def test_an_api_that_is_down() -> None:
    """Exit code 5; the run log shows the run and its numbers as failed."""
    env = environment(CLOSED_PORT, "sqlite:///linq.db", LINQ_ETL_API__MAX_ATTEMPTS="1")
    failed = call("sync", "--json", env=env)
    assert failed.code == 5
    assert "Cannot reach 127.0.0.1 (connection refused), gave up after 1 try." in failed.stderr
    assert failed.data["status"] == "failed"
    assert {n["error_kind"] for n in failed.data["numbers"]} == {"unavailable"}

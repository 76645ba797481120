"""What happens to the standard streams changes no job, and no command shows a traceback."""

import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from etl.sandbox import Sandbox, build_world
from tests.cli.conftest import Synced, read_terminal
from tests.support.command import (
    TOKEN,
    A,
    call,
    ended,
    environment,
    execute,
    linq_etl,
    running,
    select,
)

pytestmark = pytest.mark.slow  # Each test starts processes.

URL = "sqlite:///linq.db"
NO_SPACE = "linq-etl: Cannot write the output: No space left on device.\n"
CLOSED = ("2>&-", ">&-", ">&- 2>&- <&-")
FULL = (">/dev/full", "2>/dev/full", ">/dev/full 2>/dev/full")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(build_world(numbers=[A], chats_per_number=5)) as server:
        yield server


def redirected(redirection: str, *arguments: str, env: dict[str, str]) -> tuple[int, str, str]:
    """Run the command with its streams redirected by a shell."""
    under = ("sh", "-c", f'exec "$@" {redirection}', "sh")
    done = linq_etl(*arguments, env=env, under=under)
    return done.code, done.stdout, done.stderr


@pytest.fixture
def closed_pipe() -> Iterator[int]:
    """A pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


# Jobs


@pytest.mark.parametrize("redirection", [*CLOSED, *FULL])
def test_a_sync_succeeds_whatever_becomes_of_its_output(redirection: str, sandbox: Sandbox) -> None:
    """Exit code 0, and the run is in the run log; a full disk is told where it can be."""
    code, _, stderr = redirected(redirection, "sync", "--json", env=environment(sandbox, URL, A))
    assert code == 0
    assert stderr.endswith(NO_SPACE) == (redirection == ">/dev/full")
    assert select(URL, "SELECT status FROM sync_runs") == [("succeeded",)]


def test_a_sync_succeeds_without_a_reader(sandbox: Sandbox, closed_pipe: int) -> None:
    """Neither its output nor its log is read; nothing is said about that."""
    env = environment(sandbox, URL, A)
    done = linq_etl("sync", "--json", env=env, stdout=closed_pipe)
    assert (done.code, "Cannot write" in done.stderr) == (0, False)
    assert linq_etl("sync", env=env, stderr=closed_pipe).code == 0
    assert select(URL, "SELECT status FROM sync_runs") == [("succeeded",)] * 2


def test_a_failed_job_keeps_its_exit_code(sandbox: Sandbox) -> None:
    """4 for a token that the API refuses, 3 for a chat that is wrong."""
    env = environment(sandbox, URL, A)
    bad_token = env | {"LINQ_INTEGRATION_TOKEN": f"not-{TOKEN}"}
    assert redirected(">/dev/full", "sync", "--json", env=bad_token)[0] == 4
    assert call("sync", env=env).code == 0
    execute(URL, "UPDATE chats SET display_name = 'something else'")
    assert redirected(">/dev/full", "verify", env=env) == (3, "", NO_SPACE)


# Commands that print data


@pytest.mark.parametrize(
    "arguments", [["runs"], ["status", "--json"], ["--help"], ["db", "current"]]
)
def test_output_that_cannot_be_written(arguments: list[str], synced: Synced) -> None:
    """Exit code 1 and one sentence."""
    assert redirected(">/dev/full", *arguments, env=synced.env) == (1, "", NO_SPACE)


@pytest.mark.parametrize("arguments", [["runs"], ["status", "--json"], ["--help"], ["nonsense"]])
@pytest.mark.parametrize("redirection", CLOSED)
def test_closed_streams_change_nothing(
    redirection: str, arguments: list[str], synced: Synced
) -> None:
    """The exit code is the usual one, and what is open is written."""
    code, stdout, stderr = redirected(redirection, *arguments, env=synced.env)
    usual = call(*arguments, env=synced.env)
    assert code == usual.code
    assert bool(stdout) == (redirection == "2>&-" and bool(usual.stdout))
    assert bool(stderr) == (redirection == ">&-" and bool(usual.stderr))


@pytest.mark.parametrize("arguments", [["--help"], ["runs"], ["status", "--json"]])
def test_a_reader_that_stops_reading_is_no_error(
    arguments: list[str], synced: Synced, closed_pipe: int
) -> None:
    """As with `| head`: exit code 0, and nothing on stderr."""
    done = linq_etl(*arguments, env=synced.env, stdout=closed_pipe)
    assert (done.code, done.stderr) == (0, "")


def test_a_question_without_an_input(synced: Synced) -> None:
    """Exit code 2, as without a terminal."""
    code, _, stderr = redirected("<&-", "db", "downgrade", "base", env=synced.env)
    assert (code, "confirm with --yes" in stderr) == (2, True)


def test_a_slow_reader_gets_everything(sandbox: Sandbox) -> None:
    """Also through a pipe that does not block, which another program may have set."""
    env = environment(sandbox, URL, A)
    assert call("sync", env=env).code == 0
    columns = ", ".join(
        name for (name,) in select(URL, "SELECT name FROM pragma_table_info('sync_runs')")[1:]
    )
    execute(
        URL,
        "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 300) "
        f"INSERT INTO sync_runs (id, {columns}) SELECT i, {columns} FROM n, sync_runs",
    )
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    received = bytearray()

    def read() -> None:
        while block := os.read(reader, 65536):
            received.extend(block)
        os.close(reader)

    with running("runs", "--limit", "300", "--json", env=env, stdout=writer) as process:
        os.close(writer)
        thread = threading.Thread(target=read)
        thread.start()
        assert ended(process).code == 0
        thread.join()
    assert len(received) > 2 * 65536
    assert len(json.loads(received)) == 300


# Encodings


@pytest.fixture
def party(sandbox: Sandbox) -> dict[str, str]:
    """An environment with an ASCII terminal, and a number with an emoji in its label."""
    Path("config.toml").write_text(
        f'[sync]\nphone_numbers = [{{ number = "{A}", label = "Zoë 🎭" }}]', "utf-8"
    )
    env = environment(sandbox, URL, PYTHONIOENCODING="ascii")
    del env["LINQ_ETL_SYNC__PHONE_NUMBERS"]
    assert call("sync", env=env).code == 0
    return env


def test_a_table_in_ascii(party: dict[str, str]) -> None:
    """Other characters are written as escapes."""
    shown = linq_etl("status", env=party)
    assert (shown.code, shown.stderr) == (0, "")
    assert r"Zo\xeb \U0001f3ad" in shown.stdout


def test_json_in_ascii(party: dict[str, str]) -> None:
    """It is still JSON, with the same label."""
    shown = linq_etl("status", "--json", env=party)
    assert shown.stdout.isascii()
    assert [row["label"] for row in shown.data] == ["Zoë 🎭"]


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}])
def test_a_terminal_that_knows_only_ascii(party: dict[str, str], variables: dict[str, str]) -> None:
    """Bars and tables are shown as far as it can."""
    del party["PYTHONIOENCODING"]
    env = party | variables | {"TERM": "xterm", "COLUMNS": "120"}
    ours, theirs = pty.openpty()
    with running("sync", env=env, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = read_terminal(ours)
        assert process.wait() == 0
    assert "Run 2: 1 phone number" in shown


def test_a_terminal_that_vanishes(sandbox: Sandbox) -> None:
    """As when its window is closed and SIGHUP is ignored: the run goes on."""
    ours, theirs = pty.openpty()
    env = environment(sandbox, URL, A, TERM="xterm")
    with running("sync", env=env, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        os.close(ours)
        assert process.wait() == 0
    assert select(URL, "SELECT status FROM sync_runs") == [("succeeded",)]


# Processes


def test_interpreter_noise_is_not_shown() -> None:
    """Too few descriptors: one sentence, and neither warnings nor tracebacks of Python's own."""
    limited = ("sh", "-c", 'ulimit -n 7; exec "$@"', "sh")
    with Sandbox(build_world(numbers=[A], chats_per_number=1)) as server:
        env = environment(server, URL, A)
        assert call("sync", env=env).code == 0
        failed = linq_etl("sync", env=env, under=limited)
    assert failed.code in {1, 2, 6}
    assert failed.stderr.splitlines()[-1].startswith("linq-etl: ")
    assert "Warning" not in failed.stderr


def test_the_streams_of_a_module_run() -> None:
    """`python -m etl` protects them too."""
    script = '"$1" -m etl --help >/dev/full'
    ran = subprocess.run(
        ["sh", "-c", script, "sh", sys.executable],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (1, NO_SPACE)

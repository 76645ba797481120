"""Runs the command, in this process or as one of its own, and reads the database by plain SQL.

`call` is fast; `linq_etl` and `running` start the installed command, for tests of signals,
streams and terminals.
"""

import gc
import io
import json
import os
import sqlite3
import subprocess
import sysconfig
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql

from etl.cli.main import run
from etl.log import LOGGER
from etl.sandbox import Sandbox, World
from etl.sandbox.routes import Reply
from tests.support import mysql

A, B = "+13343284472", "+13125550100"
TOKEN = "sandbox-token"
COMMAND = Path(sysconfig.get_path("scripts"), "linq-etl")
DATA_TABLES = (
    "phone_numbers",
    "chats",
    "chat_handles",
    "chat_phone_numbers",
    "chat_message_counts",
    "chat_events",
)
# Lets `coverage run` measure subprocesses too.
COVERAGE = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
CLOSED_PORT = "http://127.0.0.1:1"  # where every connection is refused
PATIENCE = 30.0  # seconds to wait for an expected event


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended: its exit code and what it printed."""

    code: int
    stdout: str
    stderr: str

    @property
    def data(self) -> Any:
        """Its stdout, which must be JSON and nothing else."""
        return json.loads(self.stdout)


def environment(
    api: Sandbox | str, database_url: str, *numbers: str, **others: str
) -> dict[str, str]:
    """A complete configuration as variables; `others` override it, `api` is a sandbox or a URL."""
    return {
        "LINQ_ETL_API__BASE_URL": api if isinstance(api, str) else api.url,
        "LINQ_ETL_DATABASE__URL": database_url,
        "LINQ_ETL_SYNC__PHONE_NUMBERS": ",".join(numbers or (A, B)),
        "LINQ_INTEGRATION_TOKEN": TOKEN,
    } | others


def call(*arguments: str, env: Mapping[str, str] | None = None) -> Ended:
    """Run a command line in this process, with these variables, and restore what it changed."""
    stdout, stderr = io.StringIO(), io.StringIO()
    log = LOGGER.handlers, LOGGER.propagate, LOGGER.level
    thresholds = gc.get_threshold()
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(stdout),
        redirect_stderr(stderr),
    ):
        for name, value in (env or {}).items():
            patch.setenv(name, value)
        code = run(arguments)
    gc.unfreeze()
    gc.set_threshold(*thresholds)
    LOGGER.handlers, LOGGER.propagate, level = log
    LOGGER.setLevel(level)
    assert "Traceback" not in stderr.getvalue()
    return Ended(code, stdout.getvalue(), stderr.getvalue())


def linq_etl(*arguments: str, env: dict[str, str] | None = None, **options: Any) -> Ended:
    """Run the installed command to its end."""
    with running(*arguments, env=env, **options) as process:
        return ended(process)


@contextmanager
def running(
    *arguments: str, env: dict[str, str] | None = None, under: Sequence[str] = (), **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """Start the installed command, `under` another one if given; killed when the block ends."""
    with subprocess.Popen(
        [*under, COMMAND, *arguments],
        env={"PATH": os.environ["PATH"], "HOME": str(Path.cwd()), **COVERAGE, **(env or {})},
        text=True,
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        | options,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str], within: float = PATIENCE) -> Ended:
    """Wait for the process to end; it must never print a traceback."""
    stdout, stderr = process.communicate(timeout=within)
    assert "Traceback" not in (stderr or "")
    return Ended(process.returncode, stdout, stderr)


def wait_until(happened: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait for an effect of the process; fail at once if the process ends."""
    pause = threading.Event()
    for _ in range(int(PATIENCE / 0.02)):
        if happened():
            return
        assert process.poll() is None, ended(process)
        pause.wait(0.02)
    raise AssertionError(f"not within {PATIENCE:g} s")


class HoldingSandbox(Sandbox):
    """Answers `answers` requests for a number's list and holds back the others until `release`.

    The same for each of the `others`.
    """

    def __init__(
        self,
        world: World,
        *,
        answers: int,
        number: str = A,
        others: Sequence[str] = (),
        **options: Any,
    ) -> None:
        super().__init__(world, **options)
        self._held = {
            f"phone_number={each.removeprefix('+')}&": threading.Semaphore(answers)
            for each in (number, *others)
        }
        self._released = threading.Event()
        self.holding = threading.Event()

    def respond(self, target: str, token: str) -> Reply | None:
        for marker, answers in self._held.items():
            if marker in target and not answers.acquire(blocking=False):
                self.holding.set()
                self._released.wait(PATIENCE)
        return super().respond(target, token)

    def release(self) -> None:
        """Answer the requests held back, and all later ones."""
        self._released.set()

    def stop(self) -> None:
        self.release()
        super().stop()


# The database


def select(database_url: str, query: str) -> list[tuple[Any, ...]]:
    """The query's rows, with times as the database's driver returns them."""
    if database_url.startswith("sqlite"):
        with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"))) as connection:
            return connection.execute(query).fetchall()
    if database_url.startswith("mysql"):
        return mysql.execute(database_url, query)
    with psycopg.connect(_plain(database_url), autocommit=True) as postgres:
        return postgres.execute(query).fetchall()


def execute(database_url: str, statement: str) -> None:
    """Change the database behind the program's back."""
    if database_url.startswith("sqlite"):
        path = database_url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(statement)
    elif database_url.startswith("mysql"):
        mysql.execute(database_url, statement)
    else:
        with psycopg.connect(_plain(database_url), autocommit=True) as postgres:
            postgres.execute(statement)


def snapshot(database_url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Every data row; in PostgreSQL with xmin, which shows even updates that change nothing."""
    version = "t.xmin::text, " if database_url.startswith("postgresql") else ""
    return {
        table: sorted(select(database_url, f"SELECT {version}t.* FROM {table} t"), key=repr)
        for table in DATA_TABLES
    }


def stored(database_url: str) -> dict[str, list[tuple[Any, ...]]]:
    """The stored chats, handles and memberships, without removed ones."""
    handles = select(
        database_url,
        "SELECT chat_id, id, phone_number, service, joined_at FROM chat_handles "
        "WHERE removed_at IS NULL",
    )
    return {
        "chats": sorted(
            select(
                database_url,
                "SELECT id, display_name, service, is_group, message_count FROM chats "
                "WHERE removed_at IS NULL",
            )
        ),
        "handles": sorted((*handle[:4], instant(handle[4])) for handle in handles),
        "memberships": sorted(
            select(
                database_url,
                "SELECT phone_number, chat_id FROM chat_phone_numbers WHERE removed_at IS NULL",
            )
        ),
    }


def held(world: World, numbers: Sequence[str] = (A, B)) -> dict[str, list[tuple[Any, ...]]]:
    """The sandbox's data for these numbers, in the form of `stored`."""
    memberships = [(number, chat_id) for number in numbers for chat_id in world.listing(number)]
    chats = [world.chat(chat_id) for chat_id in {chat_id for _, chat_id in memberships}]
    return {
        "chats": sorted(
            (
                chat["id"],
                *map(chat.get, ("display_name", "service", "group", "message_count")),
            )
            for chat in chats
        ),
        "handles": sorted(
            (
                chat["id"],
                handle["id"],
                *map(handle.get, ("phone_number", "service")),
                instant(handle.get("joined_at")),
            )
            for chat in chats
            for handle in chat.get("chat_handles") or ()
        ),
        "memberships": sorted(memberships),
    }


def instant(value: str | datetime | None) -> datetime | None:
    """A time from the API or a database, in UTC; without an offset it is UTC already."""
    if value is None:
        return None
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def search_path(database_url: str, schema: str) -> str:
    """The URL with another schema to search, for plain SQL."""
    path = sql.Identifier(schema).as_string().replace("\\", "\\\\").replace(" ", "\\ ")
    separator = "&" if "?" in database_url else "?"
    return f"{database_url}{separator}options={quote(f'-csearch_path={path}')}"


def _plain(database_url: str) -> str:
    return database_url.replace("postgresql+psycopg://", "postgresql://")

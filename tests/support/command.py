"""The installed command as people run it: a process with an environment, streams and an exit code.

Also what a test needs around it: a sandbox that holds requests back, and the database as plain
SQL shows it.
"""

import json
import os
import sqlite3
import subprocess
import sysconfig
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from etl.sandbox import Sandbox, World
from etl.sandbox.routes import Reply

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
PATIENCE = 30.0  # seconds until something that must happen counts as not happening


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that has ended by itself."""

    code: int
    stdout: str
    stderr: str

    @property
    def data(self) -> Any:
        """Its stdout, which is JSON and nothing else."""
        return json.loads(self.stdout)


def settings(api: Sandbox | str, database_url: str, *numbers: str, **others: str) -> dict[str, str]:
    """An environment that says it all; `others` go over it, `api` is a sandbox or a URL."""
    return {
        "LINQ_ETL_API__BASE_URL": api if isinstance(api, str) else api.url,
        "LINQ_ETL_DATABASE__URL": database_url,
        "LINQ_ETL_SYNC__PHONE_NUMBERS": ",".join(numbers or (A, B)),
        "LINQ_INTEGRATION_TOKEN": TOKEN,
    } | others


def linq_etl(*arguments: str, env: dict[str, str] | None = None, **options: Any) -> Ended:
    """Run the command to its end."""
    with running(*arguments, env=env, **options) as process:
        return ended(process)


@contextmanager
def running(
    *arguments: str, env: dict[str, str] | None = None, under: Sequence[str] = (), **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """The command, `under` another one if given; killed if it is under way when the block ends."""
    with subprocess.Popen(
        [*under, COMMAND, *arguments],
        env={"PATH": os.environ["PATH"], "HOME": str(Path.cwd()), **(env or {})},
        text=True,
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        | options,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str], within: float = PATIENCE) -> Ended:
    """Wait for its end; whatever happens, nobody is shown a traceback."""
    stdout, stderr = process.communicate(timeout=within)
    assert "Traceback" not in (stderr or "")
    return Ended(process.returncode, stdout, stderr)


def wait_until(happened: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait for something that the process brings about; fails at once if it ends instead."""
    pause = threading.Event()
    for _ in range(int(PATIENCE / 0.02)):
        if happened():
            return
        assert process.poll() is None, ended(process)
        pause.wait(0.02)
    raise AssertionError(f"not within {PATIENCE:g} s")


class HoldingSandbox(Sandbox):
    """Answers so many requests for a number's list, then holds the rest back until `release`."""

    def __init__(self, world: World, *, answers: int, number: str = A, **options: Any) -> None:
        super().__init__(world, **options)
        self._held = threading.Semaphore(answers)
        self._released = threading.Event()
        self._marker = f"phone_number={number.removeprefix('+')}&"
        self.holding = threading.Event()

    def respond(self, target: str, token: str) -> Reply | None:
        if self._marker in target and not self._held.acquire(blocking=False):
            self.holding.set()
            self._released.wait(PATIENCE)
        return super().respond(target, token)

    def release(self) -> None:
        """Answer everything from now on."""
        self._released.set()

    def stop(self) -> None:
        self.release()
        super().stop()


# The database


def select(database_url: str, query: str) -> list[tuple[Any, ...]]:
    """What the query returns, with times as the database's driver gives them."""
    if database_url.startswith("sqlite"):
        with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"))) as connection:
            return connection.execute(query).fetchall()
    with psycopg.connect(_plain(database_url), autocommit=True) as postgres:
        return postgres.execute(query).fetchall()


def execute(database_url: str, statement: str) -> None:
    """Change the database behind the program's back."""
    if database_url.startswith("sqlite"):
        path = database_url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(statement)
    else:
        with psycopg.connect(_plain(database_url), autocommit=True) as postgres:
            postgres.execute(statement)


def snapshot(database_url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Every data row; in PostgreSQL with its version, which also an update to the same changes."""
    version = "" if database_url.startswith("sqlite") else "t.xmin::text, "
    return {
        table: sorted(select(database_url, f"SELECT {version}t.* FROM {table} t"), key=repr)
        for table in DATA_TABLES
    }


def stored(database_url: str) -> dict[str, list[tuple[Any, ...]]]:
    """The chats, handles and memberships that are there and not removed."""
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
    """What the sandbox holds of these numbers, in the shape of `stored`."""
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
    """A time as the API or a database writes it, in UTC; without an offset it is UTC already."""
    if value is None:
        return None
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _plain(database_url: str) -> str:
    return database_url.replace("postgresql+psycopg://", "postgresql://")

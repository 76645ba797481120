"""What commands start with: global options, configuration, phone numbers, database, signals."""

import asyncio
import signal
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from etl import config as configuration
from etl.cli.logs import configure_log
from etl.config import Config, PhoneNumber
from etl.errors import ConfigError, DatabaseError, RunInterruptedError
from etl.phone import to_e164

if TYPE_CHECKING:
    from sqlalchemy import Engine

# Commands import SQLAlchemy, httpx, Rich and the like inside functions, so that help and a mistake
# in the configuration answer at once.

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GlobalOptions:
    """The options that come before the command."""

    config_path: Path | None = None
    log_json: bool = False

    def load_config(self, *, offline: bool = False, needs_numbers: bool = True) -> Config:
        """Load the configuration and apply its log.json.

        An `offline` command makes no request, so it needs neither token nor phone numbers.
        """
        config = configuration.load_config(
            self.config_path, needs_token=not offline, needs_numbers=needs_numbers and not offline
        )
        configure_log(as_json=self.log_json or config.log.json)
        return config


def chosen_numbers(config: Config, chosen: Sequence[str]) -> tuple[PhoneNumber, ...]:
    """The configured numbers, or only those given by --phone-number."""
    if not chosen:
        return config.sync.phone_numbers
    known = {number.e164: number for number in config.sync.phone_numbers}
    try:
        wanted = dict.fromkeys(to_e164(text) for text in chosen)
    except ValueError as error:
        raise ConfigError(f"--phone-number: {error}") from None
    unknown = [n for n in wanted if n not in known and not config.sync.all_phone_numbers]
    if unknown:
        raise ConfigError(f"--phone-number: add {', '.join(unknown)} to sync.phone_numbers first")
    return tuple(known.get(number) or PhoneNumber(number) for number in wanted)


@contextmanager
def open_database(
    config: Config, *, existing: bool = False, empty: bool = False
) -> Iterator["Engine"]:
    """The database's engine, disposed of at the end.

    With `existing`, no file is created, and the schema must be current unless it may be `empty`.
    """
    from etl.db import schema
    from etl.db.engine import open_engine

    if existing:
        _ensure_file(config.database.url)
    engine = open_engine(config.database.url)
    try:
        if existing and not empty:
            schema.ensure_current(engine, upgrade_allowed=False)
        yield engine
    finally:
        engine.dispose()


def _ensure_file(url: str) -> None:
    path = url.removeprefix("sqlite:///")
    if path != url and not Path(path).exists():
        raise DatabaseError(f"there is no database file {path}; run `linq-etl sync` first")


def run_interruptible(job: Coroutine[Any, Any, T]) -> T:
    """Run a job; the first SIGINT or SIGTERM cancels it, a second one kills the process.

    Raises RunInterruptedError once the cancelled job has cleaned up.
    """
    received: list[int] = []

    async def interruptible() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task  # noqa: S101  # a running coroutine has a task

        def interrupt(number: int) -> None:
            received.append(number)
            for each in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(each)
                signal.signal(each, signal.SIG_DFL)
            task.cancel()

        for each in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(each, interrupt, each)
        return await job

    try:
        return asyncio.run(interruptible())
    except asyncio.CancelledError:
        raise RunInterruptedError(received[0]) from None

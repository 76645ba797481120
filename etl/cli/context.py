"""What the commands share: settings, the database, a run that is watched, signals and output."""

import asyncio
import gc
import json
import re
import signal
import sys
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from etl import log
from etl.config import Config, PhoneNumber
from etl.config import load_config as read_config
from etl.errors import ConfigError, DatabaseError, RunInterruptedError
from etl.phone import to_e164

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from etl.sync.number import RunOptions
    from etl.sync.progress import Report

# As in cli.py, what is heavy is imported where it is needed.
T = TypeVar("T")


class Duration(click.ParamType[timedelta]):
    """A time span such as 90s, 15m, 2h or 1d."""

    name = "duration"
    _UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}  # noqa: RUF012

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        match = re.fullmatch(r"(\d+)([smhd])", value)
        if not match or len(match[1]) > 6:
            self.fail(f"{value!r} is no time span; write e.g. 90s, 15m, 2h or 1d", param, ctx)
        return timedelta(**{self._UNITS[match[2]]: int(match[1])})


RUN_COLUMNS = (
    "id",
    "command",
    "status",
    "started_at",
    "finished_at",
    "numbers_total",
    "numbers_failed",
    "requests",
    "chats_inserted",
    "chats_updated",
    "chats_removed",
    "error_kind",
)
_NUMBER_COLUMNS = (
    "phone_number",
    "status",
    "completeness",
    "passes",
    "total_count",
    "pages",
    "chats_inserted",
    "chats_updated",
    "chats_removed",
    "rejected",
    "reason",
    "error_detail",
)
STATUS_COLUMNS = ("phone_number", "label", "last_good_sync", "age", "completeness", "total_count")


def load_config(
    options: dict[str, Any], *, offline: bool = False, needs_numbers: bool = True
) -> Config:
    config = read_config(
        options["path"], needs_token=not offline, needs_numbers=needs_numbers and not offline
    )
    log.configure(as_json=options["log_json"] or config.log.json, quiet=False)
    return config


def run_job(options: dict[str, Any], config: Config, plan: "RunOptions", as_json: bool) -> int:
    """Do what is planned, watched, on a schema that is up to date; return the exit code."""
    from etl.api.client import LinqClient
    from etl.api.pace import Pace
    from etl.db.engine import database_clock
    from etl.db.schema import ensure_current
    from etl.sync.run import Result
    from etl.sync.run import sync as run_sync

    async def job(engine: "Engine", report: "Report") -> Result:
        pace = Pace(config.api.max_concurrency, config.api.max_requests_per_second)
        async with LinqClient(config.api, pace, now=database_clock(engine)) as linq:
            return await run_sync(config, engine, linq, plan=plan, report=report)

    with open_database(config) as engine, _progress(options, config) as report:
        ensure_current(engine, upgrade_allowed=config.database.auto_upgrade)
        _collect_garbage_seldom()
        result = run_interruptible(job(engine, report))
        report.run_ended(result.record)
    if as_json:
        print_json(result.record)
    for error in result.errors:
        print_error(error)
    return result.exit_code


def _collect_garbage_seldom() -> None:
    """Pages come and go in large numbers and hold no cycles, so there is little to find."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def chosen_numbers(config: Config, chosen: Sequence[str]) -> tuple[PhoneNumber, ...]:
    """The configured numbers, or those of them that were named on the command line."""
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
    """The database; if it must be `existing` it has tables too, unless it may be `empty`."""
    from etl.db import schema
    from etl.db.engine import open_database

    if existing:
        _ensure_file(config.database.url)
    engine = open_database(config.database.url)
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


@contextmanager
def _progress(options: dict[str, Any], config: Config) -> Iterator["Report"]:
    from etl.sync.progress import LogProgress

    as_log = options["log_json"] or config.log.json or not sys.stderr.isatty()
    with LogProgress() if as_log else _terminal_report() as report:
        yield report


def _terminal_report() -> "Report":
    from etl.cli.progress import TerminalProgress

    return TerminalProgress()


def run_interruptible(job: Coroutine[Any, Any, T]) -> T:
    """Run it; the first SIGINT or SIGTERM cancels it in good order, a second ends the process."""
    received: list[int] = []

    async def interruptible() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task  # noqa: S101  # it is running

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


def print_error(message: str) -> None:
    """Tell the operator, on stderr."""
    click.echo(f"linq-etl: {message}", err=True)


def with_age(row: dict[str, Any] | None, number: str, now: datetime) -> dict[str, Any]:
    """The number\'s row of `status`, with its age; nulls if it was never synced."""
    row = row or dict.fromkeys(STATUS_COLUMNS) | {"phone_number": number, "reason": None}
    last = row["last_good_sync"]
    return {**row, "age": timedelta(seconds=int((now - last).total_seconds())) if last else None}


def print_json(value: Any) -> None:
    """Print data for machines: times in ISO 8601, spans in seconds."""
    click.echo(json.dumps(value, default=_plain, ensure_ascii=False, indent=2))


def _plain(value: Any) -> Any:
    if isinstance(value, timedelta):
        return int(value.total_seconds())
    return value.isoformat() if isinstance(value, datetime) else str(value)


def print_table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Print rows for people."""
    from etl.cli.progress import print_rows

    print_rows(rows, columns)


def print_run(record: dict[str, Any]) -> None:
    """Print a run in full: its own fields, then a row per number."""
    from etl.cli.progress import text

    for key, value in record.items():
        if key != "numbers":
            click.echo(f"{key:<18}{text(value)}".rstrip())
    click.echo("")
    print_table(record["numbers"], _NUMBER_COLUMNS)

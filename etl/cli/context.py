"""What commands start with: global options, configuration, phone numbers, database, signals."""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from etl import config as configuration
from etl.cli.logs import configure_log
from etl.config import Config, PhoneNumber
from etl.errors import (
    ConfigError,
    DatabaseError,
    DatabaseUnavailableError,
    RunInterruptedError,
    SchemaError,
)
from etl.phone import to_e164

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

# Commands import SQLAlchemy, httpx, Rich and the like inside functions, so that help and a mistake
# in the configuration answer at once.

T = TypeVar("T")

# Of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True, slots=True)
class GlobalOptions:
    """The options that come before the command."""

    config_path: Path | None = None
    log_json: bool = False

    def load_config(
        self,
        *,
        offline: bool = False,
        needs_numbers: bool = True,
        needs_key: bool = False,
        quiet: bool = False,
    ) -> Config:
        """Load the configuration and apply its log.json; if `quiet`, only problems are logged.

        An `offline` command makes no request, so it needs neither token nor phone numbers.
        """
        config = configuration.load_config(
            self.config_path,
            needs_token=not offline,
            needs_numbers=needs_numbers and not offline,
            needs_key=needs_key,
        )
        configure_log(as_json=self.log_json or config.log.json, quiet=quiet)
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
    from etl.db.engine import missing_file, open_engine

    if existing and (missing := missing_file(config.database.url)):
        raise DatabaseError(
            f"There is no database file {missing}. Run `linq-etl sync` first, or "
            "`linq-etl db upgrade` for an empty database."
        )
    engine = open_engine(config.database.url, config.database.schema)
    try:
        if existing and not empty:
            schema.ensure_current(engine, upgrade_allowed=False)
        yield engine
    finally:
        engine.dispose()


def make_ready(
    config: Config, engine: "Engine", *, upgrade_allowed: bool
) -> Callable[[], datetime]:
    """Ensure that the schema is current, and return the database's clock.

    Waits for a busy database as a run does. A signal ends it, as in `run_interruptible`.
    """
    from etl.db import schema
    from etl.db.engine import clock_of
    from etl.db.transactions import Transactions

    transactions = Transactions(engine, patience=config.database.patience)

    async def ready() -> Callable[[], datetime]:
        if await transactions.read(lambda c: schema.upgrade_needed(c, allowed=upgrade_allowed)):
            await transactions.write(schema.upgrade_within)
        return await transactions.read(clock_of)

    return run_interruptible(ready())


@contextmanager
def open_run_log(config: Config) -> Iterator["Connection"]:
    """A connection that reads the run log, as far as an older or newer schema has it.

    So monitoring works while a new version is rolled out.
    """
    from etl.db import schema
    from etl.db.engine import reading
    from etl.db.tables import REVISION

    with open_database(config, existing=True, empty=True) as engine:
        revision = schema.current(engine)
        if revision is None:
            schema.ensure_current(engine, upgrade_allowed=False)
        try:
            with reading(engine) as connection:
                yield connection
        except DatabaseUnavailableError:
            raise
        except DatabaseError as error:
            if revision == REVISION:
                raise
            raise SchemaError(
                f"The run log of revision {revision} cannot be read by this version of linq-etl, "
                f"which needs {REVISION}. Upgrade the older of the two."
            ) from error


def run_interruptible(job: Coroutine[Any, Any, T]) -> T:
    """Run a job; the first SIGINT, SIGTERM or SIGHUP cancels it, a second one kills the process.

    Raises RunInterruptedError once the cancelled job has cleaned up.
    """
    _return_large_blocks()
    handlers = {each: signal.getsignal(each) for each in _ENDS_AS}
    watched = [each for each in _ENDS_AS if not _is_ignored_hangup(each)]
    received: list[int] = []

    async def interruptible() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task  # noqa: S101  # a running coroutine has a task

        # Not called by the loop: a second signal must end the process even if the loop hangs.
        def interrupt(number: int, _: object) -> None:
            received.append(number)
            for each in watched:
                signal.signal(each, signal.SIG_DFL)
            with suppress(RuntimeError):  # The loop has just ended.
                loop.call_soon_threadsafe(task.cancel)

        for each in watched:
            loop.add_signal_handler(each, lambda: None)  # It wakes a loop that waits.
            signal.signal(each, interrupt)
        loop.set_default_executor(_Executor())
        return await job

    try:
        return asyncio.run(interruptible())
    except asyncio.CancelledError:
        raise RunInterruptedError(_ENDS_AS[signal.Signals(received[0])]) from None
    finally:
        if not received:
            for each, handler in handlers.items():
                signal.signal(each, handler)


def _return_large_blocks() -> None:
    """Have glibc return each freed block of 1 MiB or more to the system.

    Else it stops doing so after the first ones, and large texts leave holes all over its heaps.
    """
    from ctypes import CDLL

    with suppress(AttributeError, OSError):  # Another C library has no mallopt.
        mallopt = CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 2**20)
        mallopt(_M_TRIM_THRESHOLD, 2**22)


class _Executor(ThreadPoolExecutor):
    """Its end does not wait for a thread that is stuck, such as one that looks up a host's name."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        super().shutdown(wait=False, cancel_futures=cancel_futures)


# The signals that end a job, and the one whose exit code it then has.
_ENDS_AS = {
    signal.SIGINT: signal.SIGINT,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGHUP: signal.SIGTERM,
}


def _is_ignored_hangup(number: signal.Signals) -> bool:
    """Whether the process was started by nohup, or the like."""
    return number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN

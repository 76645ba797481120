"""What reports a run to the outside, around the command that runs it."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from etl.cli.context import GlobalOptions, open_run_log
from etl.config import load_config, load_monitoring
from etl.errors import ConfigError, EtlError

if TYPE_CHECKING:
    from etl.monitoring.bounded import Bounded

SECONDS = 5.0  # by which reports delay the end of the process, at most
_RECORD = f"{__name__}.record"


def note_record(record: dict[str, Any]) -> None:
    """Keep the record of the run that the current command has closed."""
    click.get_current_context().meta[_RECORD] = record


def monitored(context: click.Context, command: Callable[[], int]) -> int:
    """Run a command and return its exit code; report it, also if it raises.

    What is reported, and where to, is read before the command reads its configuration, which may
    be what it fails on.
    """
    options: GlobalOptions = context.obj
    monitoring = load_monitoring(options.config_path)
    # A backfill is started by a person; its success would hide that no sync runs any more.
    pinger = None
    if monitoring.ping_url and context.info_name == "sync":
        from etl.monitoring.ping import Pinger

        pinger = Pinger(monitoring.ping_url)

    def report(code: int, error: BaseException | None = None) -> None:
        until = time.monotonic() + SECONDS
        writing = _write_metrics(options, monitoring.metrics_file)
        if pinger:
            pinger.end(code, _sentence(context, error))
        if writing:
            writing.wait(max(until - time.monotonic(), 0.1))

    try:
        code = command()
    except BaseException as error:
        report(_exit_code(error), error)
        raise
    report(code)
    return code


def _write_metrics(options: GlobalOptions, metrics_file: str | None) -> "Bounded | None":
    """Begin to write the metrics file."""
    if metrics_file is None:
        return None
    try:
        config = load_config(options.config_path, needs_token=False, needs_numbers=False)
    except ConfigError:
        return None  # The command has said so.
    from etl.monitoring.bounded import Bounded

    def write() -> None:
        from etl.monitoring.metrics import read_metrics, write_metrics

        sync = config.sync
        numbers = () if sync.all_phone_numbers else sync.phone_numbers
        with open_run_log(config) as connection:
            metrics = read_metrics(connection, numbers)
        write_metrics(Path(metrics_file), metrics)

    return Bounded("metrics_not_written", write)


def _exit_code(error: BaseException) -> int:
    match error:
        case EtlError():
            return error.exit_code
        case click.ClickException():
            return ConfigError.exit_code
        case click.Abort() | KeyboardInterrupt():
            return 128 + signal.SIGINT
        case _:
            return EtlError.exit_code


def _sentence(context: click.Context, error: BaseException | None) -> str:
    """The run in a sentence; without a record, what its kind of error asks the operator to do.

    Not the error's own text: it may name hosts and phone numbers, and it leaves the company.
    """
    if error is None and (record := context.meta.get(_RECORD)):
        from etl.sync.summary import summary

        return summary(record)
    known = error if isinstance(error, EtlError) else EtlError()
    advice = " ".join((type(known).__doc__ or "").partition("\n\n")[0].split())
    code = _exit_code(error) if error else 0
    return f"{context.info_name} ended with exit code {code} ({known.kind}). {advice}"

"""What reports a run to the outside, around the command that runs it."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from etl.cli.context import GlobalOptions, open_run_log
from etl.config import Api, load_config, load_monitoring
from etl.errors import ConfigError, EtlError, advice

if TYPE_CHECKING:
    from etl.api.transport import Transport
    from etl.monitoring.bounded import Bounded
    from etl.monitoring.otel import Telemetry
    from etl.monitoring.ping import Pinger as _Pinger
    from etl.sync.progress import Progress

SECONDS = 5.0  # by which reports delay the end of the process, at most
_RECORD = f"{__name__}.record"
_TELEMETRY = f"{__name__}.telemetry"


def note_record(record: dict[str, Any]) -> None:
    """Keep the record of the run that the current command has closed."""
    click.get_current_context().meta[_RECORD] = record


def measured_transport(config: Api) -> "Transport | None":
    """A transport that measures requests, if the current command has telemetry."""
    telemetry: Telemetry | None = click.get_current_context().meta.get(_TELEMETRY)
    return telemetry.transport(config) if telemetry else None


def measured_progress(progress: "Progress") -> "Progress":
    """The progress, measured if the current command has telemetry."""
    telemetry: Telemetry | None = click.get_current_context().meta.get(_TELEMETRY)
    return telemetry.progress(progress) if telemetry else progress


def monitored(context: click.Context, command: Callable[[], int]) -> int:
    """Run a command and return its exit code; report it, also if it raises.

    A dry run is not reported: nobody waits for it, and nothing was synced.
    """
    if context.params.get("dry_run"):
        return command()
    reports = _Reports(context)
    try:
        code = command()
    except BaseException as error:
        reports.end(_exit_code(error), error)
        raise
    reports.end(code)
    return code


class _Reports:
    """What is reported of one command, from its start to `end`.

    Where to is read before the command reads its configuration, which may be what it fails on.
    """

    def __init__(self, context: click.Context) -> None:
        self._context = context
        self._options: GlobalOptions = context.obj
        self._monitoring = load_monitoring(self._options.config_path)
        self._command = context.info_name or ""
        self._pinger: _Pinger | None = None
        # A backfill is started by a person; its success would hide that no sync runs any more.
        if self._monitoring.ping_url and self._command == "sync":
            from etl.monitoring.ping import Pinger

            self._pinger = Pinger(self._monitoring.ping_url)
        from etl.monitoring.telemetry import start_telemetry

        self._telemetry = context.meta[_TELEMETRY] = start_telemetry(self._command)

    def end(self, code: int, error: BaseException | None = None) -> None:
        """Report everywhere at the same time, for as long as that may take."""
        until = time.monotonic() + SECONDS
        record = None if error else self._context.meta.get(_RECORD)
        pending = _write_metrics(self._options, self._monitoring.metrics_file)
        if self._telemetry:
            kind = _known(error).kind if error else None
            pending += self._telemetry.end(code, kind, record)
        if self._pinger:
            self._pinger.end(code, _sentence(self._command, code, error, record))
        for each in pending:
            each.wait(max(until - time.monotonic(), 0.1))


def _write_metrics(options: GlobalOptions, metrics_file: str | None) -> "list[Bounded]":
    """Begin to write the metrics file, if there is one."""
    if metrics_file is None:
        return []
    try:
        config = load_config(options.config_path, needs_token=False, needs_numbers=False)
    except ConfigError:
        return []  # The command has said so.
    from etl.monitoring.bounded import Bounded

    def write() -> None:
        from etl.monitoring.metrics import read_metrics, write_metrics

        sync = config.sync
        numbers = () if sync.all_phone_numbers else sync.phone_numbers
        with open_run_log(config) as connection:
            metrics = read_metrics(connection, numbers)
        write_metrics(Path(metrics_file), metrics)

    return [Bounded("metrics_not_written", write)]


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


def _known(error: BaseException | None) -> EtlError:
    return error if isinstance(error, EtlError) else EtlError()


def _sentence(
    command: str, code: int, error: BaseException | None, record: dict[str, Any] | None
) -> str:
    """The run in a sentence; without a record, what its kind of error asks the operator to do.

    Not the error's own text: it may name hosts and phone numbers, and it leaves the company.
    """
    if record:
        from etl.sync.summary import summary

        return summary(record)
    known = _known(error)
    return f"{command} ended with exit code {code} ({known.kind}). {advice(type(known))}"

"""What reports a run to the outside, around the command that runs it."""

import signal
from collections.abc import Callable

import click

from etl.cli.context import GlobalOptions
from etl.config import Monitoring, load_monitoring
from etl.errors import ConfigError, EtlError

_RECORD = f"{__name__}.record"


def note_record(record: dict[str, object]) -> None:
    """Keep the record of the run that the current command has closed."""
    click.get_current_context().meta[_RECORD] = record


def monitored(context: click.Context, command: Callable[[], int]) -> int:
    """Run a command and return its exit code; report it, also if it raises.

    What is reported, and where to, is read before the command reads its configuration, which may
    be what it fails on.
    """
    options: GlobalOptions = context.obj
    monitoring = load_monitoring(options.config_path)
    report = _start_pings(context, monitoring)
    try:
        code = command()
    except BaseException as error:
        report(_exit_code(error), _sentence(context, error))
        raise
    report(code, _sentence(context))
    return code


def _start_pings(context: click.Context, monitoring: Monitoring) -> Callable[[int, str], None]:
    """Ping the start; the result pings the end.

    A backfill is started by a person, and its success would hide that no sync runs any more.
    """
    if not monitoring.ping_url or context.info_name != "sync":
        return lambda *_: None
    from etl.monitoring.ping import Pinger

    return Pinger(monitoring.ping_url).end


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


def _sentence(context: click.Context, error: BaseException | None = None) -> str:
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

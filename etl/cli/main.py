"""The command group, its global options, and the exit code of every error."""

import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from etl import __version__, log
from etl.cli.context import GlobalOptions
from etl.cli.explain import dictionary, report
from etl.cli.forget import forget
from etl.cli.inspect import check, phone_numbers, runs, status
from etl.cli.jobs import backfill, sync, verify
from etl.cli.logs import configure_log
from etl.cli.output import print_error, report_lost_output
from etl.cli.play import demo, sandbox
from etl.cli.schema import db
from etl.cli.streams import protect_streams
from etl.cli.upkeep import prune
from etl.errors import ConfigError, EtlError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML file; default $LINQ_ETL_CONFIG, else ./config.toml if it exists.",
)
@click.option("--log-json", is_flag=True, help="Log lines on stderr as JSON.")
@click.version_option(__version__, prog_name="linq-etl")
@click.pass_context
def cli(context: click.Context, config_path: Path | None, log_json: bool) -> None:
    """Keep the chats of your Linq phone numbers in a SQL database.

    \b
    linq-etl demo      see it work, without a token
    linq-etl check     check your configuration
    linq-etl sync      the main job, for cron
    """
    context.obj = GlobalOptions(config_path, log_json)
    configure_log(as_json=log_json)


for command in (
    *(sync, backfill, verify),
    *(runs, status, check, phone_numbers),
    *(report, dictionary),
    *(db, prune, forget, sandbox, demo),
):
    cli.add_command(command)


def main() -> None:
    """Run the process's command line and exit."""
    protect_streams()
    _print_no_tracebacks()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, _interrupt)
    code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # Python would wait for threads that are stuck, such as one that looks up a host's name.
    os._exit(code)


def _interrupt(*_: object) -> NoReturn:
    """A second Ctrl-C ends the process at once, also while the first one is answered."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


def _print_no_tracebacks() -> None:
    """Of errors outside the command's own course, log those of threads and drop the others."""
    threading.excepthook = lambda hook: log.crash(hook.exc_value or RuntimeError())
    sys.unraisablehook = lambda _: None  # An object that failed while it was deleted.
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def run(arguments: Sequence[str]) -> int:
    """Run a command line, print its error if any, and return the documented exit code."""
    try:
        code = cli.main([*arguments], prog_name="linq-etl", standalone_mode=False)
        if report_lost_output():
            code = EtlError.exit_code
    except EtlError as error:
        print_error(str(error))
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = ConfigError.exit_code
    except (click.Abort, KeyboardInterrupt):
        print_error("interrupted")
        code = 128 + signal.SIGINT
    except OSError as error:
        log.crash(error)
        print_error(f"The operating system reports an error: {error.strerror}. See the log above.")
        code = EtlError.exit_code
    except Exception as error:  # noqa: BLE001  # the last place where a crash can be explained
        log.crash(error)
        print_error(
            f"Unexpected error ({log.name_of(error)}). Please report it with the log above."
        )
        code = EtlError.exit_code
    return int(code or 0)

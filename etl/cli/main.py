"""The command group, its global options, and the exit code of every error."""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from etl import __version__, log
from etl.cli.context import GlobalOptions
from etl.cli.inspect import check, phone_numbers, runs, status
from etl.cli.jobs import backfill, sync, verify
from etl.cli.logs import configure_log
from etl.cli.output import print_error, report_lost_output
from etl.cli.play import demo, sandbox
from etl.cli.schema import db
from etl.cli.streams import protect_streams
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
    *(db, sandbox, demo),
):
    cli.add_command(command)


def main() -> None:
    """Run the process's command line and exit."""
    protect_streams()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # Under nohup it is ignored.
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    code = run(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # No traceback while Python shuts down.
    sys.exit(code)


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
        print_error(f"The operating system refused something: {error.strerror}. See the log above.")
        code = EtlError.exit_code
    except Exception as error:  # noqa: BLE001  # the last place where a crash can be explained
        log.crash(error)
        print_error(
            f"Unexpected error ({log.name_of(error)}). Please report it with the log above."
        )
        code = EtlError.exit_code
    return int(code or 0)

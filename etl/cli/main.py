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
from etl.cli.output import discard_stdout, print_error
from etl.cli.play import demo, sandbox
from etl.cli.schema import db
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
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run a command line, print its error if any, and return the documented exit code."""
    try:
        code = cli.main([*arguments], prog_name="linq-etl", standalone_mode=False)
        if sys.stdout:  # None if the shell has closed it
            sys.stdout.flush()
    except EtlError as error:
        print_error(str(error))
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = ConfigError.exit_code
    except (click.Abort, KeyboardInterrupt):
        print_error("interrupted")
        code = 128 + signal.SIGINT
    except (BrokenPipeError, SystemExit):  # click turns the one into the other
        discard_stdout()
        code = 0
    except OSError as error:
        discard_stdout()
        print_error(f"cannot write the output: {error.strerror}")
        code = EtlError.exit_code
    except Exception as error:  # noqa: BLE001  # the last place where a crash can be explained
        log.crash(error)
        print_error(
            f"unexpected error ({type(error).__name__}); please report it with the log above"
        )
        code = EtlError.exit_code
    return int(code or 0)

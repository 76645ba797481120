"""The commands: they read options, call what does the work, and end with an exit code."""

import os
import signal
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
from msgspec import structs

from etl import __version__, log
from etl.cli.context import (
    RUN_COLUMNS,
    STATUS_COLUMNS,
    Duration,
    chosen_numbers,
    load_config,
    open_database,
    print_error,
    print_json,
    print_run,
    print_table,
    run_interruptible,
    run_job,
    with_age,
)
from etl.errors import ConfigError, EtlError, SchemaError

# What talks to databases, the network or a terminal is imported by the command that needs it, so
# that help and a mistake in the configuration answer at once.

BACKFILL_RPS = 5.0  # requests a second, where nothing else is said


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
phone_number_option = click.option(
    "--phone-number", "chosen", multiple=True, metavar="N", help="Only this number; repeatable."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML file; default $LINQ_ETL_CONFIG, else ./config.toml if there is one.",
)
@click.option("--log-json", is_flag=True, help="Log lines on stderr as JSON.")
@click.version_option(__version__, prog_name="linq-etl")
@click.pass_context
def cli(context: click.Context, config_path: Path | None, log_json: bool) -> None:
    """Keep the chats of your Linq phone numbers in a SQL database.

    \b
    linq-etl demo      see it work, without a token
    linq-etl check     see whether yours is set up
    linq-etl sync      the main job, for cron
    """
    context.obj = {"path": config_path, "log_json": log_json}
    log.configure(as_json=log_json, quiet=False)


def main() -> None:
    """Run the command line; the process ends with a documented exit code."""
    try:
        code = cli.main(standalone_mode=False, prog_name="linq-etl")
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
    except BrokenPipeError:
        code = 0  # Whoever read our output has seen enough.
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  # else its end complains
    except OSError as error:
        print_error(f"the output cannot be written: {error.strerror}")
        code = EtlError.exit_code
    except Exception as error:  # noqa: BLE001  # the last place where a crash can be explained
        log.crash(error)
        print_error(
            f"unexpected error ({type(error).__name__}); please report it with the log above"
        )
        code = EtlError.exit_code
    sys.exit(code or 0)


# The job


@cli.command()
@phone_number_option
@click.option("--prove", is_flag=True, help="Walk each list twice, to prove it complete now.")
@click.option("--require-complete", is_flag=True, help="Exit with 3 if a list stays unproved.")
@click.option("--allow-removals", is_flag=True, help="Believe removals that look suspicious.")
@json_option
@click.pass_obj
def sync(
    options: dict[str, Any],
    chosen: tuple[str, ...],
    prove: bool,
    require_complete: bool,
    allow_removals: bool,
    as_json: bool,
) -> int:
    """Sync every configured number into the database.

    Exit code 0: all done. 3: some numbers failed, or something was withheld or rejected. 4: the
    API refused the token. 5: the API stayed unavailable. 6: the database. 7: another run is at it.

    \b
    Examples:
      linq-etl sync
      linq-etl sync --phone-number +13343284472 --json
      linq-etl sync --prove --require-complete
    """
    config = load_config(options)
    from etl.sync.number import RunOptions

    plan = RunOptions(
        chosen_numbers(config, chosen),
        all_reached=config.sync.all_phone_numbers and not chosen,
        prove=prove,
        require_complete=require_complete,
        allow_removals=allow_removals,
    )
    return run_job(options, config, plan, as_json)


@cli.command()
@click.option(
    "--phone-number", "chosen", multiple=True, required=True, metavar="N", help="Repeatable."
)
@click.option("--first-page", type=click.IntRange(1), help="Begin here, and not at page 1.")
@click.option("--last-page", type=click.IntRange(1), help="Read no further than this page.")
@click.option(
    "--max-rps",
    type=click.FloatRange(0, min_open=True),
    help=f"Requests a second; default api.max_requests_per_second, else {BACKFILL_RPS:g}.",
)
@json_option
@click.pass_obj
def backfill(
    options: dict[str, Any],
    chosen: tuple[str, ...],
    first_page: int | None,
    last_page: int | None,
    max_rps: float | None,
    as_json: bool,
) -> int:
    """Load or reload a number's list at a polite pace; nothing is removed.

    After an interruption it goes on where it was. Pages that are not read tell nothing, so the
    next sync says whether the list is complete.

    \b
    Examples:
      linq-etl backfill --phone-number +13343284472
      linq-etl backfill --phone-number +13343284472 --first-page 200 --last-page 300 --max-rps 2
    """
    config = load_config(options)
    from etl.sync.number import RunOptions

    pace = max_rps or config.api.max_requests_per_second or BACKFILL_RPS
    api = structs.replace(config.api, max_requests_per_second=pace)
    if first_page and last_page and first_page > last_page:
        raise ConfigError(f"--last-page: page {last_page} comes before page {first_page}")
    numbers = chosen_numbers(config, chosen)
    plan = RunOptions(numbers, command="backfill", first_page=first_page, last_page=last_page)
    return run_job(options, replace(config, api=api), plan, as_json)


@cli.command()
@click.option(
    "--sample",
    type=click.IntRange(1, 100_000),
    default=300,
    show_default=True,
    help="How many chats.",
)
@json_option
@click.pass_obj
def verify(options: dict[str, Any], sample: int, as_json: bool) -> int:
    """Read a random sample of stored chats again and compare; exit code 3 if one is wrong.

    A stale row differs because something happened since it was read; a wrong one for no such
    reason. A rename since the last sync looks wrong too: sync, then verify again.

    \b
    Examples:
      linq-etl verify
      linq-etl verify --sample 3000 --json
    """
    config = load_config(options, needs_numbers=False)
    from etl.sync.verify import verify as run_verify

    with open_database(config, existing=True) as engine:
        result = run_interruptible(run_verify(config, engine, sample))
    if as_json:
        print_json(result.as_record())
    else:
        click.echo(str(result))
    return 3 if result.wrong else 0


# The run log


@cli.command("runs")
@click.argument("run_id", type=click.IntRange(1, 2**63 - 1), required=False)
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many runs."
)
@json_option
@click.pass_obj
def show_runs(options: dict[str, Any], run_id: int | None, limit: int, as_json: bool) -> None:
    """Show the run log, newest first, or one run in full.

    \b
    Examples:
      linq-etl runs
      linq-etl runs 42 --json
    """
    from etl.db import run_log as runs
    from etl.db.engine import reading

    with (
        open_database(load_config(options, offline=True), existing=True) as engine,
        reading(engine) as c,
    ):
        record = runs.get_run(c, run_id) if run_id is not None else None
        recent = runs.list_runs(c, limit) if run_id is None else []
    if run_id is not None and record is None:
        raise ConfigError(f"there is no run {run_id}; `linq-etl runs` lists them")
    if as_json:
        print_json(record or recent)
    elif record:
        print_run(record)
    else:
        print_table(recent, RUN_COLUMNS)


@cli.command()
@click.option("--max-age", type=Duration(), help="Exit with 3 if a number is older, e.g. 2h.")
@json_option
@click.pass_obj
def status(options: dict[str, Any], max_age: timedelta | None, as_json: bool) -> int:
    """Show each number's last good sync, its age, and how complete its list was.

    \b
    Examples:
      linq-etl status
      linq-etl status --max-age 2h || page-somebody
    """
    from etl.db import run_log as runs
    from etl.db.engine import reading

    config = load_config(options, offline=True)
    with open_database(config, existing=True) as engine, reading(engine) as connection:
        known = {row["phone_number"]: row for row in runs.last_good_syncs(connection)}
    now = datetime.now(UTC)
    configured = [number.e164 for number in config.sync.phone_numbers]
    wanted = known if config.sync.all_phone_numbers or not configured else configured
    rows = [with_age(known.get(number), number, now) for number in wanted]
    if as_json:
        print_json(rows)
    else:
        print_table(rows, STATUS_COLUMNS)
    stale = [r for r in rows if max_age and not (r["age"] is not None and r["age"] <= max_age)]
    return 3 if stale else 0


# Looking around


@cli.command()
@json_option
@click.pass_obj
def check(options: dict[str, Any], as_json: bool) -> int:
    """Check configuration, token, numbers, database and schema: a line each, with the fix.

    \b
    Example:
      linq-etl check
    """
    from etl.cli.check import run_checks

    findings = run_interruptible(run_checks(options["path"]))
    if as_json:
        print_json([finding.as_record() for finding in findings])
    for finding in findings if not as_json else ():
        click.echo(str(finding))
    return next((finding.exit_code for finding in findings if finding.exit_code), 0)


@cli.command("phone-numbers")
@json_option
@click.pass_obj
def phone_numbers(options: dict[str, Any], as_json: bool) -> None:
    """List the numbers that the token reaches, and which of them are configured.

    \b
    Example:
      linq-etl phone-numbers
    """
    config = load_config(options, needs_numbers=False)
    from etl.cli.check import reachable_numbers

    rows = run_interruptible(reachable_numbers(config))
    if as_json:
        print_json(rows)
    else:
        print_table(rows, ("phone_number", "configured", "label"))


# The schema


@cli.group()
def db() -> None:
    """Manage the database's schema."""


@db.command()
@click.pass_obj
def upgrade(options: dict[str, Any]) -> None:
    """Create the tables, or bring them to the newest revision.

    \b
    Example:
      linq-etl db upgrade
    """
    from etl.db import schema

    with open_database(load_config(options, offline=True)) as engine:
        click.echo(f"the schema is at revision {schema.upgrade(engine)}")


@db.command()
@click.pass_obj
def current(options: dict[str, Any]) -> None:
    """Show the schema's revision, and the one that this program needs.

    \b
    Example:
      linq-etl db current
    """
    from etl.db import schema
    from etl.db.tables import REVISION

    with open_database(load_config(options, offline=True), existing=True, empty=True) as engine:
        click.echo(f"{schema.current(engine) or 'empty'} (this program needs {REVISION})")


@db.command("check")
@click.pass_obj
def check_schema(options: dict[str, Any]) -> None:
    """Compare the database with the tables that this program expects; exit code 6 if they differ.

    \b
    Example:
      linq-etl db check
    """
    from etl.db import schema

    with open_database(load_config(options, offline=True), existing=True, empty=True) as engine:
        differences = schema.differences(engine)
    if differences:
        raise SchemaError(f"the schema is not as expected: {differences}")
    click.echo("the schema is as expected")


@db.command()
@click.argument("revision")
@click.confirmation_option(
    prompt="Tables and columns that are newer are deleted with their data. Go on?"
)
@click.pass_obj
def downgrade(options: dict[str, Any], revision: str) -> None:
    """Go back to an older REVISION; `base` deletes every table with its data.

    \b
    Example:
      linq-etl db downgrade 0002 --yes
    """
    from etl.db import schema

    with open_database(load_config(options, offline=True), existing=True, empty=True) as engine:
        schema.downgrade(engine, revision)
        click.echo(f"the schema is at revision {schema.current(engine) or 'base'}")


# Without a token


@cli.command()
@click.option("--port", default=8765, show_default=True, help="On 127.0.0.1; 0 takes a free one.")
@click.option("--chats", default=500, show_default=True, help="Chats per number.")
@click.option("--seed", default=1, show_default=True, help="Other data, as invented as these.")
@click.option(
    "--order",
    type=click.Choice(["id", "id-desc", "recency", "shuffled"]),
    default="recency",
    show_default=True,
    help="The list's order.",
)
@click.option("--latency", default=0.0, help="Seconds before each answer.")
@click.option("--rate-limit", type=float, help="Requests a second before it answers 429.")
@click.option(
    "--retry-after",
    type=click.Choice(["none", "seconds", "date"]),
    default="none",
    show_default=True,
    help="What a 429 says of it.",
)
@click.option("--server-error", default=0.0, help="Share of answers that are 5xx, 0 to 1.")
@click.option("--html", default=0.0, help="Share that are an HTML page.")
@click.option("--drop", default=0.0, help="Share of connections that are dropped.")
@click.option("--cut", default=0.0, help="Share of answers that are cut short.")
@click.option("--jumps", default=0.0, help="Chats that jump to the head after each page.")
@click.option("--creates", default=0.0, help="Chats created after each page.")
@click.option("--deletes", default=0.0, help="Chats deleted after each page.")
@click.option("--renames", default=0.0, help="Chats renamed after each page.")
@click.option("--joins", default=0.0, help="Participants joining after each page.")
@click.option("--leaves", default=0.0, help="Participants leaving after each page.")
def sandbox(port: int, chats: int, seed: int, order: Any, **rates: Any) -> None:
    """Serve a stand-in for the Linq API on loopback, with invented data, until Ctrl-C.

    It can be as bad as the real one: slow, throttling, broken, with a list that moves.

    \b
    Examples:
      linq-etl sandbox
      linq-etl sandbox --jumps 3 --creates 1 --deletes 1 --drop 0.05
    """
    from etl.sandbox import Faults, Motion, Sandbox, build_world

    motion = {name: rates.pop(name) for name in Motion.__dataclass_fields__}
    world = build_world(seed=seed, chats_per_number=chats, order=order)
    server = Sandbox(world, port=port, faults=Faults(**rates), motion=Motion(**motion))
    click.echo(f"The sandbox answers at {server.url}; Ctrl-C ends it. In another shell:\n")
    click.echo(f"  export LINQ_ETL_API__BASE_URL={server.url}")
    click.echo("  export LINQ_INTEGRATION_TOKEN=sandbox-token")
    click.echo(f"  export LINQ_ETL_SYNC__PHONE_NUMBERS={','.join(world.numbers)}")
    click.echo("  linq-etl sync")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        click.echo("")


@cli.command()
@click.pass_obj
def demo(options: dict[str, Any]) -> None:
    """See the main job work without a token: a sandbox, two syncs, a look at the result.

    Leaves linq-demo.db in this folder and replaces it if it is there.

    \b
    Example:
      linq-etl demo
    """
    from etl.cli.demo import run_demo

    log.configure(as_json=options["log_json"], quiet=True)
    run_interruptible(run_demo(Path("linq-demo.db")))

"""The commands that look: runs, status, check and phone-numbers."""

from datetime import UTC, datetime, timedelta

import click

from etl.cli.context import GlobalOptions, open_run_log, run_interruptible
from etl.cli.output import Row, json_option, print_json, print_run, print_table, print_text
from etl.cli.parameters import Duration, WholeNumber
from etl.errors import ConfigError

_RUN_COLUMNS = (
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
_STATUS_COLUMNS = ("phone_number", "label", "last_good_sync", "age", "completeness", "total_count")


@click.command()
@click.argument("run_id", type=WholeNumber(1, 2**63 - 1), required=False)
@click.option(
    "--limit", type=WholeNumber(1, 10_000), default=20, show_default=True, help="How many runs."
)
@json_option
@click.pass_obj
def runs(options: GlobalOptions, run_id: int | None, limit: int, as_json: bool) -> None:
    """Show the run log, newest first, or one run in full.

    \b
    Examples:
      linq-etl runs
      linq-etl runs 42 --json
    """
    from etl.db import run_log

    with open_run_log(options.load_config(offline=True)) as connection:
        record = run_log.get_run(connection, run_id) if run_id is not None else None
        records = run_log.list_runs(connection, limit) if run_id is None else []
    if run_id is not None and record is None:
        raise ConfigError(f"There is no run {run_id}. `linq-etl runs` lists them.")
    if as_json:
        print_json(record or records)
    elif record:
        print_run(record)
    else:
        print_table(records, _RUN_COLUMNS)


@click.command()
@click.option(
    "--max-age", type=Duration(), help="Exit with 3 if a last good sync is older, e.g. 2h."
)
@json_option
@click.pass_obj
def status(options: GlobalOptions, max_age: timedelta | None, as_json: bool) -> int:
    """Show each number's last good sync, age and completeness.

    \b
    Examples:
      linq-etl status
      linq-etl status --max-age 2h || page-somebody
    """
    from etl.db import run_log

    config = options.load_config(offline=True)
    with open_run_log(config) as connection:
        known = {row["phone_number"]: row for row in run_log.last_good_syncs(connection)}
    now = datetime.now(UTC)
    configured = [number.e164 for number in config.sync.phone_numbers]
    wanted = known if config.sync.all_phone_numbers or not configured else configured
    rows = [with_age(known.get(number), number, now) for number in wanted]
    if as_json:
        print_json(rows)
    else:
        print_table(rows, _STATUS_COLUMNS)
    stale = [r for r in rows if max_age and not (r["age"] is not None and r["age"] <= max_age)]
    return 3 if stale else 0


def with_age(row: Row | None, phone_number: str, now: datetime) -> Row:
    """A number's row of `status` with its age; all nulls if the number was never synced."""
    row = row or dict.fromkeys(_STATUS_COLUMNS) | {"phone_number": phone_number, "reason": None}
    last = row["last_good_sync"]
    return {**row, "age": timedelta(seconds=int((now - last).total_seconds())) if last else None}


@click.command()
@json_option
@click.pass_obj
def check(options: GlobalOptions, as_json: bool) -> int:
    """Check config, token, numbers, database and schema.

    One line each, with the fix if it fails. The exit code is that of the first failure.

    \b
    Example:
      linq-etl check
    """
    from etl.cli.check import run_checks

    findings = run_interruptible(run_checks(options.config_path))
    if as_json:
        print_json([finding.as_record() for finding in findings])
    else:
        print_text("\n".join(map(str, findings)))
    return next((finding.exit_code for finding in findings if finding.exit_code), 0)


@click.command("phone-numbers")
@json_option
@click.pass_obj
def phone_numbers(options: GlobalOptions, as_json: bool) -> None:
    """List the token's phone numbers and which are configured.

    \b
    Example:
      linq-etl phone-numbers
    """
    config = options.load_config(needs_numbers=False)
    from etl.cli.check import visible_numbers

    rows = run_interruptible(visible_numbers(config))
    if as_json:
        print_json(rows)
    else:
        print_table(rows, ("phone_number", "configured", "label"))

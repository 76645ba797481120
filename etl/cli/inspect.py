"""The commands that look: runs, status, check and phone-numbers."""

from datetime import UTC, datetime, timedelta

import click

from etl.cli.context import GlobalOptions, open_run_log, run_interruptible
from etl.cli.output import (
    json_option,
    print_json,
    print_lines,
    print_table,
    print_text,
    terminal,
)
from etl.cli.parameters import Duration, WholeNumber
from etl.errors import ConfigError


@click.command()
@click.argument("run_id", type=WholeNumber(1, 2**63 - 1), required=False)
@click.option(
    "--limit", type=WholeNumber(1, 10_000), default=20, show_default=True, help="How many runs."
)
@click.option("--wide", is_flag=True, help="Show all columns of the run log.")
@json_option
@click.pass_obj
def runs(options: GlobalOptions, run_id: int | None, limit: int, wide: bool, as_json: bool) -> None:
    """Show the run log, newest first, or one run in full.

    changed: how many chats changed, +new, -removed, or in a dry run would have. Of one run, numbers
    that had problems are listed by cause and the others counted; --json lists every number.

    \b
    Examples:
      linq-etl runs
      linq-etl runs 42 --json
    """
    from etl.cli.runs import in_full, short, short_columns
    from etl.db import run_records

    with open_run_log(options.load_config(offline=True)) as connection:
        record = run_records.get_run(connection, run_id) if run_id is not None else None
        records = run_records.list_runs(connection, limit) if run_id is None else []
    if run_id is not None and record is None:
        raise ConfigError(f"There is no run {run_id}. `linq-etl runs` lists them.")
    if as_json:
        print_json(record or records)
    elif record:
        console = terminal()
        print_lines(in_full(record, console.width if console else 10_000))
    elif wide:
        print_table(records, list(records[0]) if records else ["id"])
    else:
        print_table([short(each) for each in records], short_columns(records))


@click.command()
@click.option(
    "--max-age", type=Duration(), help="Exit with 3 if a last good sync is older, e.g. 2h."
)
@click.option("--failing", is_flag=True, help="Exit with 3 if a last attempt failed.")
@json_option
@click.pass_obj
def status(options: GlobalOptions, max_age: timedelta | None, failing: bool, as_json: bool) -> int:
    """Show which numbers fail, why, and how fresh each is.

    The worst come first. A terminal gets what fits, a pipe every number. A number is stale if its
    last good sync is older than --max-age, or than a day. Only --max-age and --failing change the
    exit code.

    \b
    Examples:
      linq-etl status
      linq-etl status --max-age 2h --failing || page-somebody
    """
    from etl.cli import status as view
    from etl.db.number_status import number_status

    config = options.load_config(offline=True)
    with open_run_log(config) as connection:
        known = {row["phone_number"]: row for row in number_status(connection)}
    now = datetime.now(UTC)
    labels = {number.e164: number.label for number in config.sync.phone_numbers}
    wanted = known if config.sync.all_phone_numbers or not labels else labels
    rows = [view.with_age(known.get(number), number, now) for number in wanted]
    rows = [{**row, "label": labels.get(row["phone_number"]) or row["label"]} for row in rows]
    if as_json:
        print_json(rows)
    elif console := terminal():
        lines = view.screen(view.sections(rows, max_age), console.width, console.height - 3)
        print_lines(
            [*lines, "", view.summary_line(rows, max_age)], bold=[lines[0]] if lines else []
        )
    else:
        print_table(view.in_full(rows, max_age), view.COLUMNS)
        print_lines(["", view.summary_line(rows, max_age)])
    stale = max_age and any(view.freshness(row, max_age) != "fresh" for row in rows)
    return 3 if stale or (failing and any(map(view.is_failing, rows))) else 0


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
        from etl.cli.tables import Column

        print_table(rows, ("phone_number", "configured", Column("label", cut_to=6)))

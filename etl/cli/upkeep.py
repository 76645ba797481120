"""The commands that keep the database small: prune."""

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from etl.cli.context import GlobalOptions, open_database, run_interruptible
from etl.cli.output import json_option, print_json, print_text
from etl.cli.parameters import Duration

if TYPE_CHECKING:
    from etl.db.retention import Pruned


@click.command()
@click.option(
    "--older-than",
    "age",
    type=Duration(at_least="1d", at_most="36500d"),
    required=True,
    help="How long ago a run began that is deleted, e.g. 90d; at least 1d.",
)
@json_option
@click.pass_obj
def prune(options: GlobalOptions, age: timedelta, as_json: bool) -> None:
    """Delete old runs from the run log, never the data.

    A run is deleted with its numbers and rejected records. Kept, except for its rejected records,
    is a run that is still needed: the last of a number, its last good one, its first failures since
    then, and whatever is newer than a run in progress. It may run at any time, also beside a sync,
    and may be broken off.

    \b
    Examples:
      linq-etl prune --older-than 90d
      linq-etl prune --older-than 400d --json
    """
    config = options.load_config(offline=True)
    from etl.db.retention import prune as prune_run_log
    from etl.db.transactions import Transactions

    with open_database(config, existing=True) as engine:
        transactions = Transactions(engine, patience=config.database.patience)
        pruned = run_interruptible(prune_run_log(transactions, age))
    if as_json:
        print_json(pruned.as_record())
    else:
        print_text(_sentence(pruned))


def _sentence(pruned: "Pruned") -> str:
    from etl.sync.summary import counted

    runs, numbers = counted(pruned.runs, "run"), counted(pruned.numbers, "row")
    rejected, kept = counted(pruned.rejected, "rejected record"), counted(pruned.kept_runs, "run")
    before = pruned.older_than.isoformat(" ", "seconds")
    return (
        f"from before {before}: deleted {runs} with {numbers} of phone numbers and {rejected}; "
        f"kept {kept} still needed"
    )

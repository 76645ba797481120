"""The jobs: sync and backfill, shown while they run, and verify."""

import gc
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click
from msgspec import structs

from etl.cli.context import (
    GlobalOptions,
    chosen_numbers,
    make_ready,
    open_database,
    run_interruptible,
)
from etl.cli.monitor import measured_progress, measured_transport, monitored, note_record
from etl.cli.output import (
    json_option,
    print_error,
    print_json,
    print_text,
    report_lost_output,
)
from etl.cli.parameters import Duration, Number, ShardType, Share, WholeNumber
from etl.config import Config
from etl.errors import ConfigError
from etl.sync.shard import Shard

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from etl.db.tables import Mode
    from etl.sync.context import RunOptions
    from etl.sync.progress import Progress
    from etl.sync.run import RunResult

Command = Callable[..., Any]

BACKFILL_RPS = 5.0  # requests per second, unless --max-rps or the configuration says otherwise
_SINCE = timedelta(hours=1)
_PAGE = WholeNumber(1, 2**31 - 1)  # as far as the database's columns go


class Job(click.Command):
    """A command whose exit code tells of its work, even if its output was not written."""

    def invoke(self, ctx: click.Context) -> int:
        code: int = super().invoke(ctx)
        report_lost_output()
        return code


quiet_option = click.option(
    "--quiet", is_flag=True, help="Print problems only, so that cron mails nothing else."
)


def max_requests_option(consequence: str) -> Callable[[Command], Command]:
    """The option --max-requests, whose help says what comes of it."""
    return click.option(
        "--max-requests",
        type=WholeNumber(1, 10**9),
        metavar="N",
        help=f"Make at most N requests, not sync.max_requests{consequence}.",
    )


class MonitoredJob(Job):
    """A job that is reported to the outside."""

    def invoke(self, ctx: click.Context) -> int:
        return monitored(ctx, lambda: super(MonitoredJob, self).invoke(ctx))


@click.command(cls=MonitoredJob)
@click.option(
    "--phone-number", "chosen", multiple=True, metavar="N", help="Only this number; repeatable."
)
@click.option(
    "--quick",
    is_flag=True,
    help="Read only where changes are likely, once that is known to find them; else in full.",
)
@click.option(
    "--prove",
    is_flag=True,
    help="Read each list twice to verify completeness now (twice the requests).",
)
@click.option("--require-complete", is_flag=True, help="Exit with 3 if a list stays unproved.")
@click.option(
    "--allow-removals",
    is_flag=True,
    help="Apply removals even if unusually many chats disappeared.",
)
@click.option(
    "--shard",
    type=ShardType(),
    metavar="K/N",
    help="Only part K of N, counted from 0; auto/N takes K from $JOB_COMPLETION_INDEX.",
)
@click.option(
    "--join",
    is_flag=True,
    help="Share the numbers with all others that join: claim a few at a time until all are done.",
)
@click.option(
    "--since",
    type=Duration(),
    metavar="SPAN",
    help="With --join, leave out what was finished so long before the start; default 1h.",
)
@click.option(
    "--rate-share",
    type=Share(),
    metavar="A/B",
    help="Use this part of the API's rate; default all of it, or 1/N with --shard.",
)
@max_requests_option("; the next run begins with the rest")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Read and compare everything, tell what would change, and write no data.",
)
@quiet_option
@json_option
@click.pass_obj
def sync(
    options: GlobalOptions,
    /,
    chosen: tuple[str, ...],
    quick: bool,
    shard: Shard | None,
    join: bool,
    since: timedelta | None,
    rate_share: float | None,
    max_requests: int | None,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    **flags: bool,
) -> int:
    """Sync every configured number into the database.

    Exit code 0: all done. 3: some numbers failed, or something was withheld or rejected. 4: the
    API refused the token. 5: the API stayed unavailable. 6: database or schema. 7: another run
    holds the numbers.

    Machines divide the numbers by --shard, or share them by --join, which waits until all are
    finished and never ends with 7.

    \b
    Examples:
      linq-etl sync --quick
      linq-etl sync --prove --require-complete --max-requests 2000
      linq-etl sync --dry-run --phone-number +13343284472 --json
      linq-etl sync --shard 0/4
      linq-etl sync --join --since 30m --rate-share 1/8
    """
    from etl.sync.context import RunOptions

    config = _with_budget(options.load_config(quiet=quiet), max_requests)
    run_options = RunOptions(
        chosen_numbers(config, chosen),
        mode=_mode(quick=quick, dry_run=dry_run, prove=flags["prove"]),
        all_reached=config.sync.all_phone_numbers and not chosen,
        shard=shard,
        since=_shared_since(shard, join=join, since=since, dry_run=dry_run),
        **flags,  # type: ignore[arg-type]  # each is a field of the same name
    )
    share = rate_share or (1 / shard.count if shard else 1.0)
    return _run(options, config, run_options, share=share, quiet=quiet, as_json=as_json)


def _mode(*, quick: bool, dry_run: bool, prove: bool) -> "Mode":
    """How lists are read. Raises ConfigError if the options contradict each other."""
    if quick and (prove or dry_run):
        other = "--prove" if prove else "--dry-run"
        raise ConfigError(f"{other} reads lists in full, --quick does not: use one of the two")
    return "quick" if quick else "dry-run" if dry_run else "full"


def _with_budget(config: Config, max_requests: int | None) -> Config:
    """The configuration, with the command line's budget if there is one."""
    if max_requests is None:
        return config
    return replace(config, sync=structs.replace(config.sync, max_requests=max_requests))


def _shared_since(
    shard: Shard | None, *, join: bool, since: timedelta | None, dry_run: bool
) -> timedelta | None:
    """How long ago a number may have been finished; None if the run shares none.

    Raises ConfigError if the options contradict each other.
    """
    if since is not None and not join:
        raise ConfigError("--since needs --join: only joined runs leave out what is finished")
    if shard and join:
        raise ConfigError("--shard divides the numbers, --join shares them: use one of the two")
    if dry_run and join:
        raise ConfigError("--dry-run cannot --join: joined runs find in the database who is done")
    return _SINCE if join and since is None else since


@click.command(cls=MonitoredJob)
@click.option(
    "--phone-number", "chosen", multiple=True, required=True, metavar="N", help="Repeatable."
)
@click.option("--first-page", type=_PAGE, help="Start at this page, not at page 1.")
@click.option("--last-page", type=_PAGE, help="Stop after this page.")
@click.option(
    "--max-rps",
    type=Number(0.001, 100_000),
    help=f"Requests per second; default api.max_requests_per_second, else {BACKFILL_RPS:g}.",
)
@max_requests_option("; the next run begins with the rest")
@quiet_option
@json_option
@click.pass_obj
def backfill(
    options: GlobalOptions,
    chosen: tuple[str, ...],
    first_page: int | None,
    last_page: int | None,
    max_rps: float | None,
    max_requests: int | None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Load or reload a number's list at a polite pace.

    It removes nothing, and continues where an interrupted backfill stopped. After a page range,
    only the next sync tells whether the list is complete.

    \b
    Examples:
      linq-etl backfill --phone-number +13343284472
      linq-etl backfill --phone-number +13343284472 --first-page 200 --last-page 300 --max-rps 2
    """
    config = _with_budget(options.load_config(quiet=quiet), max_requests)
    from etl.sync.context import RunOptions

    pace = max_rps or config.api.max_requests_per_second or BACKFILL_RPS
    api = structs.replace(config.api, max_requests_per_second=pace)
    if first_page and last_page and first_page > last_page:
        raise ConfigError(f"--last-page: page {last_page} comes before page {first_page}")
    run_options = RunOptions(
        chosen_numbers(config, chosen),
        command="backfill",
        first_page=first_page,
        last_page=last_page,
    )
    return _run(options, replace(config, api=api), run_options, quiet=quiet, as_json=as_json)


@click.command(cls=Job)
@click.option(
    "--sample",
    type=WholeNumber(1, 100_000),
    default=300,
    show_default=True,
    help="How many chats.",
)
@max_requests_option(": a smaller sample")
@quiet_option
@json_option
@click.pass_obj
def verify(
    options: GlobalOptions, sample: int, max_requests: int | None, quiet: bool, as_json: bool
) -> int:
    """Read a random sample of stored chats again and compare.

    stale: changed at Linq since the last read. wrong: differs without a visible change; exit
    code 3. A rename since the last sync counts as wrong too: sync, then verify again.

    \b
    Examples:
      linq-etl verify
      linq-etl verify --sample 3000 --json
    """
    loaded = options.load_config(needs_numbers=False, quiet=quiet)
    config = _with_budget(loaded, max_requests)
    from etl.sync.verify import verify as run_verify

    with open_database(config, existing=True, empty=True) as engine:
        make_ready(config, engine, upgrade_allowed=False)
        result = run_interruptible(run_verify(config, engine, sample))
    if as_json:
        print_json(result.as_record())
    elif result.findings or result.unknown or not quiet:
        print_text(str(result))
    return 3 if result.wrong else 0


def _run(
    options: GlobalOptions,
    config: Config,
    run_options: "RunOptions",
    *,
    share: float = 1.0,
    quiet: bool,
    as_json: bool,
) -> int:
    """Run a sync or backfill on a current schema; return its exit code."""
    from etl.api.client import LinqClient
    from etl.api.pace import Pace
    from etl.sync.run import sync as run_sync

    async def job(engine: "Engine", progress: "Progress") -> "RunResult":
        api = config.api
        pace = Pace(api.max_concurrency, api.max_requests_per_second, share=share)
        transport = measured_transport(api)
        async with LinqClient(api, pace, clock=clock, transport=transport) as client:
            return await run_sync(config, engine, client, options=run_options, progress=progress)

    is_dry_run = run_options.is_dry_run
    with open_database(config, existing=is_dry_run, empty=True) as engine:
        upgrade_allowed = config.database.auto_upgrade and not is_dry_run
        clock = make_ready(config, engine, upgrade_allowed=upgrade_allowed)
        _collect_garbage_rarely()
        with measured_progress(_progress(options, config, quiet=quiet)) as progress:
            result = run_interruptible(job(engine, progress))
        note_record(result.record)
    if as_json:
        print_json(result.record)
    for error in result.errors:
        print_error(error)
    return result.exit_code


def _progress(options: GlobalOptions, config: Config, *, quiet: bool) -> "Progress":
    """Bars on a terminal, else log lines."""
    as_json = options.log_json or config.log.json
    if quiet or as_json or not sys.stderr.isatty():
        from etl.sync.progress import LogProgress

        return LogProgress()
    from etl.cli.progress import TerminalProgress

    return TerminalProgress(config.api.max_requests_per_second)


def _collect_garbage_rarely() -> None:
    """Pages are many small objects without cycles, so collections cost time and free nothing."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)

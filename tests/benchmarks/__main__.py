"""Run the scenarios in turn and print their tables."""

import logging
import os
import platform
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime

import click

from tests.benchmarks import report, server
from tests.benchmarks.measure import ProcessFailedError
from tests.benchmarks.scenarios import PACE_LIMITS, SCENARIOS, Lab, Sample, dlt_is_installed
from tests.support import mysql, postgres

# These take minutes. One run is enough: dlt and the large list are far from their targets, a rate
# limit leaves little to chance, and a virtual day nothing.
ONCE = {"dlt", "million", "pace", "day"}
ON_REQUEST = {"million", "pace", "day"}


@click.command(context_settings={"max_content_width": 100})
@click.option("--runs", default=3, show_default=True, help="How often each is measured.")
@click.option("--only", multiple=True, type=click.Choice([*SCENARIOS]), help="Repeatable.")
@click.option("--chats", default=100_000, show_default=True, help="A multiple of 100.")
@click.option("--numbers", default=1000, show_default=True, help="Numbers with two pages each.")
@click.option("--million", is_flag=True, help="Also ten times as many chats.")
@click.option(
    "--limit",
    "limits",
    multiple=True,
    type=click.Choice([*PACE_LIMITS]),
    default=[*PACE_LIMITS],
    help="A rate limit that pace has, instead of all. Repeatable.",
)
@click.option("--quick", is_flag=True, help="10,000 chats, 100 numbers, one run.")
def main(
    runs: int,
    only: Sequence[str],
    chats: int,
    numbers: int,
    million: bool,
    limits: Sequence[str],
    quick: bool,
) -> None:
    """Measure `linq-etl sync` against the same work without it, rate limits and dlt.

    Without --only, all but million, pace and day are measured. Whatever --chats, --runs and --quick
    say, pace takes 19 minutes, 13 of them for its limit 60s, and day, a virtual day with 10,000
    chats, takes 15.

    PostgreSQL and MariaDB are the servers at $LINQ_ETL_TEST_POSTGRES_URL and
    $LINQ_ETL_TEST_MYSQL_URL, or are started from installed binaries; without either it is left out.
    Leave the machine idle meanwhile.
    """
    if quick:
        runs, chats, numbers = 1, 10_000, 100
    logging.root.addHandler(logging.NullHandler())  # for the runs of a virtual day
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    names = list(only) or [name for name in SCENARIOS if name not in ON_REQUEST]
    if million and "million" not in names:
        names.append("million")
    results: dict[str, list[Sample]] = defaultdict(list)
    failures: list[str] = []
    with ExitStack() as stack:
        lab = Lab(
            stack.enter_context(server.running()),
            _servers(stack),
            chats - chats % 100,
            numbers,
            limits,
        )
        for sample in _samples(lab, names, runs, failures):
            results[sample.name].append(sample)
            print(f"{sample.name}: {sample.seconds:.2f} s", file=sys.stderr, flush=True)
    _show(lab, results)
    if failures:
        raise click.ClickException("\n".join(failures))


def _servers(stack: ExitStack) -> dict[str, str]:
    """The URLs of the servers to measure, by the kind of database."""
    found = {}
    try:
        url = os.environ.get(postgres.URL_VARIABLE)
        found["postgresql"] = stack.enter_context(postgres.server(url))
    except postgres.NoPostgresError as reason:
        print(f"PostgreSQL is skipped: {reason}", file=sys.stderr)
    try:
        url = os.environ.get(mysql.URL_VARIABLE)
        found["mysql"] = stack.enter_context(mysql.server(url))
    except mysql.NoMySqlError as reason:
        print(f"MariaDB is skipped: {reason}", file=sys.stderr)
    return found


def _samples(lab: Lab, names: Sequence[str], runs: int, failures: list[str]) -> Iterator[Sample]:
    """Measure round by round, so that other load on the machine affects all scenarios alike."""
    for round_ in range(runs):
        for name in names:
            if round_ == 0 or name not in ONCE:
                try:
                    yield from SCENARIOS[name](lab)
                except ProcessFailedError as failure:
                    failures.append(f"{name}: {failure}")


def _show(lab: Lab, results: report.Results) -> None:
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {platform.machine()}, "
        f"CPython {platform.python_version()}, {lab.chats:,} chats, {lab.numbers:,} numbers\n"
    )
    for table in report.tables(results):
        print(f"{table}\n")
    if not dlt_is_installed():
        print("dlt is skipped: it is not installed (the bench extra)\n")
    print(*report.verdicts(results), sep="\n")


if __name__ == "__main__":
    main()

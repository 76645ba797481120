"""The commands that explain what the database holds: dictionary and report."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from etl.cli.context import GlobalOptions, open_database
from etl.cli.output import print_json, print_text
from etl.cli.parameters import WholeNumber
from etl.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from etl.cli.report.page import Page
    from etl.config import PhoneNumber

_FORMATS = ("markdown", "json", "dbt", "mermaid", "datasette")


@click.command()
@click.option(
    "--format",
    "form",
    type=click.Choice(_FORMATS),
    default="markdown",
    show_default=True,
    help="For people, programs, a dbt project, a Mermaid diagram, or Datasette.",
)
@click.pass_obj
def dictionary(options: GlobalOptions, form: str) -> None:
    """Print what every table, view and column means.

    It needs no database; in every database, the table data_dictionary has the same. dbt: a
    sources.yml with tests and freshness. datasette: a metadata.json that hides internal tables, for
    the SQLite file that the configuration names.

    \b
    Examples:
      linq-etl dictionary | less
      linq-etl dictionary --format dbt > sources.yml
      linq-etl dictionary --format datasette > metadata.json
    """
    from etl.cli.dictionary import datasette, dbt, described, markdown

    match form:
        case "json":
            print_json([*described.records()])
        case "dbt":
            print_text(dbt.sources())
        case "mermaid":
            print_text("\n".join(markdown.mermaid()))
        case "datasette":
            print_json(datasette.metadata(options.load_config(offline=True).database.url))
        case _:
            print_text("\n".join(["# Tables", *markdown.markdown(level=2)]))


@click.command()
@click.option(
    "--days",
    type=WholeNumber(1, 366),
    default=30,
    show_default=True,
    help="The period, up to today.",
)
@click.option(
    "--output", default="report.html", show_default=True, help="The file, or - for stdout."
)
@click.pass_obj
def report(options: GlobalOptions, days: int, output: str) -> None:
    """Write one page that says whether the data are fine.

    It answers, in this order: can I trust it, since when, what happens on the numbers, what did it
    cost, what went wrong and what to do, what is what. It needs no network and no scripts, and its
    file is readable by its owner only. It shows labels and the last digits of your own numbers, no
    names of chats and no participants. Needs the extra linq-etl[report].

    \b
    Examples:
      linq-etl report
      linq-etl report --days 90 --output linq.html
    """
    config = options.load_config(offline=True)
    from etl.db.engine import reading

    read_page = page_reader()
    numbers = () if config.sync.all_phone_numbers else config.sync.phone_numbers
    with open_database(config, existing=True) as engine, reading(engine) as connection:
        page = read_page(connection, days, numbers)
    if output == "-":
        print_text(page.render())
    else:
        write_page(Path(output), page)
        print_text(f"{output}: {page.verdict.answer} {page.verdict.sentence}")


def page_reader() -> "Callable[[Connection, int, tuple[PhoneNumber, ...]], Page]":
    """What reads a page from the database. Raises ConfigError if the extra is not installed."""
    try:
        from etl.cli.report.page import Page
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"The package {error.name} is not installed. Run: pip install 'linq-etl[report]'"
        ) from None
    from etl.db.report import read_figures

    return lambda connection, days, numbers: Page(read_figures(connection, days), numbers)


def write_page(path: Path, page: "Page") -> None:
    """Write the page for its owner's eyes. Raises ConfigError if the file cannot be written."""
    from etl.monitoring.whole_file import problem_of, write_whole

    if problem := problem_of(path):
        raise ConfigError(f"{path} cannot be written: {problem}.")
    write_whole(path, page.render().encode(), 0o600)

"""The commands that explain what the database holds: dictionary."""

import click

from etl.cli.context import GlobalOptions
from etl.cli.output import print_json, print_text

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

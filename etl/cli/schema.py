"""The db commands: upgrade, current, check and downgrade."""

import sys

import click

from etl.cli.context import GlobalOptions, open_database
from etl.cli.output import print_text
from etl.errors import ConfigError, SchemaError


@click.group()
def db() -> None:
    """Manage the database's schema."""


@db.command()
@click.pass_obj
def upgrade(options: GlobalOptions) -> None:
    """Create the tables, or upgrade them to the newest revision.

    \b
    Example:
      linq-etl db upgrade
    """
    from etl.db import schema

    with open_database(options.load_config(offline=True)) as engine:
        print_text(f"the schema is at revision {schema.upgrade(engine)}")


@db.command()
@click.pass_obj
def current(options: GlobalOptions) -> None:
    """Show the schema's revision and the one this program needs.

    \b
    Example:
      linq-etl db current
    """
    from etl.db import schema
    from etl.db.tables import REVISION

    config = options.load_config(offline=True)
    with open_database(config, existing=True, empty=True) as engine:
        print_text(f"{schema.current(engine) or 'empty'} (this program needs {REVISION})")


@db.command("check")
@click.pass_obj
def check_schema(options: GlobalOptions) -> None:
    """Compare the schema with the one this program expects.

    Exit code 6 if they differ.

    \b
    Example:
      linq-etl db check
    """
    from etl.db import schema

    config = options.load_config(offline=True)
    with open_database(config, existing=True, empty=True) as engine:
        differences = schema.differences(engine)
    if differences:
        raise SchemaError(f"the schema is not as expected: {differences}")
    print_text("the schema is as expected")


@db.command()
@click.argument("revision")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.pass_obj
def downgrade(options: GlobalOptions, revision: str, yes: bool) -> None:
    """Go back to an older REVISION; `base` drops every table.

    Everything added after that revision is dropped, with its data.

    \b
    Example:
      linq-etl db downgrade base --yes
    """
    from etl.db import schema

    config = options.load_config(offline=True)
    if not yes:
        _confirm_downgrade(revision)
    with open_database(config, existing=True, empty=True) as engine:
        schema.downgrade(engine, revision)
        print_text(f"the schema is at revision {schema.current(engine) or 'base'}")


def _confirm_downgrade(revision: str) -> None:
    dropped = "every table" if revision == "base" else f"everything added after {revision}"
    warning = f"This drops {dropped}, with its data."
    if not sys.stdin.isatty():
        raise ConfigError(f"{warning} Without a terminal, confirm with --yes.")
    if not click.confirm(f"{warning} Continue?"):
        raise ConfigError("not confirmed; nothing was changed")

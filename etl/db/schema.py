"""The schema's revision: read, checked and migrated by Alembic.

Alembic is imported only where it is used, because most runs find a current schema.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Engine,
    MetaData,
    Table,
    Text,
    inspect,
    null,
    select,
)
from sqlalchemy.exc import DBAPIError, NoSuchTableError

from etl.db.backends import backend
from etl.db.dictionary import write_dictionary
from etl.db.engine import reading, writing
from etl.db.tables import REVISION, VERSION_TABLE, metadata, views
from etl.errors import SchemaError

if TYPE_CHECKING:
    from alembic.config import Config

_PACKAGE = Path(__file__).parents[1]
_version = Table(VERSION_TABLE, MetaData(), Column("version_num", Text))


def current(engine: Engine) -> str | None:
    """The database's revision; None before the first upgrade."""
    with reading(engine) as connection:
        return read_revision(connection)


def ensure_current(engine: Engine, *, upgrade_allowed: bool) -> None:
    """Upgrade an older or empty schema, if that is allowed.

    Raises SchemaError if it is not allowed, if the revision is unknown, or as `ensure_usable`.
    """
    with reading(engine) as connection:
        needed = upgrade_needed(connection, allowed=upgrade_allowed)
    if needed:
        upgrade(engine)


def upgrade_needed(connection: Connection, *, allowed: bool) -> bool:
    """Whether the schema is older or empty. Raises SchemaError as `ensure_current`."""
    revision = usable_revision(connection)
    if revision == REVISION:
        return False
    ensure_known(revision)
    if not allowed:
        state = "has no tables yet" if revision is None else f"is at the older revision {revision}"
        raise SchemaError(f"the database {state}; run `linq-etl db upgrade`")
    return True


def ensure_usable(engine: Engine) -> None:
    """Raise SchemaError if the database cannot hold the texts, or another program has our names."""
    with reading(engine) as connection:
        usable_revision(connection)


def ensure_known(revision: str | None) -> None:
    """Raise SchemaError if no migration of this program has the revision."""
    if revision is not None and revision not in _known():
        raise SchemaError(
            f"the schema's revision {revision} is unknown to this program: the database is older "
            "than 0.1 or newer than this version. If older (a development database), start a new "
            "one; if newer, install the linq-etl version that upgraded it, or a later one"
        )


def lacking(connection: Connection) -> list[str]:
    """The tables and columns of this program that the database does not have."""
    present = inspect(connection).get_multi_columns(filter_names=list(metadata.tables))
    columns = {name: {each["name"] for each in found} for (_, name), found in present.items()}
    tables = [name for name in metadata.tables if not columns.get(name)]
    others = [
        f"{name}.{column.name}"
        for name, table in metadata.tables.items()
        for column in table.columns
        if name not in tables and column.name not in columns[name]
    ]
    return tables + others


def columns_of(connection: Connection, table: Table) -> dict[str, ColumnElement[Any]]:
    """The table's columns by name; null for one that the database's revision does not have.

    Raises SchemaError if it does not have the table.
    """
    try:
        present = {column["name"] for column in inspect(connection).get_columns(table.name)}
    except NoSuchTableError:
        raise SchemaError(f"The database has no table {table.name}.") from None
    return {
        column.name: column if column.name in present else null().label(column.name)
        for column in table.columns
    }


def upgrade(engine: Engine) -> str:
    """Upgrade to the newest revision and return it; concurrent upgrades wait for each other.

    Raises SchemaError if the revision is unknown, or as `ensure_usable`.
    """
    with writing(engine) as connection:
        return upgrade_within(connection)


def upgrade_within(connection: Connection) -> str:
    """As `upgrade`, in a writing transaction."""
    from alembic import command

    config = _begin_migrating(connection)
    backend(connection.dialect).create_schema(connection)
    if usable_revision(connection) != REVISION:
        command.upgrade(config, "head")
    write_dictionary(connection)
    return REVISION


def downgrade(engine: Engine, revision: str) -> None:
    """Go back to an older revision; `base` drops every table with its data.

    Raises SchemaError if there is no such revision, or if it is newer than the database's.
    """
    from alembic import command
    from alembic.util import CommandError

    with _migrating(engine) as config:
        try:
            command.downgrade(config, revision)
        except (CommandError, AssertionError) as error:  # Alembic asserts that a name is given.
            known = ", ".join(["base", *_known()])
            raise SchemaError(
                f"cannot downgrade to {revision!r}; the revisions are {known}"
            ) from error


def differences(engine: Engine) -> str | None:
    """How the database differs from the tables that this program expects; None if it does not.

    Raises SchemaError if its revision is unknown.
    """
    from alembic import command
    from alembic.util import AutogenerateDiffsDetected, CommandError

    with _migrating(engine) as config:
        try:
            command.check(config)
        except AutogenerateDiffsDetected as error:
            return str(error)
        except CommandError as error:
            return f"{error} Run `linq-etl db upgrade`."
    return None


@contextmanager
def _migrating(engine: Engine) -> Iterator["Config"]:
    """An Alembic configuration whose commands run in one writing transaction."""
    with writing(engine) as connection:
        yield _begin_migrating(connection)


def _begin_migrating(connection: Connection) -> "Config":
    backend(connection.dialect).begin_migrating(connection)
    ensure_known(read_revision(connection))
    config = _config()
    config.attributes["connection"] = connection
    return config


def _config() -> "Config":
    from alembic.config import Config

    # A wheel holds the migrations inside the package; a checkout has them beside it.
    inside, beside = _PACKAGE / "migrations", _PACKAGE.parent / "migrations"
    config = Config(stdout=io.StringIO())
    location = inside if inside.is_dir() else beside
    config.set_main_option("script_location", str(location).replace("%", "%%"))
    return config


def _known() -> list[str]:
    """Every revision of this program, oldest first."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(_config()).walk_revisions()
    return [script.revision for script in scripts][::-1]


def usable_revision(connection: Connection) -> str | None:
    """The revision. Raises SchemaError as `ensure_usable`."""
    database = backend(connection.dialect)
    if reason := database.unusable(connection):
        raise SchemaError(reason)
    revision = read_revision(connection)
    if revision is None:
        reason = database.occupied(connection, [*_names(connection)])
        # Another run may have created them since the revision was read; then there is one now.
        if reason and (revision := read_revision(connection)) is None:
            raise SchemaError(reason)
    return revision


def _names(connection: Connection) -> Iterator[str]:
    """The names that the newest revision needs. A downgrade to `base` leaves the version table."""
    yield from views.tables
    for name, table in metadata.tables.items():
        yield name
        yield str(table.primary_key.name)
        yield from (str(index.name) for index in table.indexes)
    if not inspect(connection).has_table(VERSION_TABLE):
        yield VERSION_TABLE


def read_revision(connection: Connection) -> str | None:
    """The revision; None before the first upgrade."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    try:
        return connection.execute(select(_version.c.version_num)).scalar()
    except DBAPIError as error:
        if "version_num" not in str(error.orig):  # Each database names the column that is missing.
            raise
        raise SchemaError(
            f"the table {VERSION_TABLE} is of another program, because it has no version_num: "
            "use another database, or with PostgreSQL another schema (database.schema)"
        ) from error

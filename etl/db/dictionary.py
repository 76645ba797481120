"""The data dictionary: the comments on tables, views and columns, as rows and as comments."""

from collections.abc import Iterator

from sqlalchemy import Connection, Dialect, Table, delete, insert, select

from etl.db.backends import backend
from etl.db.tables import data_dictionary, metadata, views

_Entry = tuple[str, str, str, str | None]


def write_dictionary(connection: Connection) -> None:
    """Fill `data_dictionary`, and comment on the views if the database can."""
    entries = [*_entries(connection.dialect)]
    written = connection.execute(select(data_dictionary)).all()
    if sorted(map(tuple, written)) == sorted(entries):
        return
    connection.execute(delete(data_dictionary))
    names = data_dictionary.c.keys()
    connection.execute(
        insert(data_dictionary), [dict(zip(names, entry, strict=True)) for entry in entries]
    )
    backend(connection.dialect).comment_on_views(connection, views.tables.values())


def _entries(dialect: Dialect) -> Iterator[_Entry]:
    for table in metadata.tables.values():
        yield from _of_table(table, "table", dialect)
    for view in views.tables.values():
        yield from _of_table(view, "view", dialect)


def _of_table(table: Table, kind: str, dialect: Dialect) -> Iterator[_Entry]:
    yield table.name, "", kind, table.comment
    for column in table.columns:
        yield table.name, column.name, column.type.compile(dialect).lower(), column.comment

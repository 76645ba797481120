"""The data dictionary: what every table, view and column means, where analysts look for it."""

from sqlalchemy import Engine, Table, delete, insert, inspect, text

from etl.db import schema
from etl.db.engine import writing
from etl.db.tables import data_dictionary, metadata, views
from tests.support.builders import Rows
from tests.support.marks import only_postgres

ALL: list[Table] = [*metadata.tables.values(), *views.tables.values()]


def test_every_table_view_and_column_has_an_entry(engine: Engine, rows: Rows) -> None:
    """In the order of names, with its type in this database and its comment."""
    found = {(row["table_name"], row["column_name"]): row for row in rows(data_dictionary)}
    expected = {(table.name, name) for table in ALL for name in ("", *table.columns.keys())}
    assert found.keys() == expected
    assert all(row["comment"] and row["type"] for row in found.values())
    assert found["chats", ""]["type"] == "table"
    assert found["number_status", ""]["type"] == "view"
    is_sqlite = engine.dialect.name == "sqlite"
    assert found["chats", "id"] == {
        "table_name": "chats",
        "column_name": "id",
        "type": "integer" if is_sqlite else "bigint",
        "comment": "The API's chat id.",
    }


def test_the_views_have_the_columns_that_are_described(engine: Engine) -> None:
    """In this order."""
    inspector = inspect(engine)
    for view in views.tables.values():
        columns = [column["name"] for column in inspector.get_columns(view.name)]
        assert columns == view.columns.keys(), view.name
    assert {*inspector.get_view_names()} == {*views.tables}


@only_postgres
def test_views_and_their_columns_have_comments(engine: Engine) -> None:
    """As tables have them."""
    query = text(
        "SELECT obj_description(c.oid), col_description(c.oid, a.attnum), a.attname "
        "FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid "
        "WHERE c.relname = :name AND a.attnum > 0 ORDER BY a.attnum"
    )
    with engine.connect() as connection:
        for view in views.tables.values():
            found = [tuple(row) for row in connection.execute(query, {"name": view.name})]
            assert found == [(view.comment, each.comment, each.name) for each in view.columns]


def test_an_upgrade_mends_the_dictionary(engine: Engine, rows: Rows) -> None:
    """Also if the revision is current: comments change between versions."""
    before = rows(data_dictionary)
    with writing(engine) as connection:
        connection.execute(delete(data_dictionary).where(data_dictionary.c.type == "view"))
        other = {"table_name": "of another version", "column_name": "", "comment": "x"}
        connection.execute(insert(data_dictionary), other)
    schema.upgrade(engine)
    assert rows(data_dictionary) == before

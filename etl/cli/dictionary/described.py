"""What all formats tell of a column: its type in words, and the table that it refers to."""

from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import Column, Table

from etl.db.tables import metadata, views

TABLES: Final = (*metadata.tables.values(), *views.tables.values())

_REFERENCES = {"chat_id": "chats", "run_id": "sync_runs", "phone_number": "phone_numbers"}
_PARTICIPANT = ("chat_handles", "phone_number")  # not a configured number


def records() -> Iterator[dict[str, str | None]]:
    """The rows of `data_dictionary`, with types that are named alike for every database."""
    for table in TABLES:
        kind = "view" if is_view(table) else "table"
        yield _record(table.name, "", kind, table.comment)
        for column in table.columns:
            yield _record(table.name, column.name, type_name(column), column.comment)


def _record(table: str, column: str, kind: str, comment: str | None) -> dict[str, str | None]:
    return {"table_name": table, "column_name": column, "type": kind, "comment": comment}


def is_view(table: Table) -> bool:
    return table.metadata is views


def type_name(column: Column[Any]) -> str:
    """Such as text, bigint or time."""
    name = type(column.type).__name__
    names = {
        "UtcDateTime": "time",
        "BigInteger": "bigint",
        "BigKey": "bigint",
        "LongText": "text",
        "ShortText": "text",
        "JsonText": "json",
    }
    return names.get(name, name.lower())


def referred(table: Table, column: Column[Any]) -> str | None:
    """The table that a column refers to, also without a foreign key."""
    target = _REFERENCES.get(column.name)
    return None if target == table.name or (table.name, column.name) == _PARTICIPANT else target

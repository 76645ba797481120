"""The tables as Datasette metadata: what they mean, their order, and which are hidden."""

from pathlib import PurePath
from typing import Any, Final

from sqlalchemy import Table, make_url

from etl.cli.dictionary.described import TABLES
from etl.db.tables import VERSION_TABLE, is_internal

_NEWEST_FIRST: Final = {
    "chats": "changed_at",
    "chat_handles": "changed_at",
    "chat_events": "id",
    "chat_message_counts": "observed_on",
    "sync_runs": "id",
    "sync_run_numbers": "run_id",
    "rejected_records": "id",
}
# What Datasette shows for a row that another one refers to.
_LABELS: Final = {"chats": "display_name", "sync_runs": "started_at"}


def metadata(database_url: str) -> dict[str, Any]:
    """The metadata for the database of this URL. Datasette names a database after its file."""
    name = PurePath(make_url(database_url).database or "linq").stem
    tables: dict[str, Any] = {table.name: _table(table) for table in TABLES}
    database = {
        "description": "The chats of Linq phone numbers. Times are UTC.",
        "tables": {**tables, VERSION_TABLE: {"hidden": True}},
    }
    return {"title": "linq-etl", "databases": {name: database}}


def _table(table: Table) -> dict[str, Any]:
    if is_internal(table):
        return {"hidden": True}
    shown = {
        "description": table.comment,
        "columns": {column.name: column.comment for column in table.columns},
        "sort_desc": _NEWEST_FIRST.get(table.name),
        "label_column": _LABELS.get(table.name),
    }
    return {name: value for name, value in shown.items() if value}

"""The tables as a dbt source: descriptions, tests of what always holds, and freshness."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, get_args

from sqlalchemy import Column, Table

from etl.cli.dictionary.described import TABLES, is_view, referred
from etl.db.tables import (
    ChangeKind,
    Completeness,
    EventKind,
    ListOrder,
    Mode,
    Status,
    data_dictionary,
    is_internal,
)

SOURCE: Final = "linq_etl"
_HEADING = """\
# A dbt source (dbt 1.10.5 or newer), made by: linq-etl dictionary --format dbt
# The tables are looked for in the target's schema, or in that of the variable linq_etl_schema.
"""
# From the run log, because a list that was read without a change leaves no other trace.
_LOADED_AT = """\
select max(finished_at) from {{ this.incorporate(path={'identifier': 'sync_run_numbers'}) }} \
where completeness in ('proved', 'consistent', 'unproved') and status in ('succeeded', 'partial')"""
_WARN_AFTER = {"count": 24, "period": "hour"}
_VALUES: Final[Mapping[str, Any]] = {
    "chat_events.kind": EventKind,
    "quick_recall.kind": ChangeKind,
    "sync_runs.mode": Mode,
    "sync_runs.status": Status,
    "sync_run_numbers.status": Status,
    "sync_run_numbers.completeness": Completeness,
    "number_status.completeness": Completeness,
    "number_status.last_status": Status,
    "number_status.list_order": ListOrder,
}
# A row of these is there as long as others refer to it, also without a foreign key.
_LASTING = {"chats", "phone_numbers"}


def sources() -> str:
    """The text of a sources.yml. Internal tables and columns are left out."""
    source = {
        "name": SOURCE,
        "description": "The chats of Linq phone numbers, kept current by linq-etl.",
        "schema": "{{ var('linq_etl_schema', target.schema) }}",
        "config": {"loaded_at_query": _LOADED_AT, "freshness": {"warn_after": _WARN_AFTER}},
        "tables": [_table(table) for table in TABLES if not is_internal(table)],
    }
    return _HEADING + "\n".join(_yaml({"version": 2, "sources": [source]}))


def _table(table: Table) -> dict[str, Any]:
    described: dict[str, Any] = {"name": table.name, "description": table.comment}
    if table is data_dictionary:  # It changes with the version of linq-etl only.
        described["config"] = {"freshness": None}
    columns = [column for column in table.columns if not is_internal(column)]
    return {**described, "columns": [_column(table, column) for column in columns]}


def _column(table: Table, column: Column[Any]) -> dict[str, Any]:
    tests = [*_tests(table, column)]
    described = {"name": column.name, "description": column.comment}
    return {**described, "data_tests": tests} if tests else described


def _tests(table: Table, column: Column[Any]) -> Iterator[Any]:
    if not is_view(table):
        if not column.nullable:
            yield "not_null"
        if column.primary_key and len(table.primary_key) == 1:
            yield "unique"
        target = referred(table, column)
        if target and (column.foreign_keys or target in _LASTING):
            to = {"to": f"source('{SOURCE}', '{target}')", "field": _key(target)}
            yield {"relationships": {"arguments": to}}
    if values := _VALUES.get(f"{table.name}.{column.name}"):
        yield {"accepted_values": {"arguments": {"values": [*get_args(values)]}}}


def _key(table: str) -> str:
    return "phone_number" if table == "phone_numbers" else "id"


def _yaml(value: Any, indent: str = "") -> Iterator[str]:
    """Lines of YAML. A scalar is written as in JSON, which YAML reads alike."""
    items = value.items() if isinstance(value, dict) else ((None, each) for each in value)
    for key, item in items:
        start = f"{indent}- " if key is None else f"{indent}{key}:"
        if not isinstance(item, dict | list):
            yield f"{start.rstrip()} {json.dumps(item, ensure_ascii=False)}"
        elif key is None:
            first, *others = _yaml(item, indent + "  ")
            yield start + first.removeprefix(indent + "  ")
            yield from others
        else:
            yield start
            yield from _yaml(item, indent + "  ")

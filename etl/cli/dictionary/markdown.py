"""The tables as Markdown, and their keys as a Mermaid diagram; docs/tables.md shows both."""

from collections.abc import Iterator

from etl.cli.dictionary.described import TABLES, is_view, referred, type_name
from etl.db.tables import metadata


def markdown(level: int) -> Iterator[str]:
    """A heading of this level and a table for each table and view."""
    for table in TABLES:
        kind = " (view)" if is_view(table) else ""
        yield f"\n{'#' * level} {table.name}{kind}\n\n{table.comment}\n"
        yield "| column | type | |"
        yield "|---|---|---|"
        for column in table.columns:
            key = " (key)" if column.primary_key else ""
            yield f"| `{column.name}`{key} | {type_name(column)} | {column.comment} |"


def mermaid() -> Iterator[str]:
    """Keys and references; a dotted line is a reference without a foreign key."""
    yield "erDiagram"
    for table in metadata.tables.values():
        for column in table.columns:
            if target := referred(table, column):
                line = "--" if column.foreign_keys else ".."
                yield f"    {target} ||{line}o{{ {table.name} : {column.name}"
    for table in metadata.tables.values():
        yield f"    {table.name} {{"
        for column in table.columns:
            reference = referred(table, column)
            if column.primary_key or reference:
                marks = ["PK"] * column.primary_key + ["FK"] * bool(reference)
                yield f"        {type_name(column)} {column.name} {', '.join(marks)}"
        yield "    }"

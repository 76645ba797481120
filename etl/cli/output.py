"""What commands print: JSON and tables on stdout, errors on stderr."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from etl.cli.streams import lost_output
from etl.phone import shortened

if TYPE_CHECKING:
    from rich.console import Console

    from etl.cli.tables import Column

Row = dict[str, Any]

_TABLE_ROWS = 10  # of a run's numbers

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


def print_error(message: str) -> None:
    """Print a line for the operator on stderr."""
    sys.stderr.write(f"linq-etl: {message}\n")
    sys.stderr.flush()


def print_text(text: str) -> None:
    """Print on stdout."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def report_lost_output() -> bool:
    """Print an error if stdout did not take what was printed; return whether it did not."""
    if reason := lost_output():
        print_error(f"Cannot write the output: {reason}.")
    return bool(reason)


def print_json(value: Any) -> None:
    """Print data for machines: times in ISO 8601, time spans in seconds."""
    text = json.dumps(value, default=_json_value, ensure_ascii=False, indent=2)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, default=_json_value, indent=2)
    print_text(text)


def terminal() -> "Console | None":
    """The terminal that stdout is; None if it is a pipe or a file."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else None


def print_lines(lines: Iterable[str], bold: Iterable[str] = ()) -> None:
    """Print lines as they are; on a terminal the `bold` ones stand out."""
    from rich.text import Text

    console = terminal()
    if console is None:
        print_text("\n".join(lines))
        return
    marked = set(bold)
    for line in lines:
        # Rich would crop or fold lines at the terminal's width; the terminal folds them harmlessly.
        console.print(Text(line, "bold" if line in marked else ""), soft_wrap=True)


def print_table(rows: Sequence[Row], columns: Sequence["str | Column"]) -> None:
    """Print rows for people; a pipe gets them in full, whatever the terminal's width."""
    from etl.cli.tables import Column, layout

    console = terminal()
    typed = [Column(column) if isinstance(column, str) else column for column in columns]
    table = layout(rows, typed, console.width if console else None)
    print_lines(table.lines(), bold=table.head)


def run_lines(record: Row, labels: Mapping[str, str | None], width: int | None = None) -> list[str]:
    """A run's end: a line per number, of a long list only those with problems, and its summary."""
    from etl.cli.tables import Column, layout
    from etl.sync.summary import counted, summary

    numbers: list[Row] = record.get("numbers") or []
    shown = numbers
    if len(numbers) > _TABLE_ROWS:
        shown = [each for each in numbers if each["status"] != "succeeded"][:_TABLE_ROWS]
    columns = (
        Column("name", "number", cut_to=6),
        Column("status"),
        Column("completeness", "list"),
        Column("total_count", "chats", right=True),
        Column("chats_inserted", "new", right=True),
        Column("chats_updated", "changed", right=True),
        Column("chats_removed", "removed", right=True),
        Column("requests", right=True),
    )
    named = [
        {**each, "name": labels.get(each["phone_number"]) or shortened(each["phone_number"])}
        for each in shown
    ]
    lines = list(layout(named, columns, width).lines()) if named else []
    if others := len(numbers) - len(shown):
        lines.append(f"and {counted(others, 'other number')}")
    return [*lines, summary(record)]


def _json_value(value: Any) -> Any:
    if isinstance(value, timedelta):
        return int(value.total_seconds())
    return value.isoformat() if isinstance(value, datetime) else str(value)

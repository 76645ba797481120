"""What commands print: JSON and tables on stdout, errors on stderr."""

import io
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from etl.cli.streams import lost_output
from etl.phone import shortened

if TYPE_CHECKING:
    from rich.table import Table

Row = dict[str, Any]

_NUMBER_COLUMNS = (
    "phone_number",
    "status",
    "completeness",
    "passes",
    "total_count",
    "pages",
    "chats_inserted",
    "chats_updated",
    "chats_removed",
    "rejected",
    "reason",
    "error_detail",
)
_SUMMARY_COLUMNS = {
    "status": "status",
    "completeness": "list",
    "total_count": "chats",
    "chats_inserted": "new",
    "chats_updated": "changed",
    "chats_removed": "removed",
    "requests": "requests",
}

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


def print_table(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Print rows for people; a pipe gets them in full, whatever the terminal's width."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(as_text(row[column])) for column in columns))
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(table)
        return
    printed = io.StringIO()
    Console(highlight=False, width=10_000, file=printed).print(table)
    print_text("\n".join(line.rstrip() for line in printed.getvalue().splitlines()))


def print_run(record: Row) -> None:
    """Print one run in full: its own fields, then a row per number."""
    for key, value in record.items():
        if key != "numbers":
            print_text(f"{key:<18}{as_text(value)}".rstrip())
    print_text("")
    print_table(record["numbers"], _NUMBER_COLUMNS)


def run_table(record: Row, labels: Mapping[str, str]) -> "Table":
    """A run's summary, a line per number; a number without a label is shortened."""
    from rich import box
    from rich.table import Table

    table = Table(
        "number",
        *_SUMMARY_COLUMNS.values(),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"Run {record['id']}",
    )
    for number in record["numbers"]:
        label = labels.get(number["phone_number"], shortened(number["phone_number"]))
        table.add_row(label, *(as_text(number[column]) for column in _SUMMARY_COLUMNS))
    if len(record["numbers"]) > 1:
        table.add_section()
        table.add_row("all", *(as_text(record.get(column)) for column in _SUMMARY_COLUMNS))
    return table


def counted(number: int, noun: str) -> str:
    """The number with its noun: `1 phone number`, `2 phone numbers`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def as_text(value: Any) -> str:
    """A value as people read it: empty for null, times to the second."""
    if value is None:
        return ""
    return value.isoformat(" ", "seconds") if isinstance(value, datetime) else str(value)


def _json_value(value: Any) -> Any:
    if isinstance(value, timedelta):
        return int(value.total_seconds())
    return value.isoformat() if isinstance(value, datetime) else str(value)

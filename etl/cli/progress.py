"""What somebody sees on a terminal: progress bars, and tables of rows."""

import io
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from etl.api.decode import Page
from etl.config import PhoneNumber
from etl.db.run_log import NumberOutcome, Record
from etl.phone import shortened
from etl.sync.progress import Report


class TerminalProgress(Report):
    """A progress bar per number, with rate and time left, and a table at the end."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} pages"),
            TextColumn("{task.fields[rate]:.0f} chats/s"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._names: dict[str, str] = {}
        self._bars: dict[str, TaskID] = {}
        self._began: dict[str, float] = {}
        self._chats: dict[str, int] = {}

    def __enter__(self) -> "TerminalProgress":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def run_started(self, run_id: int, numbers: Sequence[PhoneNumber]) -> None:
        self._names = {n.e164: n.label or shortened(n.e164) for n in numbers}
        self._console.print(f"Run {run_id}: {len(numbers)} phone number(s)")

    def page_read(self, phone_number: str, page: Page) -> None:
        if phone_number not in self._bars:
            name = self._names.get(phone_number, shortened(phone_number))
            self._bars[phone_number] = self._progress.add_task(name, total=1, rate=0)
            self._began[phone_number] = time.monotonic()
        self._chats[phone_number] = self._chats.get(phone_number, 0) + len(page.chats)
        elapsed = max(time.monotonic() - self._began[phone_number], 0.001)
        bar = self._bars[phone_number]
        self._progress.update(
            bar,
            advance=1,
            # A list that has to be read again takes longer than its pages.
            total=max(page.last_page or 1, self._progress.tasks[bar].completed + 1),
            rate=self._chats[phone_number] / elapsed,
        )

    def number_ended(self, outcome: NumberOutcome) -> None:
        bar = self._bars.get(outcome.phone_number)
        if bar is not None:
            self._progress.update(bar, visible=False)

    def run_ended(self, record: Record) -> None:
        self._progress.stop()
        self._console.print(run_table(record, self._names))


_COLUMNS = {
    "status": "status",
    "completeness": "list",
    "total_count": "chats",
    "chats_inserted": "new",
    "chats_updated": "changed",
    "chats_removed": "removed",
    "requests": "requests",
}


def print_rows(rows: Sequence[Record], columns: Sequence[str]) -> None:
    """Print a table on stdout; what is piped is never cut to a terminal's width."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=10_000, file=io.StringIO())
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(text(row[column])) for column in columns))
    console.print(table)
    if isinstance(console.file, io.StringIO):
        lines = (line.rstrip() for line in console.file.getvalue().splitlines())
        sys.stdout.write("\n".join(lines) + "\n")


def text(value: Any) -> str:
    """A value as a person reads it: nothing for null, times to the second."""
    if value is None:
        return ""
    return value.isoformat(" ", "seconds") if hasattr(value, "isoformat") else str(value)


def run_table(record: Record, names: Mapping[str, str]) -> Table:
    """The run at a glance, a line per number; `names` has their labels."""
    table = Table(
        "number",
        *_COLUMNS.values(),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"Run {record['id']}",
    )
    for number in record["numbers"]:
        name = names.get(number["phone_number"], shortened(number["phone_number"]))
        table.add_row(name, *(text(number[column]) for column in _COLUMNS))
    if len(record["numbers"]) > 1:
        table.add_section()
        table.add_row("all", *(text(record.get(column)) for column in _COLUMNS))
    return table

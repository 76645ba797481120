"""Progress bars on a terminal."""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from etl.api.models import Page
from etl.cli.output import counted, run_table
from etl.config import PhoneNumber
from etl.db.run_log import NumberOutcome, Record
from etl.phone import shortened
from etl.sync.progress import Progress


class TerminalProgress(Progress):
    """A bar per phone number, with rate and time left, and a table at the end."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} pages"),
            TextColumn("{task.fields[rate]:.0f} chats/s"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._labels: dict[str, str] = {}
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, float] = {}
        self._chats: dict[str, int] = {}

    def __enter__(self) -> "TerminalProgress":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def run_started(self, run_id: int, numbers: Sequence[PhoneNumber]) -> None:
        self._labels = {n.e164: n.label or shortened(n.e164) for n in numbers}
        self._console.print(f"Run {run_id}: {counted(len(numbers), 'phone number')}")

    def page_read(self, phone_number: str, page: Page) -> None:
        if phone_number not in self._tasks:
            label = self._labels.get(phone_number, shortened(phone_number))
            self._tasks[phone_number] = self._bars.add_task(label, total=1, rate=0)
            self._began[phone_number] = time.monotonic()
        self._chats[phone_number] = self._chats.get(phone_number, 0) + len(page.chats)
        elapsed = max(time.monotonic() - self._began[phone_number], 0.001)
        task = self._tasks[phone_number]
        self._bars.update(
            task,
            advance=1,
            # A second pass reads more pages than the list has.
            total=max(page.last_page or 1, self._bars.tasks[task].completed + 1),
            rate=self._chats[phone_number] / elapsed,
        )

    def number_ended(self, outcome: NumberOutcome) -> None:
        task = self._tasks.get(outcome.phone_number)
        if task is not None:
            self._bars.update(task, visible=False)

    def run_ended(self, record: Record) -> None:
        self._bars.stop()
        self._console.print(run_table(record, self._labels))

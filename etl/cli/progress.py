"""Progress bars on a terminal."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from etl.api.models import Page
from etl.cli.output import run_lines
from etl.cli.tables import one_line
from etl.config import PhoneNumber
from etl.db.run_log import NumberOutcome, Record
from etl.phone import shortened
from etl.sync.progress import Progress
from etl.sync.summary import counted, duration

ACTIVE = 5  # numbers that have a bar
FIRST_RATE_AFTER = 2.0  # seconds
_WINDOW = 30.0  # seconds whose pages tell the pace that the API allows
_ALMOST = 0.99  # of a bar, until the number has ended: a list may be read more than once


@dataclass(slots=True)
class _Number:
    """A number that is being read; `done` never falls."""

    pages: int = 0
    last_page: int = 1
    chats: int = 0
    done: float = 0.0
    bar: TaskID | None = None

    def add(self, page: Page) -> None:
        self.pages += 1
        self.last_page = max(self.last_page, page.last_page or 1)
        self.chats += len(page.chats)
        self.done = max(self.done, min(self.pages / self.last_page, _ALMOST))


class TerminalProgress(Progress):
    """A bar for the run and one for each of five numbers; at the end a table and a sentence."""

    def __init__(
        self,
        max_requests_per_second: float | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._clock = clock
        self._max_rate = max_requests_per_second
        self.bars = Bars(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[said]}", markup=False, table_column=Column(no_wrap=True)),
            console=self._console,
            transient=True,
        )
        self._labels: dict[str, str | None] = {}
        self._active: dict[str, _Number] = {}
        self._ended: dict[str, _Number] = {}
        self._whole: TaskID | None = None
        self._chats = 0
        self._began = clock()
        self._recent: deque[float] = deque()  # when the last pages were read

    def __enter__(self) -> "TerminalProgress":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def run_started(self, run_id: int, numbers: Sequence[PhoneNumber]) -> None:
        self._labels = {number.e164: number.label for number in numbers}
        self._began = self._clock()
        self._print(f"Run {run_id}: {counted(len(numbers), 'phone number')}")
        self._whole = self.bars.add_task("all numbers", total=len(numbers) or 1, said="")
        self._show_whole()

    def page_read(self, phone_number: str, page: Page) -> None:
        number = self._active.setdefault(phone_number, _Number())
        number.add(page)
        self._chats += len(page.chats)
        self._recent.append(self._clock())
        self._fill_bars()
        self._show(number)
        self._show_whole()

    def number_ended(self, outcome: NumberOutcome) -> None:
        number = self._active.pop(outcome.phone_number, _Number())
        if number.bar is not None:
            self.bars.remove_task(number.bar)
        self._ended[outcome.phone_number] = number
        self._fill_bars()
        self._show_whole()

    def waiting(self, numbers: int) -> None:
        self._print(f"Waiting for {counted(numbers, 'phone number')} of other runs")

    def run_ended(self, record: Record) -> None:
        self.bars.stop()
        for line in run_lines(record, self._labels, self._console.width):
            self._print(line)

    def _fill_bars(self) -> None:
        """Give the longest active numbers a bar each, up to five; one that has a bar keeps it."""
        free = ACTIVE - sum(number.bar is not None for number in self._active.values())
        for phone_number, number in self._active.items():
            if free > 0 and number.bar is None:
                name = one_line(self._labels.get(phone_number) or shortened(phone_number))
                number.bar = self.bars.add_task(name[:24], total=1.0, said="")
                self._show(number)
                free -= 1

    def _show(self, number: _Number) -> None:
        if number.bar is not None:
            pages = f"{min(number.pages, number.last_page)}/{number.last_page} pages"
            self.bars.update(number.bar, completed=number.done, said=pages)

    def _show_whole(self) -> None:
        if self._whole is None:
            return
        total = self.bars.tasks[0].total or 1
        done = len(self._ended) + sum(number.done for number in self._active.values())
        said = [f"{len(self._ended)}/{total:.0f} numbers", counted(self._chats, "chat")]
        elapsed = self._clock() - self._began
        if elapsed >= FIRST_RATE_AFTER and self._recent:
            said.append(f"{self._chats / elapsed:.0f} chats/s")
            if left := self._pages_left(int(total)):
                said.append(f"{duration(max(left / self._rate(), 1))} left")
        self.bars.update(self._whole, completed=min(done, total), said=", ".join(said))

    def _rate(self) -> float:
        """Pages a second: those of the last seconds, but not more than is allowed."""
        now = self._clock()
        while now - self._recent[0] > _WINDOW and len(self._recent) > 1:
            self._recent.popleft()
        rate = len(self._recent) / max(now - max(self._began, now - _WINDOW), 0.001)
        return min(rate, self._max_rate or rate)

    def _pages_left(self, total: int) -> float:
        """Those of the active numbers, and as many of each later one as others have on average."""
        known = [*self._active.values(), *(each for each in self._ended.values() if each.pages)]
        average = sum(number.last_page for number in known) / max(len(known), 1)
        later = max(total - len(self._active) - len(self._ended), 0)
        active = sum(max(each.last_page - each.pages, 0) for each in self._active.values())
        return active + later * average

    def _print(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)

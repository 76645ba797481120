"""Progress bars on a terminal."""

import io
import re

import pytest
from rich.console import Console

from etl.api.models import ApiUsage, Chat, Page
from etl.cli.progress import TerminalProgress
from etl.config import PhoneNumber
from etl.db.run_log import NumberOutcome
from tests.support.builders import NOON, A, B, minute


class Terminal:
    """A terminal of 100 cells, and a clock that is set by hand."""

    def __init__(self, max_rate: float | None = None) -> None:
        self.now = 0.0
        self.file = io.StringIO()
        console = Console(file=self.file, width=100, force_terminal=True, color_system=None)
        self.progress = TerminalProgress(max_rate, console, lambda: self.now)

    def start(self, *numbers: PhoneNumber) -> None:
        self.progress.run_started(7, numbers)

    def read(self, phone_number: str, number: int, last: int, *, at: float | None = None) -> None:
        self.now = self.now if at is None else at
        chats = (Chat(id=1), Chat(id=2))
        page = Page(number, 2, None, last, chats, (), 0, NOON)
        self.progress.page_read(phone_number, page)

    def end(self, phone_number: str) -> None:
        self.progress.number_ended(NumberOutcome(phone_number, "succeeded", ApiUsage()))

    @property
    def bars(self) -> list[str]:
        """What is shown now, a line per bar, without the bars themselves."""
        console = Console(file=io.StringIO(), width=100, color_system=None)
        console.print(self.progress.bars.get_renderable())
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        return [" ".join(re.sub("[━╸╺]+", "", line).split()) for line in lines if line.strip()]

    @property
    def done(self) -> float:
        return self.progress.bars.tasks[0].completed


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


def test_a_bar_for_the_run_and_one_per_number(terminal: Terminal) -> None:
    """Named by its label, with markup and line breaks as plain text, or by its last digits."""
    terminal.start(PhoneNumber(A, "[red]\nSales"), PhoneNumber(B))
    assert terminal.file.getvalue() == "Run 7: 2 phone numbers\n"
    terminal.read(A, 1, last=3)
    for number in (1, 2, 1):  # A second pass reads the list again.
        terminal.read(B, number, last=2)
    assert terminal.bars == [
        "all numbers 0/2 numbers, 8 chats",
        "[red] Sales 1/3 pages",
        "…0100 2/2 pages",
    ]


def test_at_most_five_numbers_have_a_bar(terminal: Terminal) -> None:
    """The next one gets its bar when one has ended; the others stay where they are."""
    numbers = [f"+1312555{n:04}" for n in range(7)]
    terminal.start(*map(PhoneNumber, numbers))
    for number in numbers:
        terminal.read(number, 1, last=2)
    names = [line.split()[0] for line in terminal.bars]
    assert names == ["all", *(f"…000{n}" for n in range(5))]
    terminal.end(numbers[1])
    names = [line.split()[0] for line in terminal.bars]
    assert names == ["all", *(f"…000{n}" for n in (0, 2, 3, 4, 5))]
    assert terminal.bars[0] == "all numbers 1/7 numbers, 14 chats"


def test_there_is_no_rate_before_two_seconds(terminal: Terminal) -> None:
    """Then the time left follows from the pages of the last seconds, also for later numbers."""
    terminal.start(PhoneNumber(A), PhoneNumber(B))
    terminal.read(A, 1, last=10, at=1.9)
    assert terminal.bars[0] == "all numbers 0/2 numbers, 2 chats"
    terminal.read(A, 2, last=10, at=2.0)
    assert terminal.bars[0] == "all numbers 0/2 numbers, 4 chats, 2 chats/s, 18 s left"
    terminal.read(A, 3, last=10, at=100.0)
    assert terminal.bars[0].endswith(", 0 chats/s, 8 min left")


def test_the_time_left_is_not_shorter_than_the_rate_allows() -> None:
    """A burst at the start does not promise more than api.max_requests_per_second."""
    terminal = Terminal(max_rate=0.5)
    terminal.start(PhoneNumber(A))
    for number in range(1, 11):
        terminal.read(A, number, last=40, at=2.0)
    assert terminal.bars[0].endswith(", 60 s left") or terminal.bars[0].endswith(", 1 min left")


def test_the_bar_of_the_run_never_goes_back(terminal: Terminal) -> None:
    """Neither when a list turns out to be longer nor when it is read again."""
    terminal.start(PhoneNumber(A), PhoneNumber(B))
    seen = []
    for number, last in ((1, 2), (2, 2), (1, 8), (2, 8)):
        terminal.read(A, number, last)
        seen.append(terminal.done)
    terminal.end(A)
    terminal.end(B)  # It failed before its first page.
    assert seen == [0.5, 0.99, 0.99, 0.99]
    assert terminal.done == 2


def test_a_run_ends_with_its_table(terminal: Terminal) -> None:
    """The table replaces the bars, and a sentence ends it."""
    counts = {"chats_inserted": 3, "chats_updated": 0, "chats_removed": 0, "requests": 5}
    number = {"phone_number": A, "status": "succeeded", "completeness": "proved"}
    times = {"started_at": NOON, "finished_at": minute(1), "status": "succeeded"}
    with terminal.progress:
        terminal.start(PhoneNumber(A, "Sales"))
        numbers = [number | counts | {"total_count": 20}]
        terminal.progress.run_ended({"id": 7, **counts, **times, "numbers": numbers})
    *_, row, sentence = terminal.file.getvalue().splitlines()
    assert row.split() == ["Sales", "succeeded", "proved", "20", "3", "0", "0", "5"]
    assert sentence == "Run 7: 1 number, 20 chats, 3 new, 0 changed, list proved, 5 requests, 1 min"

"""Progress bars on a terminal."""

import io

from rich.console import Console

from etl.api.models import ApiUsage, Page
from etl.cli.progress import TerminalProgress
from etl.config import PhoneNumber
from etl.db.run_log import NumberOutcome
from tests.support.builders import NOON, A, B


def page(number: int, last: int) -> Page:
    return Page(
        page_number=number,
        per_page=100,
        total_count=None,
        last_page=last,
        chats=(),
        rejected=(),
        texts_cleaned=0,
        observed_at=NOON,
    )


def terminal() -> tuple[TerminalProgress, io.StringIO]:
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=True, color_system=None)
    return TerminalProgress(console), file


def test_a_bar_per_number() -> None:
    """Its name is the label or the last digits; a second pass extends its total."""
    progress, file = terminal()
    with progress:
        progress.run_started(7, [PhoneNumber(A, "Sales"), PhoneNumber(B)])
        progress.page_read(A, page(1, last=3))
        for number in (1, 2, 1):
            progress.page_read(B, page(number, last=2))
    shown = file.getvalue()
    assert "Run 7: 2 phone numbers\n" in shown
    assert "Sales" in shown
    assert "1/3 pages" in shown
    assert "…0100" in shown
    assert "3/3 pages" in shown
    assert A not in shown


def test_a_number_that_ended_has_no_bar() -> None:
    """Nor has one that failed before its first page."""
    progress, file = terminal()
    with progress:
        progress.run_started(7, [PhoneNumber(A, "Sales")])
        progress.page_read(A, page(1, last=3))
        progress.number_ended(NumberOutcome(A, "succeeded", ApiUsage()))
        progress.number_ended(NumberOutcome(B, "failed", ApiUsage()))
        file.truncate(0)
    assert "Run 7: 1 phone number\n" not in file.getvalue()
    assert "Sales" not in file.getvalue()


def test_a_run_ends_with_its_table() -> None:
    """The table replaces the bars."""
    progress, file = terminal()
    counts = {"chats_inserted": 3, "chats_updated": 0, "chats_removed": 0, "requests": 5}
    number = {"phone_number": A, "status": "succeeded", "completeness": "proved"}
    with progress:
        progress.run_started(7, [PhoneNumber(A, "Sales")])
        progress.run_ended({"id": 7, "numbers": [number | counts | {"total_count": 20}]})
    assert "Run 7: 1 phone number\n" in file.getvalue()
    assert any(
        line.split() == ["Sales", "succeeded", "proved", "20", "3", "0", "0", "5"]
        for line in file.getvalue().splitlines()
    )

"""JSON and tables on stdout."""

import io
import json
from contextlib import redirect_stdout
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from etl.cli.output import (
    as_text,
    counted,
    print_error,
    print_json,
    print_run,
    print_table,
    run_table,
)
from tests.support.command import A, B

NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)
SUMMARY: dict[str, Any] = {
    "status": "succeeded",
    "completeness": "consistent",
    "total_count": 20,
    "chats_inserted": 3,
    "chats_updated": 2,
    "chats_removed": 1,
    "requests": 5,
}


def test_an_error_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """It begins with the program's name."""
    print_error("the disk is full")
    assert capsys.readouterr() == ("", "linq-etl: the disk is full\n")


def test_json_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    """Times are ISO 8601, time spans seconds, other values text; letters are not escaped."""
    print_json({"at": NOON, "age": timedelta(minutes=1), "name": "Zoë 🎭", "other": 1j})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {
        "at": "2025-06-01T12:00:00+00:00",
        "age": 60,
        "name": "Zoë 🎭",
        "other": "1j",
    }
    assert "Zoë 🎭" in printed


def test_json_for_a_stream_that_knows_only_ascii() -> None:
    """Other characters are escaped as JSON escapes them."""
    written = io.BytesIO()
    with redirect_stdout(io.TextIOWrapper(written, "ascii", "backslashreplace")):
        print_json({"name": "Zoë 🎭"})
        assert json.loads(written.getvalue()) == {"name": "Zoë 🎭"}


def test_a_piped_table_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    """Long values are neither cut nor wrapped, markup is shown as it is, null is empty."""
    long = "x" * 500
    print_table(
        [{"a": long, "b": None, "c": "[red]"}, {"a": 1, "b": NOON, "c": ""}], ["a", "b", "c"]
    )
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["a", "b", "c"]
    assert first.split() == [long, "[red]"]
    assert second.split() == ["1", "2025-06-01", "12:00:00+00:00"]


def test_a_table_on_a_terminal_fits_it() -> None:
    """Long values are wrapped to its width."""
    terminal = _Terminal()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(terminal):
        patch.setenv("COLUMNS", "40")
        patch.setenv("TERM", "xterm")
        print_table([{"a": "one two " * 20}], ["a"])
    _, *rows = terminal.getvalue().splitlines()
    assert max(map(len, rows)) <= 40


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_run_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    """A line per field, then a table of its numbers."""
    number = {"phone_number": A, "passes": 1, "pages": 4, "rejected": 0, "reason": None}
    print_run({"id": 7, "error_kind": None, "numbers": [SUMMARY | number | {"error_detail": None}]})
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["id                7", "error_kind", ""]
    assert lines[3].split()[:3] == ["phone_number", "status", "completeness"]
    assert lines[4].split()[:3] == [A, "succeeded", "consistent"]


def test_a_summary_of_a_run() -> None:
    """A line per number, by its label or its last digits, and one for all if there are several."""
    numbers = [SUMMARY | {"phone_number": A}, SUMMARY | {"phone_number": B}]
    record = SUMMARY | {"id": 7, "requests": 10, "numbers": numbers}
    lines = _rendered(record)
    assert [line.split()[0] for line in lines if line.split()] == [
        "Run",
        "number",
        lines[3].strip(),
        "Sales",
        "…0100",
        "all",
    ]
    one = _rendered(record | {"numbers": numbers[:1]})
    assert not any(line.strip().startswith("all") for line in one)


def _rendered(record: dict[str, Any]) -> list[str]:
    console = Console(width=100, file=io.StringIO())
    with console.capture() as capture:
        console.print(run_table(record, {A: "Sales"}))
    return capture.get().splitlines()


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 pages"), (1, "1 page"), (2, "2 pages"), (11, "11 pages")]
)
def test_a_noun_agrees_with_its_number(number: int, text: str) -> None:
    """Only 1 has the singular."""
    assert counted(number, "page") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (0, "0"),
        (timedelta(hours=2), "2:00:00"),
        (NOON.replace(microsecond=5), "2025-06-01 12:00:00+00:00"),
    ],
)
def test_a_value_as_people_read_it(value: object, text: str) -> None:
    """Times are to the second, and null is empty."""
    assert as_text(value) == text

"""JSON and tables on stdout."""

import io
import json
from contextlib import redirect_stdout
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from etl.cli.output import (
    print_error,
    print_json,
    print_table,
    run_lines,
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

RUN: dict[str, Any] = {
    "id": 7,
    "status": "succeeded",
    "started_at": NOON,
    "finished_at": NOON + timedelta(seconds=1.5),
    "requests": 10,
    "chats_inserted": 3,
    "chats_updated": 2,
    "chats_removed": 1,
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


def test_a_run_ends_with_a_line_per_number() -> None:
    """By its label or its last digits, and a sentence for all of them."""
    numbers = [SUMMARY | {"phone_number": A}, SUMMARY | {"phone_number": B}]
    head, sales, other, sentence = run_lines(RUN | {"numbers": numbers}, {A: "[red]\nSales"}, 80)
    titles = "number  status     list        chats  new  changed  removed  requests"
    assert " ".join(head.split()) == " ".join(titles.split())
    assert sales.split() == ["[red]", "Sales", "succeeded", "consistent", "20", "3", "2", "1", "5"]
    assert other.split() == ["…0100", "succeeded", "consistent", "20", "3", "2", "1", "5"]
    chats = "40 chats, 3 new, 2 changed, 1 removed"
    assert sentence == f"Run 7: 2 numbers, {chats}, lists consistent, 10 requests, 1.5 s"


def test_a_run_of_many_numbers_ends_with_its_problems() -> None:
    """At most ten of them; the others are counted."""
    good = [SUMMARY | {"phone_number": f"+1312555{n:04}"} for n in range(11)]
    bad = [{**each, "status": "failed"} for each in good]
    for numbers, shown in ((good, []), (good + bad[:1], ["failed"]), (bad, ["failed"] * 10)):
        *lines, others, _ = run_lines(RUN | {"numbers": numbers}, {}, 80)
        assert [line.split()[1] for line in lines[1:]] == shown
        count = len(numbers) - len(shown)
        assert others == f"and {count} other number{'' if count == 1 else 's'}"

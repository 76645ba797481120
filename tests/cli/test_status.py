"""What `status` shows of 200 numbers on a terminal of 80 x 24."""

from datetime import timedelta
from typing import Any

import pytest

from etl.cli.status import NULLS, in_full, screen, sections, summary_line, with_age
from tests.support.builders import NOON, Row

REFUSED = "The API refused the token (401). Put a valid integration token there."
UNREACHABLE = "Cannot reach api.linqapp.com (connection refused), gave up after {} tries."
HEIGHT = 21  # of 24: an empty line, the summary and the prompt follow


def number(n: int) -> str:
    return f"+1312555{n:04}"


def row(n: int, **fields: Any) -> Row:
    """A number that was synced five minutes ago."""
    good: Row = {
        "phone_number": number(n),
        "label": f"Number {n}",
        "run_id": 7,
        "last_good_sync": NOON - timedelta(minutes=5),
        "fresh_as_of": NOON - timedelta(minutes=5),
        "complete_as_of": NOON - timedelta(minutes=5),
        "completeness": "proved",
        "total_count": 800,
        "last_attempt_at": NOON - timedelta(minutes=5),
        "last_status": "succeeded",
        "always_empty": False,
    }
    return with_age({**NULLS, **good, **fields}, number(n), NOON)


def failing(n: int, error: str | None, **fields: Any) -> Row:
    last = {"last_status": "failed", "last_error_detail": error}
    return row(n, **{**last, "failing_since": NOON - timedelta(hours=2), **fields})


def never(n: int) -> Row:
    return with_age(None, number(n), NOON)


def lines(rows: list[Row], width: int = 80, height: int = HEIGHT) -> list[str]:
    shown = screen(sections(rows, None), width, height)
    assert len(shown) <= height
    return shown


def numbers(shown: list[str]) -> list[str]:
    return [line.split()[0] for line in shown if line.startswith("+")]


def test_a_wrong_token() -> None:
    """The cause once, since when, the first numbers in full, and how many more there are."""
    shown = lines([failing(n, REFUSED) for n in range(200)])
    assert max(map(len, shown)) <= 80
    assert shown[0] == (
        "phone_number  label       failing since      fresh as of  complete as of  chats"
    )
    assert shown[1] == f"200 failing: {REFUSED}"[:75]
    assert (
        shown[3]
        == "+13125550000  Number 0    2025-06-01 10:00Z  5 min ago    5 min ago         800"
    )
    assert numbers(shown) == [number(n) for n in range(17)]
    assert shown[-1] == "and 183 others: linq-etl status | less"


def test_an_api_that_cannot_be_reached() -> None:
    """Errors that differ in the number of tries have one cause."""
    shown = lines([failing(n, UNREACHABLE.format(7 + n % 2)) for n in range(200)])
    assert [line for line in shown if "Cannot reach" in line] == [
        "200 failing: Cannot reach api.linqapp.com (connection refused), gave up after 7"
    ]


def test_one_bad_number_of_200() -> None:
    """It comes first; the fresh ones fill the rest of the screen."""
    shown = lines([*map(row, range(199)), failing(199, REFUSED)])
    assert shown[1].startswith("1 failing: The API refused the token (401).")
    assert numbers(shown)[:2] == [number(199), number(0)]
    assert "199 fresh and not failing" in shown
    assert len(shown) == HEIGHT


def test_a_number_that_was_never_synced() -> None:
    """It comes before stale and fresh ones, and says never in words."""
    stale = row(5, fresh_as_of=NOON - timedelta(days=3))
    empty = row(6, always_empty=True)
    shown = lines([row(1), empty, stale, never(199)])
    assert numbers(shown) == [number(199), number(5), number(6), number(1)]
    assert shown[1:3] == [
        "1 never synced, and no attempt failed",
        f"{number(199)}            never        never",
    ]
    assert "1 stale: no good sync for more than 1 d" in shown
    assert "3 d ago" in shown[4]
    assert shown[5].startswith("1 always empty")


def test_each_of_many_causes_is_shown() -> None:
    """With at least a number each, as long as they fit; fresh numbers make room."""
    rows = [failing(n, f"Cause {chr(65 + n % 6)}. Do something.") for n in range(120)]
    shown = lines([*rows, *map(row, range(120, 200))])
    causes = [line for line in shown if "failing:" in line]
    assert causes == [f"20 failing: Cause {letter}. Do something." for letter in "ABCDEF"]
    assert len(numbers(shown)) == 8
    assert not any("fresh and" in line for line in shown)
    crowded = lines([failing(n, f"Cause {chr(65 + n)}.") for n in range(20)], height=8)
    assert len(numbers(crowded)) == 3


def test_the_commonest_cause_comes_first() -> None:
    """Whatever the order of the numbers."""
    shown = lines([failing(1, "Rare."), failing(2, "Common."), failing(3, "Common.")])
    assert numbers(shown) == [number(2), number(3), number(1)]


def test_what_fits_is_not_cut() -> None:
    """Every row is shown if there is room for all."""
    assert numbers(lines([*map(row, range(19))])) == [number(n) for n in range(19)]


def test_a_narrow_terminal_keeps_the_numbers() -> None:
    """A line for each value, with digits that are not broken."""
    shown = lines([failing(n, REFUSED) for n in range(200)], width=30)
    assert f"phone_number    {number(0)}" in shown


@pytest.mark.parametrize(
    ("max_age", "line"),
    [
        (None, "4 fresh, 1 never synced; of these 2 failing, 1 always empty"),
        (timedelta(minutes=1), "4 stale, 1 never synced; of these 2 failing, 1 always empty"),
    ],
)
def test_the_summary_counts_in_words(max_age: timedelta | None, line: str) -> None:
    """Each number once by its age, and again if its last attempt failed."""
    rows = [row(1), row(2, always_empty=True), failing(3, REFUSED), failing(4, None), never(5)]
    assert summary_line(rows, max_age) == line


def test_no_numbers() -> None:
    """An empty database has a summary too."""
    assert (lines([]), summary_line([], None)) == (
        ["phone_number  fresh as of  complete as of  chats"],
        "no numbers",
    )


def test_a_pipe_gets_every_number() -> None:
    """The worst first, with the state in words and the error as a sentence."""
    interrupted = failing(3, None, last_status="interrupted", last_good_sync=None, fresh_as_of=None)
    rows = [row(1), failing(2, REFUSED), interrupted, never(4)]
    shown = [
        (each["phone_number"][-1], each["state"], each["error"]) for each in in_full(rows, None)
    ]
    assert shown == [
        ("3", "failing, never synced", "the last attempt was interrupted"),
        ("2", "failing, fresh", REFUSED),
        ("4", "never synced", None),
        ("1", "fresh", None),
    ]

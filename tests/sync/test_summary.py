"""A run in one sentence, and its errors by cause."""

from datetime import timedelta
from typing import Any

import pytest

from etl.sync.summary import cause, counted, duration, grouped_errors, summary
from tests.support.builders import NOON, A, B, Row

REFUSED = "The API refused the request (HTTP 404, code not_found). Check the number."
CHANGED = "1 new, 17 changed, 2 removed"
AWAY = "Cannot reach api.linqapp.com (connection refused), gave up after {} tries."


def number(n: int, **fields: Any) -> Row:
    return {
        "phone_number": f"+1312555{n:04}",
        "status": "succeeded",
        "completeness": "consistent",
        "total_count": 400,
        "error_detail": None,
        **fields,
    }


def failed(n: int, error: str = REFUSED) -> Row:
    unread = {"completeness": None, "total_count": None}
    return number(n, status="failed", error_detail=error, **unread)


def record(*numbers: Row, **fields: Any) -> Row:
    return {
        "id": 42,
        "status": "succeeded",
        "started_at": NOON,
        "finished_at": NOON + timedelta(seconds=1.94),
        "numbers_total": len(numbers),
        "requests": 13,
        "chats_inserted": 1,
        "chats_updated": 17,
        "chats_removed": 2,
        "error_detail": None,
        "numbers": list(numbers),
        **fields,
    }


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        (
            record(number(1), number(2, total_count=401)),
            f"2 numbers, 801 chats, {CHANGED}, lists consistent, 13 requests, 1.9 s",
        ),
        (
            record(number(1), requests=1, chats_inserted=0, chats_updated=0, chats_removed=0),
            "1 number, 400 chats, 0 changed, list consistent, 1 request, 1.9 s",
        ),
        (
            record(number(1), number(2, completeness="unproved"), finished_at=None),
            f"2 numbers, 800 chats, {CHANGED}, lists 1 unproved, 1 consistent, 13 requests",
        ),
        (
            record(number(1, status="partial"), number(2), status="partial"),
            f"1 of 2 numbers in part; 800 chats, {CHANGED}, lists consistent, 13 requests, 1.9 s",
        ),
        (
            record(*map(number, range(197)), *map(failed, (197, 198, 199)), status="partial"),
            "3 of 200 numbers failed: The API refused the request (HTTP 404, code not_found); "
            f"78800 chats, {CHANGED}, lists consistent, 13 requests, 1.9 s",
        ),
        (
            record(
                failed(1), failed(2, AWAY.format(8)), failed(3, AWAY.format(7)), status="failed"
            ),
            "3 of 3 numbers failed: Cannot reach api.linqapp.com (connection refused) and 1 other "
            f"cause; 0 chats, {CHANGED}, 13 requests, 1.9 s",
        ),
        (
            record(number(1, status="interrupted"), status="interrupted", error_detail="a signal"),
            f"interrupted: a signal; 1 number, 400 chats, {CHANGED}, list consistent, "
            "13 requests, 1.9 s",
        ),
        (
            record(number(1), mode="dry-run"),
            "1 number, 400 chats, would insert 1, update 17, remove 2, list consistent, "
            "13 requests, 1.9 s",
        ),
        (
            record(mode="dry-run", status="partial", numbers_total=3, numbers_failed=1),
            "1 of 3 numbers failed; would insert 1, update 17, remove 2, 13 requests, 1.9 s",
        ),
        (
            record(status="failed", error_detail=REFUSED),
            "failed: The API refused the request (HTTP 404, code not_found); 0 numbers, 0 chats, "
            f"{CHANGED}, 13 requests, 1.9 s",
        ),
    ],
)
def test_a_run_in_one_sentence(run: Row, sentence: str) -> None:
    """What went wrong comes first, then what was read, how completely, and what it cost."""
    of_dry_run = " (dry run, no data was written)" if "mode" in run else ""
    assert summary(run) == f"Run 42{of_dry_run}: {sentence}"


def test_errors_are_grouped_by_cause() -> None:
    """The commonest first; of many numbers three are named, of all of them none."""
    away = [failed(n, AWAY.format(7 + (n > 0))) for n in range(4)]
    assert grouped_errors(away, 4) == [f"4 of 4 numbers: {AWAY.format(8)}"]
    others = [failed(8), {"phone_number": A, "error_detail": None}, failed(9)]
    assert grouped_errors([*others, *away], 200, {"+13125550009": "Sales"}) == [
        f"4 of 200 numbers (…0000, …0001, …0002 and 1 more): {AWAY.format(8)}",
        f"…0008, Sales …0009: {REFUSED}",
    ]
    assert grouped_errors([{"phone_number": B, "error_detail": None}], 1) == []


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (AWAY.format(8), "Cannot reach api.linqapp.com (connection refused)"),
        (REFUSED, "The API refused the request (HTTP 404, code not_found)"),
        ("The API is throttling, gave up after 1 try. Run again later.", "The API is throttling"),
        ("unexpected ValueError", "unexpected ValueError"),
        ("", ""),
    ],
)
def test_a_cause_is_an_errors_first_sentence(error: str, short: str) -> None:
    """Without the number of tries, which differs from number to number."""
    assert cause(error) == short


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (1.94, "1.9 s"),
        (9.96, "10 s"),
        (59.9, "60 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (3600, "1 h"),
        (11_100, "3 h 5 min"),
        (86_400, "1 d"),
        (187_300, "2 d 4 h"),
    ],
)
def test_a_duration_has_two_units_at_most(seconds: float, text: str) -> None:
    """Seconds only below a minute."""
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 pages"), (1, "1 page"), (2, "2 pages"), (11, "11 pages")]
)
def test_a_noun_agrees_with_its_number(number: int, text: str) -> None:
    """Only 1 has the singular."""
    assert counted(number, "page") == text

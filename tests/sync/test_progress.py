"""The log of a run: what it tells, and at which level."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from etl.api.models import ApiUsage, Page
from etl.config import PhoneNumber
from etl.db.run_log import NumberOutcome, Record
from etl.db.tables import COUNTS, Status
from etl.sync import progress
from etl.sync.progress import LogProgress
from tests.support.builders import NOON, A, B, minute

AWAY = {"error_kind": "unavailable", "error_detail": "Cannot reach HOST, gave up after {} tries."}


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.DEBUG, "etl"):
        yield


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname.lower(), record.getMessage()) for record in caplog.records]


def fields(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    """Those of the last line."""
    found: dict[str, Any] = caplog.records[-1].__dict__["fields"]
    return found


def outcome(status: Status, changes: int = 0, **others: Any) -> NumberOutcome:
    return NumberOutcome(A, status, ApiUsage(3), changes=changes, **others)


@pytest.mark.parametrize(
    ("ended", "level"),
    [
        (outcome("succeeded"), "debug"),
        (outcome("succeeded", changes=1), "info"),
        (outcome("partial", reason="it moved"), "warning"),
        (outcome("failed", error_kind="token", error_detail="refused"), "warning"),
    ],
)
def test_a_number_is_told_by_its_outcome(
    caplog: pytest.LogCaptureFixture, ended: NumberOutcome, level: str
) -> None:
    """A number that did not change is of no interest; the line has label and last digits."""
    told = LogProgress()
    told.run_started(7, [PhoneNumber(A, "Sales"), PhoneNumber(B)])
    told.number_ended(ended)
    assert logged(caplog) == [("info", "run_started"), (level, "number_ended")]
    assert fields(caplog) == {
        "phone_number": "…4472",
        "label": "Sales",
        "status": ended.status,
        "completeness": None,
        "reason": ended.reason,
        "total_count": None,
        "changes": ended.changes,
        "requests": 3,
        "error_kind": ended.error_kind,
        "error_detail": ended.error_detail,
    }


def test_what_stops_all_numbers_is_a_warning_for_the_first(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Five warnings for each cause, whatever the number of tries; the others are at info."""
    told = LogProgress()
    for tries in range(7):
        why = {name: text.format(tries) for name, text in AWAY.items()}
        told.number_ended(
            outcome("failed", error_kind=why["error_kind"], error_detail=why["error_detail"])
        )
    told.number_ended(outcome("failed", error_kind="token", error_detail="refused"))
    assert [level for level, _ in logged(caplog)] == [*["warning"] * 5, *["info"] * 2, "warning"]


def test_pages_are_told_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the label; not each of them."""
    told = LogProgress()
    told.run_started(7, [PhoneNumber(A, "Sales")])
    page = Page(1, 100, None, 9, (), (), 0, NOON)
    told.page_read(A, page)
    monkeypatch.setattr(progress, "LOG_EVERY_SECONDS", 0.0)
    told.page_read(A, page)
    assert logged(caplog) == [("info", "run_started"), ("info", "reading")]
    assert fields(caplog) == {"phone_number": "…4472", "label": "Sales", "pages": 2, "of": 9}


@pytest.mark.parametrize(
    ("status", "level"),
    [
        ("succeeded", "info"),
        ("partial", "warning"),
        ("interrupted", "warning"),
        ("failed", "error"),
        ("abandoned", "error"),
    ],
)
def test_a_run_ends_at_the_level_of_its_status(
    caplog: pytest.LogCaptureFixture, status: str, level: str
) -> None:
    """With its duration, how many numbers failed, what it did, and a summary in words."""
    number = {"status": "succeeded", "completeness": "proved", "total_count": 20}
    record: Record = {
        **dict.fromkeys(COUNTS, 0),
        "id": 7,
        "mode": "full",
        "status": status,
        "started_at": NOON,
        "finished_at": minute(1),
        "numbers_total": 1,
        "numbers_failed": 0,
        "requests": 5,
        "error_detail": None,
        "numbers": [number],
    }
    LogProgress().run_ended(record)
    assert logged(caplog) == [(level, "run_ended")]
    problem = "" if status in {"succeeded", "partial"} else f"{status}; "
    assert fields(caplog) == {
        "run": 7,
        "mode": None,
        "status": status,
        "seconds": 60.0,
        "numbers_failed": 0,
        "requests": 5,
        "summary": f"Run 7: {problem}1 number, 20 chats, 0 changed, list proved, 5 requests, 1 min",
    }

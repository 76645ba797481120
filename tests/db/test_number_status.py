"""The view number_status: the last good sync, the last attempt, and since when a number fails."""

from typing import Any

import pytest
from sqlalchemy import Engine, insert, text

from etl.db.engine import reading, writing
from etl.db.number_status import number_status
from etl.db.run_log import Record
from etl.db.tables import chat_phone_numbers, chats, phone_numbers, sync_run_numbers, sync_runs
from tests.support.builders import NOON, A, B, minute

NEVER: Record = {
    "phone_number": A,
    "label": "Sales",
    "run_id": None,
    "last_good_sync": None,
    "completeness": None,
    "reason": None,
    "total_count": None,
    "fresh_as_of": None,
    "complete_as_of": None,
    "list_order": None,
    "quick_off": None,
    "quick_hits": None,
    "quick_misses": None,
    "quick_recall_lower": None,
    "last_attempt_at": None,
    "last_status": None,
    "last_error_kind": None,
    "last_error_detail": None,
    "failing_since": None,
    "always_empty": False,
}
OF_LISTS = ("complete_as_of",)
READ: Record = {"missing": 0}  # to the end of the list
GOOD: Record = {"status": "succeeded", "completeness": "consistent", "total_count": 12}
UNPROVED: Record = {"status": "partial", "completeness": "unproved", "reason": "it moved"}
RANGE: Record = {"status": "succeeded", "reason": "only pages 2 to 3"}
AWAY: Record = {"status": "failed", "error_kind": "unavailable", "error_detail": "no API"}
BUSY: Record = {"status": "failed", "error_kind": "busy", "error_detail": "run 1 holds it"}
DEAD: Record = {"status": "abandoned", "error_detail": "its process ended"}
SPENT: Record = {"status": "partial", "reason": "budget: no request is left"}
RUNNING: Record = {"status": "running"}


def store(engine: Engine, *entries: Record) -> None:
    """The number's entries: run 1 ended a minute past noon, run 2 at the second minute, …"""
    with writing(engine) as connection:
        connection.execute(
            insert(phone_numbers),
            [
                {"phone_number": A, "label": "Sales", "first_seen_at": NOON},
                {"phone_number": B, "label": None, "first_seen_at": NOON},
            ],
        )
        for run_id, entry in enumerate(entries, 1):
            run = {"id": run_id, "command": "sync", "started_at": NOON, "numbers_total": 1}
            internal = {"version": "1", "host": "h", "owner": "o", "lease_expires_at": NOON}
            ended = {"status": entry["status"], "numbers_failed": 0}
            connection.execute(insert(sync_runs), {**run, **internal, **ended})
            at = None if entry["status"] == "running" else minute(run_id)
            row = {"run_id": run_id, "phone_number": A, "finished_at": at, **entry}
            row |= READ if entry.get("completeness") else {}
            connection.execute(insert(sync_run_numbers), row)


def status(engine: Engine) -> Record:
    """The number's row; the other number was never synced."""
    with reading(engine) as connection:
        other, found = number_status(connection)
    assert other == {**NEVER, "phone_number": B, "label": None, "last_run_id": None}
    last, at = found.pop("last_run_id"), found["last_attempt_at"]
    assert (last and minute(last)) == at
    return found


def good(run_id: int, **fields: Any) -> Record:
    return {
        **NEVER,
        "run_id": run_id,
        "last_good_sync": minute(run_id),
        "completeness": "consistent",
        "fresh_as_of": NOON,
        "complete_as_of": minute(run_id),
        "total_count": 12,
        "last_attempt_at": minute(run_id),
        "last_status": "succeeded",
        "always_empty": True,
        **fields,
    }


def failing(run_id: int, since: int) -> Record:
    """After run `run_id` and since run `since`, an unavailable API."""
    return {
        "last_attempt_at": minute(run_id),
        "last_status": "failed",
        "last_error_kind": "unavailable",
        "last_error_detail": "no API",
        "failing_since": minute(since),
    }


DEAD_LAST: Record = {"last_status": "abandoned", "last_error_detail": "its process ended"}
CASES: dict[str, tuple[list[Record], Record]] = {
    "no attempt": ([], NEVER),
    "in progress": ([RUNNING], NEVER),
    "busy only": ([BUSY], NEVER),
    "good": ([GOOD], good(1)),
    "in progress again": ([GOOD, RUNNING], good(1)),
    "busy does not count": ([GOOD, BUSY], good(1)),
    "the newest counts, whatever its completeness": (
        [GOOD | {"completeness": "proved"}, GOOD, UNPROVED],
        good(3, **UNPROVED, last_status="partial", total_count=None, complete_as_of=minute(2)),
    ),
    "failing since the first failure": ([GOOD, BUSY, AWAY, AWAY], good(1) | failing(4, 3)),
    "failing since ever": ([AWAY, AWAY], NEVER | failing(2, 1)),
    "a dead process": (
        [GOOD, DEAD],
        good(1, **DEAD_LAST, last_attempt_at=minute(2), failing_since=minute(2)),
    ),
    "recovered": ([GOOD, AWAY, GOOD], good(3)),
    "a page range that succeeded": ([GOOD, AWAY, RANGE], good(1, last_attempt_at=minute(3))),
    "failing again after a page range": (
        [GOOD, AWAY, RANGE, AWAY],
        good(1) | failing(4, 2),
    ),
    "nothing read since a failure": (
        [GOOD, AWAY, SPENT],
        good(1, last_attempt_at=minute(3), last_status="partial", failing_since=minute(2)),
    ),
}


@pytest.mark.parametrize(("entries", "row"), CASES.values(), ids=CASES)
def test_the_status_of_a_number(engine: Engine, entries: list[Record], row: Record) -> None:
    """From its entries in the run log."""
    store(engine, *entries)
    assert status(engine) == {name: row[name] for name in NEVER}


def test_the_last_attempt_is_what_ended_last(engine: Engine) -> None:
    """A run that shares its numbers took this one over from a later run, which had died."""
    store(engine, GOOD | {"finished_at": minute(3)}, DEAD)
    with reading(engine) as connection:
        found = number_status(connection)[1]
    times = dict.fromkeys(("last_good_sync", "complete_as_of", "last_attempt_at"), minute(3))
    assert found == good(1, **times) | {"last_run_id": 1}


def test_a_number_that_ever_listed_a_chat_was_not_always_empty(engine: Engine) -> None:
    """Even if the chat is removed."""
    store(engine, GOOD)
    with writing(engine) as connection:
        times = {"first_seen_at": NOON, "removed_at": NOON}
        connection.execute(insert(chats), {"id": 1, "changed_at": NOON, **times})
        link = {"phone_number": A, "chat_id": 1, **times}
        connection.execute(insert(chat_phone_numbers), link)
    assert status(engine) == good(1, always_empty=False)


def test_an_older_schema_has_the_last_good_sync(engine: Engine) -> None:
    """What only the view tells is null."""
    store(engine, GOOD, UNPROVED, AWAY)
    with engine.connect() as connection:
        if engine.dialect.name == "mysql":  # It commits; the database is that of other tests.
            _, view, *_ = connection.execute(text("SHOW CREATE VIEW number_status")).one()
        connection.execute(text("DROP VIEW number_status"))  # Rolled back at the end.
        other, found = number_status(connection)
        if engine.dialect.name == "mysql":
            connection.exec_driver_sql(view.replace("%", "%%"))
    unknown = [name for name in NEVER if name.startswith(("last_a", "last_s", "last_e"))]
    nulls = dict.fromkeys([*unknown, "failing_since", "always_empty", *OF_LISTS])
    assert (other.pop("last_run_id"), found.pop("last_run_id")) == (None, None)
    unproved = {"completeness": "unproved", "reason": "it moved", "total_count": None}
    assert found == good(2, **unproved, fresh_as_of=minute(2)) | nulls
    assert other == {**NEVER, "phone_number": B, "label": None, "always_empty": None}

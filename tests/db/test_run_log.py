"""The run log: its rows from before the first request to the end of a run."""

import socket
from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import Engine

from etl import __version__
from etl.api.models import ApiUsage
from etl.config import PhoneNumber
from etl.db import leases, run_log, run_records
from etl.db.engine import reading, writing
from etl.db.run_log import Claim, NumberOutcome, RunOutcome
from etl.db.tables import (
    COUNTS,
    Status,
    metadata,
    number_leases,
    phone_numbers,
    sync_run_numbers,
    sync_runs,
)
from tests.support.builders import (
    NOON,
    A,
    B,
    Row,
    Rows,
    close_dead_runs,
    row_of,
    second,
    without,
)


def run_row(**fields: Any) -> Row:
    """The row of a run that this process has just started."""
    return row_of(
        sync_runs,
        **{
            "id": 1,
            "command": "sync",
            "mode": "full",
            "status": "running",
            "started_at": NOON,
            "version": __version__,
            "host": socket.gethostname(),
            "owner": leases.owner_identity(),
            "lease_expires_at": second(60),
            "numbers_total": 0,
            "numbers_failed": 0,
            **fields,
        },
    )


def number_row(phone_number: str = A, **fields: Any) -> Row:
    """The row of a number whose sync has just started."""
    started: Row = {"run_id": 1, "phone_number": phone_number, "status": "running"}
    return row_of(sync_run_numbers, **started | fields)


def public(row: Row) -> Row:
    return without(row, "owner", "lease_expires_at")


def start(engine: Engine, now: datetime = NOON) -> int:
    with writing(engine) as connection:
        return run_log.start(connection, "sync", now=now, lease_seconds=60)


def claim(engine: Engine, *numbers: str, run_id: int = 1, now: datetime = NOON) -> Claim:
    with writing(engine) as connection:
        return run_log.claim(connection, run_id, [PhoneNumber(n) for n in numbers], now)


def close(engine: Engine, outcome: NumberOutcome, run_id: int = 1, now: datetime = NOON) -> None:
    with writing(engine) as connection:
        run_log.close_number(connection, run_id, outcome, now)


def finish(engine: Engine, outcome: RunOutcome, run_id: int = 1, now: datetime = NOON) -> None:
    with writing(engine) as connection:
        run_log.finish(connection, run_id, outcome, now)


def add_counts(
    engine: Engine, counts: dict[str, Counter[str]], usage: Mapping[str | None, ApiUsage]
) -> None:
    with writing(engine) as connection:
        run_log.add_counts(connection, 1, counts, usage)


# Start and claim


def test_a_run_is_logged_before_anything_else(engine: Engine, rows: Rows) -> None:
    """Its row has the command, the host and the expiry of its lease."""
    assert start(engine) == 1
    assert rows(sync_runs) == [run_row()]
    assert rows(sync_run_numbers) == []


def test_run_ids_are_ascending(engine: Engine) -> None:
    """A later run has a higher id."""
    assert [start(engine), start(engine, second(1))] == [1, 2]


def test_a_run_that_starts_twice_starts_once(engine: Engine, rows: Rows) -> None:
    """The answer to its first COMMIT was lost. Its numbers, too, are claimed once."""
    assert [start(engine), start(engine)] == [1, 1]
    claimed = claim(engine, A, B)
    before = [rows(table) for table in metadata.sorted_tables]
    assert start(engine) == 1
    assert claim(engine, A, B, now=second(1)) == claimed
    assert [rows(table) for table in metadata.sorted_tables] == before


def test_a_busy_number_stays_busy_when_it_is_claimed_again(engine: Engine, rows: Rows) -> None:
    """Whether the second claim finds the number held or free, its row is written once."""
    start(engine)
    claim(engine, A)
    start(engine, second(1))
    claimed = claim(engine, A, B, run_id=2, now=second(1))
    before = rows(sync_run_numbers)
    assert claim(engine, A, B, run_id=2, now=second(2)) == claimed
    assert rows(sync_run_numbers) == before
    finish(engine, RunOutcome("succeeded"), run_id=1)
    assert claim(engine, A, B, run_id=2, now=second(3)).held == {A, B}
    assert rows(sync_run_numbers)[-2:] == before[-2:]


def test_claimed_numbers_are_logged(engine: Engine, rows: Rows) -> None:
    """Each number gets a row in the run log, in phone_numbers and in number_leases."""
    start(engine)
    with writing(engine) as connection:
        numbers = [PhoneNumber(A, "Sales"), PhoneNumber(B)]
        claimed = run_log.claim(connection, 1, numbers, second(1))
    assert claimed == Claim(held=frozenset({A, B}), busy={})
    assert rows(sync_runs) == [run_row(numbers_total=2)]
    assert rows(sync_run_numbers) == [number_row(B), number_row(A)]
    assert rows(phone_numbers) == [
        row_of(phone_numbers, phone_number=B, first_seen_at=second(1)),
        row_of(phone_numbers, phone_number=A, label="Sales", first_seen_at=second(1)),
    ]
    assert rows(number_leases) == [
        {"phone_number": B, "run_id": 1},
        {"phone_number": A, "run_id": 1},
    ]


def test_a_busy_number_fails_at_once(engine: Engine, rows: Rows) -> None:
    """Its row names the run that holds it."""
    start(engine)
    claim(engine, A)
    start(engine, second(1))
    claimed = claim(engine, A, run_id=2, now=second(1))
    assert rows(sync_run_numbers) == [
        number_row(),
        number_row(
            run_id=2,
            status="failed",
            finished_at=second(1),
            error_kind="busy",
            error_detail=str(claimed.busy[A]),
        ),
    ]


@pytest.mark.parametrize(
    ("configured", "stored"), [("Support", "Support"), ("Sales", "Sales"), (None, "Sales")]
)
def test_a_label_follows_the_configuration(
    engine: Engine, rows: Rows, configured: str | None, stored: str
) -> None:
    """A new label replaces the old one; without one, the old one stays."""
    for label in ("Sales", configured):
        run_id = start(engine)
        with writing(engine) as connection:
            run_log.claim(connection, run_id, [PhoneNumber(A, label)], NOON)
    assert [row["label"] for row in rows(phone_numbers)] == [stored]


# Counts and ends of numbers


def test_counts_are_added_and_usage_is_replaced(engine: Engine, rows: Rows) -> None:
    """Counts come per batch; usage is each number's total so far."""
    start(engine)
    claim(engine, A, B)
    usage: dict[str | None, ApiUsage] = {A: ApiUsage(3, 2, 1), B: ApiUsage(1)}
    add_counts(engine, {A: Counter(pages=1, chats_seen=100), B: Counter(pages=1)}, usage)
    usage[A] = ApiUsage(5, 3, 1)
    counts = Counter(pages=2, chats_seen=20, rejected=1, texts_cleaned=4)
    add_counts(engine, {A: counts}, usage)
    spent = {"requests": 5, "retries": 3, "throttled": 1}
    counted = {"pages": 3, "chats_seen": 120, "rejected": 1, "texts_cleaned": 4}
    assert rows(sync_run_numbers) == [
        number_row(B, pages=1, requests=1),
        number_row(A, **spent | counted),
    ]


def test_a_number_without_usage_has_none(engine: Engine, rows: Rows) -> None:
    """Reading does not add a key to the client's defaultdict, which another thread uses."""
    start(engine)
    claim(engine, A)
    usage: defaultdict[str | None, ApiUsage] = defaultdict(ApiUsage)
    add_counts(engine, {A: Counter(pages=1)}, usage)
    assert rows(sync_run_numbers) == [number_row(pages=1)]
    assert usage == {}


def test_a_number_that_ends_releases_its_lease(engine: Engine, rows: Rows) -> None:
    """Its row has the outcome, and phone_numbers the time of its first load."""
    start(engine)
    claim(engine, A, B)
    evidence: Row = {"total_count": 2**40, "distinct_ids": 2**40, "missing": 0}
    read: Row = {"completeness": "consistent", "passes": 2}
    outcome = NumberOutcome(A, "succeeded", ApiUsage(7, 1, 0), **read, evidence=evidence)
    close(engine, outcome, now=second(9))
    ended: Row = {"status": "succeeded", "finished_at": second(9), "requests": 7, "retries": 1}
    assert rows(sync_run_numbers) == [number_row(B), number_row(**ended, **read, **evidence)]
    assert [row["first_loaded_at"] for row in rows(phone_numbers)] == [None, second(9)]
    assert rows(number_leases) == [{"phone_number": B, "run_id": 1}]


def test_a_proof_is_written_to_the_earlier_run(engine: Engine, rows: Rows) -> None:
    """A walk that proves the one before it upgrades that one's completeness."""
    unproved: Row = {"status": "succeeded", "completeness": "unproved", "reason": "it moved"}
    for run_id, proved_run in ((1, None), (2, 1)):
        start(engine, second(run_id))
        claim(engine, A, run_id=run_id)
        close(engine, NumberOutcome(A, **unproved, proved_run=proved_run), run_id)
    later = {"run_id": 2, "finished_at": NOON}
    assert rows(sync_run_numbers) == [
        number_row(status="succeeded", finished_at=NOON, completeness="proved"),
        number_row(**unproved | later),
    ]


def test_a_number_that_fails_says_why(engine: Engine, rows: Rows) -> None:
    """Without a full read of its list, the number is not loaded."""
    start(engine)
    claim(engine, A)
    why: Row = {
        "error_kind": "throttled",
        "error_detail": "the API kept answering 429",
    }
    close(engine, NumberOutcome(A, "failed", ApiUsage(8, 7, 8), **why), now=second(9))
    spent: Row = {"requests": 8, "retries": 7, "throttled": 8}
    assert rows(sync_run_numbers) == [
        number_row(status="failed", finished_at=second(9), **spent | why)
    ]
    assert [row["first_loaded_at"] for row in rows(phone_numbers)] == [None]


def test_a_number_is_loaded_after_its_first_full_read(engine: Engine, rows: Rows) -> None:
    """The other number is not, and a second full read does not change the time."""
    for run_id in (1, 2):
        start(engine)
        claim(engine, A, B, run_id=run_id)
        read: Row = {"completeness": "unproved", "reason": "it moved", "evidence": {"missing": 0}}
        done = NumberOutcome(A, "succeeded", **read)
        close(engine, done, run_id, second(run_id))
        finish(engine, RunOutcome("partial"), run_id)
    assert [row["first_loaded_at"] for row in rows(phone_numbers)] == [None, second(1)]


# The end of a run


def test_a_finished_run_has_the_sums_of_its_numbers(engine: Engine, rows: Rows) -> None:
    """Every count of every number, plus the requests that belong to the run."""
    start(engine)
    claim(engine, A, B)
    each = Counter({name: 1 for name in COUNTS if name not in ("requests", "retries", "throttled")})
    usage = ApiUsage(1, 1, 1)
    add_counts(engine, {A: each, B: each}, {A: usage, B: usage})
    close(engine, NumberOutcome(A, "succeeded", ApiUsage(2, 1, 1)))
    close(engine, NumberOutcome(B, "failed", ApiUsage(3, 1, 1), error_kind="unavailable"))
    why: Row = {"error_kind": "unavailable", "error_detail": "the API is unavailable"}
    for now in (second(30), second(31)):  # The answer to the first COMMIT was lost.
        finish(engine, RunOutcome("partial", **why, usage=ApiUsage(10, 2, 0)), now=now)
    sums = {**dict.fromkeys(COUNTS, 2), "requests": 15, "retries": 4, "throttled": 2}
    ended = {"status": "partial", "finished_at": second(30), "numbers_total": 2}
    assert rows(sync_runs) == [run_row(**ended, numbers_failed=1, **sums, **why)]
    assert rows(number_leases) == []


@pytest.mark.parametrize("status", ["interrupted", "failed"])
def test_unfinished_numbers_end_with_their_run(engine: Engine, rows: Rows, status: Status) -> None:
    """They get the run's status and error; a number that had ended keeps its own."""
    start(engine)
    claim(engine, A, B)
    close(engine, NumberOutcome(B, "succeeded"), now=second(1))
    why: Row = {"error_kind": "interrupted", "error_detail": "ended by a signal"}
    finish(engine, RunOutcome(status, **why), now=second(2))
    ended: Row = {"status": status, "finished_at": second(2), **why}
    assert rows(sync_run_numbers) == [
        number_row(B, status="succeeded", finished_at=second(1)),
        number_row(**ended),
    ]
    assert rows(sync_runs) == [run_row(numbers_total=2, numbers_failed=1, **ended)]


def test_a_run_without_numbers_ends_too(engine: Engine, rows: Rows) -> None:
    """Its counts are its own usage."""
    start(engine)
    finish(
        engine, RunOutcome("failed", "token", "the token was refused", ApiUsage(1)), now=second(2)
    )
    why = {"error_kind": "token", "error_detail": "the token was refused"}
    ended = {"status": "failed", "finished_at": second(2), "requests": 1}
    assert rows(sync_runs) == [run_row(**ended, **why)]


def test_an_abandoned_run_stays_abandoned(engine: Engine, rows: Rows) -> None:
    """Another run closes it; if its process was alive after all, its own end changes nothing."""
    start(engine)
    claim(engine, A)
    start(engine, second(60))
    close_dead_runs(engine, second(60))
    claim(engine, A, run_id=2, now=second(61))
    finish(engine, RunOutcome("succeeded"), run_id=1, now=second(70))
    found: Row = {
        "status": "abandoned",
        "finished_at": second(60),
        "error_detail": "its process ended",
    }
    successor = {"id": 2, "started_at": second(60), "lease_expires_at": second(120)}
    assert rows(sync_runs) == [
        run_row(numbers_total=1, numbers_failed=1, **found),
        run_row(numbers_total=1, **successor),
    ]
    assert rows(sync_run_numbers) == [number_row(**found), number_row(run_id=2)]
    assert rows(number_leases) == [{"phone_number": A, "run_id": 2}]


# Queries


def test_runs_are_listed_newest_first(engine: Engine) -> None:
    """At most `limit`, without the internal lease columns."""
    for number in range(3):
        start(engine, second(number))
    with reading(engine) as connection:
        found = run_records.list_runs(connection, 2)
    assert [run["id"] for run in found] == [3, 2]
    assert found[0] == public(run_row(id=3, started_at=second(2)))


def test_one_run_has_its_numbers(engine: Engine) -> None:
    """In the order of the numbers; an unknown run is None."""
    start(engine)
    claim(engine, A, B)
    with reading(engine) as connection:
        assert run_records.get_run(connection, 1) == {
            **public(run_row(numbers_total=2)),
            "numbers": [number_row(B), number_row(A)],
        }
        assert run_records.get_run(connection, 2) is None

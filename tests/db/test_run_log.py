"""The run log: what its rows say from before the first request until the end, whatever it is."""

import socket
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, Table

from etl import __version__
from etl.api.pace import ApiUsage
from etl.config import PhoneNumber
from etl.db import leases
from etl.db import run_log as runs
from etl.db.engine import reading, writing
from etl.db.run_log import Claim, NumberOutcome, RunOutcome
from etl.db.tables import COUNTS, number_leases, phone_numbers, sync_run_numbers, sync_runs

Item = dict[str, Any]
Rows = Callable[[Table], list[Item]]

A, B = "+13343284472", "+13125550100"
NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)


def second(number: int) -> datetime:
    return NOON + timedelta(seconds=number)


def row_of(table: Table, **fields: Any) -> Item:
    """A whole row, in which what is not named is null, or 0 where it is a count."""
    return {
        **{column.name: 0 if column.server_default else None for column in table.columns},
        **fields,
    }


def run_row(**fields: Any) -> Item:
    """A run of this process that has just started."""
    return row_of(
        sync_runs,
        **{
            "id": 1,
            "command": "sync",
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


def number_row(phone_number: str = A, **fields: Any) -> Item:
    """A number whose sync has just started."""
    began = {"run_id": 1, "phone_number": phone_number, "status": "running"}
    return row_of(sync_run_numbers, **{**began, **fields})


def start(engine: Engine, now: datetime = NOON) -> int:
    with writing(engine) as connection:
        return runs.start(connection, "sync", now=now, lease_seconds=60)


def claim(engine: Engine, *numbers: str, run_id: int = 1, now: datetime = NOON) -> Claim:
    with writing(engine) as connection:
        return runs.claim(connection, run_id, [PhoneNumber(n) for n in numbers], now)


def close(engine: Engine, outcome: NumberOutcome, run_id: int = 1, now: datetime = NOON) -> None:
    with writing(engine) as connection:
        runs.close_number(connection, run_id, outcome, now)


def finish(engine: Engine, ending: RunOutcome, run_id: int = 1, now: datetime = NOON) -> None:
    with writing(engine) as connection:
        runs.finish(connection, run_id, ending, now)


def count(engine: Engine, traffic: dict[str, ApiUsage], **counts: Counter[str]) -> None:
    by_number = {A if name == "a" else B: counted for name, counted in counts.items()}
    with writing(engine) as connection:
        runs.add_counts(connection, 1, by_number, traffic)


# From the start


def test_a_run_is_in_the_log_before_anything_else(engine: Engine, rows: Rows) -> None:
    """Its row says what it is, where it runs and until when its lease holds."""
    assert start(engine) == 1
    assert rows(sync_runs) == [run_row()]
    assert rows(sync_run_numbers) == []


def test_runs_count_up(engine: Engine) -> None:
    """A later run has a higher id."""
    assert [start(engine), start(engine)] == [1, 2]


def test_claimed_numbers_are_in_the_log(engine: Engine, rows: Rows) -> None:
    """A row for each number, in the run's log and in the table of numbers."""
    start(engine)
    with writing(engine) as connection:
        numbers = [PhoneNumber(A, "Sales"), PhoneNumber(B)]
        claimed = runs.claim(connection, 1, numbers, second(1))
    assert claimed == Claim(held=frozenset({A, B}), emit_created=frozenset(), busy={})
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


def test_a_busy_number_has_failed_already(engine: Engine, rows: Rows) -> None:
    """Its row says who holds it."""
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
    """A new one replaces the old one; none leaves it."""
    for label in ("Sales", configured):
        run_id = start(engine)
        with writing(engine) as connection:
            runs.claim(connection, run_id, [PhoneNumber(A, label)], NOON)
    assert [row["label"] for row in rows(phone_numbers)] == [stored]


# On the way


def test_counts_add_up_and_traffic_is_a_sum_already(engine: Engine, rows: Rows) -> None:
    """Each batch adds its counts; what was spent so far replaces what was."""
    start(engine)
    claim(engine, A, B)
    traffic = {A: ApiUsage(3, 2, 1), B: ApiUsage(1)}
    count(engine, traffic, a=Counter(pages=1, chats_seen=100), b=Counter(pages=1))
    traffic[A] = ApiUsage(5, 3, 1)
    count(engine, traffic, a=Counter(pages=2, chats_seen=20, rejected=1, texts_cleaned=4))
    spent = {"requests": 5, "retries": 3, "throttled": 1}
    counted = {"pages": 3, "chats_seen": 120, "rejected": 1, "texts_cleaned": 4}
    assert rows(sync_run_numbers) == [
        number_row(B, pages=1, requests=1),
        number_row(A, **spent, **counted),
    ]


def test_a_number_that_ends_gives_its_lease_back(engine: Engine, rows: Rows) -> None:
    """Its row says how it ended; its number's, since when news are news."""
    start(engine)
    claim(engine, A, B)
    evidence = {"total_count": 2**40, "distinct_ids": 2**40}
    told = {"completeness": "consistent", "passes": 2}
    outcome = NumberOutcome(A, "succeeded", ApiUsage(7, 1, 0), **told, evidence=evidence)
    close(engine, outcome, now=second(9))
    ended = {"status": "succeeded", "finished_at": second(9), "requests": 7, "retries": 1}
    assert rows(sync_run_numbers) == [number_row(B), number_row(**ended, **told, **evidence)]
    assert [row["first_loaded_at"] for row in rows(phone_numbers)] == [None, second(9)]
    assert rows(number_leases) == [{"phone_number": B, "run_id": 1}]


def test_a_number_that_fails_says_why(engine: Engine, rows: Rows) -> None:
    """A list that was not read to the end makes no later chat news."""
    start(engine)
    claim(engine, A)
    why = {"error_kind": "throttled", "error_detail": "the API kept asking for fewer requests"}
    close(engine, NumberOutcome(A, "failed", ApiUsage(8, 7, 8), **why), now=second(9))
    spent = {"requests": 8, "retries": 7, "throttled": 8}
    assert rows(sync_run_numbers) == [
        number_row(status="failed", finished_at=second(9), **spent, **why)
    ]
    assert [row["first_loaded_at"] for row in rows(phone_numbers)] == [None]


def test_what_appears_after_the_first_full_list_is_news(engine: Engine, rows: Rows) -> None:
    """Only for the number whose list that was; and the first time stays."""
    for run_id in (1, 2):
        start(engine)
        claimed = claim(engine, A, B, run_id=run_id)
        assert claimed.emit_created == (frozenset() if run_id == 1 else {A})
        done = NumberOutcome(A, "succeeded", completeness="unproved", reason="it moved")
        close(engine, done, run_id, second(run_id))
        finish(engine, RunOutcome("partial"), run_id)
    assert [row["first_loaded_at"] for row in rows(phone_numbers)] == [None, second(1)]


# To the end


def test_a_finished_run_sums_its_numbers_up(engine: Engine, rows: Rows) -> None:
    """Every count of every number, and the requests that belong to none."""
    start(engine)
    claim(engine, A, B)
    each = Counter({name: 1 for name in COUNTS if name not in ("requests", "retries", "throttled")})
    count(engine, {A: ApiUsage(1, 1, 1), B: ApiUsage(1, 1, 1)}, a=each, b=each)
    close(engine, NumberOutcome(A, "succeeded", ApiUsage(2, 1, 1)))
    close(engine, NumberOutcome(B, "failed", ApiUsage(3, 1, 1), error_kind="unavailable"))
    why = {"error_kind": "unavailable", "error_detail": "the API stayed away"}
    finish(engine, RunOutcome("partial", **why, traffic=ApiUsage(10, 2, 0)), now=second(30))
    sums = {**dict.fromkeys(COUNTS, 2), "requests": 15, "retries": 4, "throttled": 2}
    ended = {"status": "partial", "finished_at": second(30), "numbers_total": 2}
    assert rows(sync_runs) == [run_row(**ended, numbers_failed=1, **sums, **why)]
    assert rows(number_leases) == []


@pytest.mark.parametrize(
    ("status", "of_numbers"), [("interrupted", "interrupted"), ("failed", "failed")]
)
def test_unfinished_numbers_end_with_their_run(
    engine: Engine, rows: Rows, status: str, of_numbers: str
) -> None:
    """For the run's reason; those that had ended keep their own end."""
    start(engine)
    claim(engine, A, B)
    close(engine, NumberOutcome(B, "succeeded"), now=second(1))
    why = {"error_kind": "interrupted", "error_detail": "ended by a signal"}
    finish(engine, RunOutcome(status, **why), now=second(2))
    ended = {"finished_at": second(2), **why}
    assert rows(sync_run_numbers) == [
        number_row(B, status="succeeded", finished_at=second(1)),
        number_row(status=of_numbers, **ended),
    ]
    totals = {"numbers_total": 2, "numbers_failed": 1}
    assert rows(sync_runs) == [run_row(status=status, **totals, **ended)]


def test_a_run_without_numbers_ends_too(engine: Engine, rows: Rows) -> None:
    """Its sums are what it spent itself."""
    start(engine)
    finish(
        engine, RunOutcome("failed", "token", "the token was refused", ApiUsage(1)), now=second(2)
    )
    why = {"error_kind": "token", "error_detail": "the token was refused"}
    ended = {"status": "failed", "finished_at": second(2), "requests": 1}
    assert rows(sync_runs) == [run_row(**ended, **why)]


def test_an_abandoned_run_stays_abandoned(engine: Engine, rows: Rows) -> None:
    """The next run says when it was found dead; if it was not, its own end changes nothing."""
    start(engine)
    claim(engine, A)
    start(engine, second(60))
    claim(engine, A, run_id=2, now=second(61))
    finish(engine, RunOutcome("succeeded"), run_id=1, now=second(70))
    found = {"status": "abandoned", "finished_at": second(60), "error_detail": "its process ended"}
    successor = {"id": 2, "started_at": second(60), "lease_expires_at": second(120)}
    assert rows(sync_runs) == [
        run_row(numbers_total=1, numbers_failed=1, **found),
        run_row(numbers_total=1, **successor),
    ]
    assert rows(sync_run_numbers) == [number_row(**found), number_row(run_id=2)]
    assert rows(number_leases) == [{"phone_number": A, "run_id": 2}]


# Reading it


def test_recent_runs_come_newest_first(engine: Engine) -> None:
    """As many as asked for, without what only the leases are about."""
    for number in range(3):
        start(engine, second(number))
    with reading(engine) as connection:
        found = runs.list_runs(connection, 2)
    public = run_row(id=3, started_at=second(2))
    del public["owner"], public["lease_expires_at"]
    assert [run["id"] for run in found] == [3, 2]
    assert found[0] == public


def test_one_run_in_full_has_its_numbers(engine: Engine) -> None:
    """In the order of the numbers; an unknown run is None."""
    start(engine)
    claim(engine, A, B)
    with reading(engine) as connection:
        found = runs.get_run(connection, 1)
        assert runs.get_run(connection, 2) is None
    assert found
    assert found["numbers"] == [number_row(B), number_row(A)]
    assert {**run_row(numbers_total=2), **found} == {**found, **run_row(numbers_total=2)}


def test_freshness_is_the_last_list_that_was_read(engine: Engine) -> None:
    """A later failure does not make it fresher, and a number never read has none."""
    start(engine)
    claim(engine, A, B)
    told = {"completeness": "unproved", "reason": "it moved"}
    evidence = {"total_count": 12}
    close(engine, NumberOutcome(A, "partial", **told, evidence=evidence), now=second(1))
    finish(engine, RunOutcome("partial"))
    start(engine)
    claim(engine, A, run_id=2)
    close(engine, NumberOutcome(A, "failed"), run_id=2, now=second(100))
    with reading(engine) as connection:
        found = {record["phone_number"]: record for record in runs.last_good_syncs(connection)}
    read = {"run_id": 1, "last_good_sync": second(1), **told, **evidence}
    assert {**found[A], **read, "label": None} == found[A]
    assert {found[B][name] for name in read} == {None}

"""Numbers that several runs share: which are left, and who gets which."""

import pytest
from sqlalchemy import Engine, update

from etl.config import PhoneNumber
from etl.db import leases, run_log, shared_list
from etl.db.engine import reading, writing
from etl.db.run_log import NumberOutcome, RunOutcome
from etl.db.shared_list import MAX_FAILURES, Failure, SharedRun, Standing
from etl.db.tables import Completeness, Status, number_leases, sync_run_numbers, sync_runs
from etl.errors import LeaseLostError
from tests.support.builders import A, B, C, Rows, close_dead_runs, second, start_run
from tests.support.marks import only_postgres

NUMBERS = (A, B, C)


def run_of(run_id: int, since: int = 0, begun: int = 0) -> SharedRun:
    """A run for which all earlier ones count, since and from these seconds past noon."""
    return SharedRun(run_id, second(since), second(begun), first_run=1)


def begin(engine: Engine, at: int, *numbers: str, command: str = "sync") -> int:
    """A run that holds the numbers and has stored all of them."""
    run_id, _ = start_run(engine, *numbers, command=command, now=second(at))
    with writing(engine) as connection:
        run_log.remember_numbers(connection, [PhoneNumber(n) for n in NUMBERS], second(at))
    return run_id


def close(
    engine: Engine,
    run_id: int,
    number: str,
    at: int,
    status: Status = "succeeded",
    completeness: Completeness | None = "consistent",
    total: int | None = None,
    kind: str | None = None,
) -> None:
    outcome = NumberOutcome(
        number,
        status,
        completeness=completeness,
        evidence={"total_count": total},
        error_kind=kind,
        error_detail=kind,
    )
    with writing(engine) as connection:
        run_log.close_number(connection, run_id, outcome, second(at))


def end(engine: Engine, run_id: int, at: int) -> None:
    with writing(engine) as connection:
        run_log.finish(connection, run_id, RunOutcome("succeeded"), second(at))


def fail(engine: Engine, number: str, at: int, kind: str) -> None:
    """A run of its own that fails with the number."""
    run_id = begin(engine, at, number)
    close(engine, run_id, number, at, "failed", None, kind=kind)
    end(engine, run_id, at)


def left(engine: Engine, since: int) -> list[str]:
    with reading(engine) as connection:
        return shared_list.unfinished(connection, NUMBERS, run_of(0, since=since))


def look(engine: Engine, run: SharedRun) -> Standing:
    with reading(engine) as connection:
        return shared_list.look(connection, run, NUMBERS)


def claim(engine: Engine, run: SharedRun, count: int = 3, claimed: int = 0) -> list[str]:
    with writing(engine) as connection:
        return shared_list.claim(connection, run, NUMBERS, count=count, claimed=claimed)[0]


# What is left


def test_all_is_left_at_first(engine: Engine) -> None:
    """In the order of the list."""
    begin(engine, 0)
    assert left(engine, 0) == [A, B, C]


def test_the_longest_list_is_the_first(engine: Engine) -> None:
    """One of unknown length may be longer still."""
    run_id = begin(engine, 0, A, B)
    close(engine, run_id, A, 1, total=100)
    close(engine, run_id, B, 1, total=900)
    assert left(engine, 2) == [C, B, A]


def test_what_was_finished_since_is_not_left(engine: Engine) -> None:
    """At that very moment or later."""
    run_id = begin(engine, 0, A, B)
    close(engine, run_id, A, 10)
    close(engine, run_id, B, 11, "partial", "unproved")
    assert [left(engine, since) for since in (10, 11, 12)] == [[C], [A, C], [A, B, C]]


@pytest.mark.parametrize("ending", ["backfill", "range", "budget", "failed"])
def test_a_list_that_no_sync_read_to_the_end_is_left(engine: Engine, ending: str) -> None:
    """Neither a backfill nor a part of it settles what is missing."""
    command = "backfill" if ending in {"backfill", "range"} else "sync"
    status: Status = {"budget": "partial", "failed": "failed"}.get(ending, "succeeded")  # type: ignore[assignment]
    run_id = begin(engine, 0, A, command=command)
    close(engine, run_id, A, 10, status, "consistent" if ending == "backfill" else None)
    end(engine, run_id, 11)
    assert left(engine, 0) == [A, B, C]
    assert look(engine, run_of(9, since=0)).finished == frozenset()


@pytest.mark.parametrize(("is_quick", "finished"), [(False, frozenset()), (True, frozenset({A}))])
def test_a_quick_reading_is_enough_for_quick_runs(
    engine: Engine, is_quick: bool, finished: frozenset[str]
) -> None:
    """It settles nothing that is missing, which is what a full run is for."""
    run_id = begin(engine, 0, A)
    close(engine, run_id, A, 10, completeness="quick")
    end(engine, run_id, 11)
    run = run_of(9, since=5)._replace(is_quick=is_quick)
    assert look(engine, run).finished == finished


# How numbers stand


def test_a_number_is_held_until_its_run_releases_it(engine: Engine) -> None:
    """By this run or by another one."""
    one, other = begin(engine, 0, A), begin(engine, 1, B)
    assert look(engine, run_of(one)) == Standing(frozenset({A}), frozenset({B}))
    close(engine, other, B, 5)
    assert look(engine, run_of(one)) == Standing(frozenset({A}), finished=frozenset({B}))
    assert look(engine, run_of(one, since=6)) == Standing(frozenset({A}))


def test_a_failure_counts_from_the_beginning_of_the_run(engine: Engine) -> None:
    """What failed before may succeed now; that a run died or was busy is no failure."""
    fail(engine, A, 1, "token")
    fail(engine, B, 8, "unavailable")
    fail(engine, C, 9, "busy")
    dead = begin(engine, 10, C)
    close_dead_runs(engine, second(1000))
    standing = look(engine, run_of(dead + 1, begun=5))
    assert standing == Standing(failures={B: [Failure("unavailable", "unavailable")]})
    assert [standing.is_free(number) for number in NUMBERS] == [True, True, True]


@pytest.mark.parametrize("kind", ["config", "refused", "token"])
def test_what_another_try_cannot_help_is_given_up(engine: Engine, kind: str) -> None:
    """At once."""
    fail(engine, A, 1, kind)
    standing = look(engine, run_of(9))
    assert (standing.is_given_up(A), standing.is_free(A), standing.is_free(B)) == (
        True,
        False,
        True,
    )


def test_what_fails_again_and_again_is_given_up(engine: Engine) -> None:
    """Else a hundred runs would try it one after another."""
    for tries in range(1, MAX_FAILURES + 1):
        fail(engine, A, tries, "unavailable")
        assert look(engine, run_of(9)).is_given_up(A) == (tries == MAX_FAILURES)


# Claims


def test_free_numbers_are_claimed(engine: Engine, rows: Rows) -> None:
    """As many as asked for, in the list's order, with a lease, a row, and the run's total."""
    run_id = begin(engine, 0)
    assert claim(engine, run_of(run_id), 2) == [A, B]
    assert [row["phone_number"] for row in rows(number_leases)] == sorted([A, B])
    assert {row["status"] for row in rows(sync_run_numbers)} == {"running"}
    assert rows(sync_runs)[0]["numbers_total"] == 2


def test_what_others_hold_or_have_finished_is_not_claimed(engine: Engine) -> None:
    """Without an entry of its own in the run log."""
    other = begin(engine, 0, A, B)
    close(engine, other, B, 1)
    run_id = begin(engine, 2)
    assert claim(engine, run_of(run_id)) == [C]
    assert claim(engine, run_of(run_id), claimed=1) == [C]  # Its own: see below.


def test_a_claim_that_is_repeated_claims_the_same(engine: Engine, rows: Rows) -> None:
    """The answer to its first COMMIT was lost."""
    run_id = begin(engine, 0)
    first = claim(engine, run_of(run_id), 2)
    before = [rows(number_leases), rows(sync_run_numbers), rows(sync_runs)]
    assert claim(engine, run_of(run_id), 2) == first
    assert [rows(number_leases), rows(sync_run_numbers), rows(sync_runs)] == before


def test_a_run_that_was_closed_claims_nothing(engine: Engine, rows: Rows) -> None:
    """Its lease would never end."""
    run_id = begin(engine, 0)
    close_dead_runs(engine, second(1000))
    with pytest.raises(LeaseLostError):
        claim(engine, run_of(run_id))
    assert rows(number_leases) == []


@only_postgres
def test_claims_at_once_do_not_wait_for_each_other(engine: Engine) -> None:
    """The second one takes what the first one leaves, before that has committed."""
    first, other = begin(engine, 0), begin(engine, 1)
    with writing(engine) as connection:
        taken, _ = shared_list.claim(connection, run_of(first), NUMBERS, count=2, claimed=0)
        assert claim(engine, run_of(other)) == [C]
    assert (taken, claim(engine, run_of(other), claimed=1)) == ([A, B], [C])


@only_postgres
def test_a_closing_run_waits_for_its_claim(
    engine: Engine, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that no number is claimed by a run that is closed."""
    from etl.db.backends import postgresql
    from etl.errors import DatabaseUnavailableError

    monkeypatch.setitem(postgresql._SETTINGS, "lock_timeout", "10ms")
    run_id = begin(engine, 0)
    with writing(engine) as connection:
        shared_list.claim(connection, run_of(run_id), NUMBERS, count=1, claimed=0)
        with pytest.raises(DatabaseUnavailableError):
            close_dead_runs(engine, second(1000))
    assert close_dead_runs(engine, second(1000)) == [run_id]
    assert (rows(number_leases), rows(sync_run_numbers)[0]["status"]) == ([], "abandoned")


def test_open_runs_are_counted(engine: Engine) -> None:
    """The oldest first."""
    one, two = begin(engine, 0), begin(engine, 1)
    with writing(engine) as connection:
        connection.execute(update(sync_runs).where(sync_runs.c.id == 1).values(numbers_failed=0))
        assert shared_list.open_runs(connection) == [one, two]
    end(engine, one, 2)
    with reading(engine) as connection:
        assert shared_list.open_runs(connection) == [two]
        assert leases.dead_runs(connection, second(3)) == []

"""Leases: taken, refused, released, and void once a run is dead."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, delete, select, update

from etl.db import leases
from etl.db.backends import backend
from etl.db.engine import open_engine, reading, writing
from etl.db.run_log import Claim
from etl.db.tables import number_leases, run_fences, sync_run_numbers, sync_runs
from etl.errors import DatabaseUnavailableError, LeaseLostError
from tests.support.builders import NOON, A, B, C, close_dead_runs, second, start_run
from tests.support.marks import only_servers
from tests.support.outages import do_not_wait_for_locks, session_of

ROOT = Path(leases.__file__).parents[2]

PRINT_OWNER = "from etl.db import leases; print(leases.owner_identity(), flush=True); input()"
CLAIM = f"""
import sys
from datetime import datetime
from etl.config import PhoneNumber
from etl.db import run_log
from etl.db.engine import open_engine, writing
now = datetime.fromisoformat(sys.argv[2])
with writing(open_engine(sys.argv[1])) as connection:
    run_id = run_log.start(connection, "sync", now=now, lease_seconds=60)
    run_log.claim(connection, run_id, [PhoneNumber("{A}")], now)
print(run_id, flush=True)
input()
"""


def holders(engine: Engine) -> dict[str, int]:
    with reading(engine) as connection:
        return {row.phone_number: row.run_id for row in connection.execute(select(number_leases))}


def statuses(engine: Engine) -> dict[int, str]:
    with reading(engine) as connection:
        return {row.id: row.status for row in connection.execute(select(sync_runs))}


def set_owner(engine: Engine, owner: str) -> None:
    with writing(engine) as connection:
        connection.execute(update(sync_runs).values(owner=owner))


@contextmanager
def child(program: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another Python process and the line that it prints; killed at the end."""
    command, pipe = [sys.executable, "-c", program, *arguments], subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, text=True, stdin=pipe, stdout=pipe) as process:
        assert process.stdout
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


# Taking and releasing


def test_free_numbers_are_taken(engine: Engine) -> None:
    """The first run holds every number that it claims."""
    run_id, claim = start_run(engine, A, B)
    assert claim == Claim(held=frozenset({A, B}), busy={})
    assert holders(engine) == {A: run_id, B: run_id}


def test_a_held_number_names_its_holder(engine: Engine) -> None:
    """The second run learns which run holds it, where and since when, and takes the free ones."""
    first, _ = start_run(engine, A)
    second_run, claim = start_run(engine, A, B, now=second(5))
    with reading(engine) as connection:
        host = connection.execute(select(sync_runs.c.host)).scalars().first()
    assert claim.held == {B}
    assert {n: (h.run_id, h.host, h.since) for n, h in claim.busy.items()} == {
        A: (first, host, NOON)
    }
    assert str(claim.busy[A]) == (
        f"run {first} on {host} has held it since 2025-06-01 12:00:00+00:00; wait for it to end"
    )
    assert holders(engine) == {A: first, B: second_run}


def test_a_run_without_numbers_takes_no_lease(engine: Engine) -> None:
    """Its claim is empty."""
    _, claim = start_run(engine)
    assert claim == Claim(held=frozenset(), busy={})


@pytest.mark.slow
def test_more_numbers_than_a_statement_has_parameters(engine: Engine) -> None:
    """PostgreSQL allows 65,535 in one statement; the next run sees all of them as held."""
    numbers = [f"+1312{place:07}" for place in range(70_000)]
    first, claim = start_run(engine, *numbers)
    assert (len(claim.held), claim.busy) == (70_000, {})
    with writing(engine) as connection:
        holders = leases.take(connection, first + 1, numbers)
    assert {row.id for row in holders.values()} == {first}
    assert len(holders) == 70_000


def test_a_released_number_is_free(engine: Engine) -> None:
    """A run releases some of its numbers, or all; never those of another run."""
    run_id, _ = start_run(engine, A, B, C)
    other, _ = start_run(engine, A, now=second(1))
    with writing(engine) as connection:
        leases.release(connection, other)
        leases.release(connection, run_id, [A])
    assert holders(engine) == {B: run_id, C: run_id}
    with writing(engine) as connection:
        leases.release(connection, run_id)
    assert holders(engine) == {}


# Renewal and expiry


def test_a_renewed_lease_outlives_its_first_expiry(engine: Engine) -> None:
    """A run keeps its numbers as long as its heartbeat renews the lease."""
    run_id, _ = start_run(engine, A)
    with writing(engine) as connection:
        leases.renew(connection, run_id, leases.expiry(second(40), 60))
    assert close_dead_runs(engine, second(99)) == []
    _, claim = start_run(engine, A, now=second(99))
    assert claim.busy[A].run_id == run_id


def test_an_expired_lease_is_void(engine: Engine) -> None:
    """A run without a heartbeat is closed as abandoned, and its numbers are free."""
    dead, _ = start_run(engine, A, B)
    assert close_dead_runs(engine, second(60)) == [dead]
    run_id, claim = start_run(engine, A, now=second(60))
    assert claim.held == {A}
    assert holders(engine) == {A: run_id}
    assert statuses(engine) == {dead: "abandoned", run_id: "running"}
    with reading(engine) as connection:
        numbers = connection.execute(
            select(sync_run_numbers.c.status, sync_run_numbers.c.finished_at).where(
                sync_run_numbers.c.run_id == dead
            )
        ).all()
    assert [tuple(number) for number in numbers] == [("abandoned", second(60))] * 2


def test_a_lease_holds_until_it_expires(engine: Engine) -> None:
    """A microsecond before its expiry, the number is still busy."""
    first, _ = start_run(engine, A)
    almost = second(60) - timedelta(microseconds=1)
    assert close_dead_runs(engine, almost) == []
    _, claim = start_run(engine, A, now=almost)
    assert claim.busy[A].run_id == first


def test_a_lease_that_no_run_can_have_is_void(engine: Engine) -> None:
    """It expires more than an hour from now: the clock was wrong when it was taken."""
    tomorrow = NOON + timedelta(days=1)
    from_the_future, _ = start_run(engine, A, now=tomorrow)
    in_an_hour, _ = start_run(engine, B, now=NOON + leases.LONGEST_LEASE - timedelta(seconds=60))
    assert close_dead_runs(engine, NOON) == [from_the_future]
    assert holders(engine) == {B: in_an_hour}


# Fences


def test_an_abandoned_run_can_no_longer_write(engine: Engine) -> None:
    """Neither its heartbeat nor its next batch succeeds."""
    stalled, _ = start_run(engine, A)
    close_dead_runs(engine, second(61))
    with writing(engine) as connection:
        with pytest.raises(LeaseLostError) as renewing:
            leases.renew(connection, stalled, second(200))
        with pytest.raises(LeaseLostError) as moving:
            leases.move_fence(connection, stalled, 1)
    assert [caught.value.exit_code for caught in (renewing, moving)] == [7, 7]


def test_each_batch_moves_the_fence_once(engine: Engine) -> None:
    """A batch that was committed before is recognised; one that was rolled back is not."""
    run_id, _ = start_run(engine, A)
    other, _ = start_run(engine, B, now=second(1))

    def move(batch: int, run_id: int = run_id) -> bool:
        with writing(engine) as connection:
            return leases.move_fence(connection, run_id, batch)

    def roll_back(batch: int) -> None:
        with writing(engine) as connection:
            assert leases.move_fence(connection, run_id, batch)
            raise KeyError

    assert [move(1), move(1), move(2)] == [True, False, True]
    with pytest.raises(KeyError):
        roll_back(3)
    assert [move(3), move(3), move(1, other)] == [True, False, True]


def test_a_run_writes_only_numbers_that_it_holds(engine: Engine) -> None:
    """Any of its own numbers; not another run's, nor one that no run holds."""
    run_id, _ = start_run(engine, A, B)
    start_run(engine, C, now=second(1))
    with writing(engine) as connection:
        for numbers in ([A], [A, B], [A, A], []):
            leases.ensure_held(connection, run_id, numbers)
        for numbers in ([C], [A, C], ["+13125550111"]):
            with pytest.raises(LeaseLostError):
                leases.ensure_held(connection, run_id, numbers)


def test_the_writers_lock_is_made_if_it_is_missing(engine: Engine) -> None:
    """A database whose rows were deleted by hand goes on working."""
    with writing(engine) as connection:
        connection.execute(delete(run_fences))
    for _ in range(2):
        with writing(engine) as connection:
            leases.lock_writers(connection)
    with reading(engine) as connection:
        assert connection.execute(select(run_fences.c.run_id)).scalars().all() == [leases.WRITERS]


@only_servers
def test_one_run_writes_at_a_time(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits for the first to commit."""
    do_not_wait_for_locks(engine, monkeypatch)
    with writing(engine) as connection:
        leases.lock_writers(connection)
        with pytest.raises(DatabaseUnavailableError), writing(engine) as other:
            leases.lock_writers(other)
    with writing(engine) as other:
        leases.lock_writers(other)


@only_servers
def test_a_run_starts_and_lives_beside_a_batch_that_stays_open(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run's, and its own: only its next batch waits for the writers' lock."""
    do_not_wait_for_locks(engine, monkeypatch)
    stalled, _ = start_run(engine, A)
    with writing(engine, stalled) as batch:
        leases.lock_writers(batch)
        leases.move_fence(batch, stalled, 1)
        run_id, claim = start_run(engine, A, B, now=second(1))
        for each in (stalled, run_id):
            with writing(engine) as connection:
                leases.renew(connection, each, second(70))
        assert claim.held == {B}
        assert claim.busy.keys() == {A}
        assert close_dead_runs(engine, second(71)) == [run_id]  # the stalled one is left out
    assert close_dead_runs(engine, second(71)) == [stalled]


@only_servers
def test_the_session_of_a_stalled_run_is_ended(engine: Engine) -> None:
    """Its batch is rolled back and it can be closed; no session but its own is ended."""
    stalled, _ = start_run(engine, A)
    other, _ = start_run(engine, B, now=second(1))
    end_sessions = backend(engine.dialect).end_sessions

    found: list[list[int]] = []  # Looked at later: a failing rollback would hide what it shows.

    def write_while_it_is_ended() -> None:
        with writing(engine, stalled) as batch:
            leases.move_fence(batch, stalled, 1)
            found.append([session_of(batch)])
            with writing(engine, other) as connection:
                leases.move_fence(connection, other, 1)
                found.append(end_sessions(connection, f"linq-etl/{stalled}"))
                found.append(end_sessions(connection, f"linq-etl/{other}"))
            found.append(close_dead_runs(engine, second(60)))
            batch.execute(select(sync_runs))

    with pytest.raises(DatabaseUnavailableError):
        write_while_it_is_ended()
    process, *others = found
    assert others == [process, [], [stalled]]
    with pytest.raises(LeaseLostError), writing(engine, stalled) as connection:
        leases.move_fence(connection, stalled, 1)


@only_servers
def test_a_run_of_another_database_is_not_ended(
    engine: Engine, request: pytest.FixtureRequest
) -> None:
    """Its id is the same; neither is it named as the holder of a lock."""
    database = backend(engine.dialect)
    kind = {"postgresql": "postgres", "mysql": "mysql"}[engine.dialect.name]
    elsewhere = open_engine(request.getfixturevalue(f"{kind}_server"))
    with writing(elsewhere, 1) as theirs, writing(engine) as connection:
        assert database.end_sessions(connection, "linq-etl/1") == []
        assert database.lock_holders(connection) == []
        assert theirs.exec_driver_sql("SELECT 1").scalar_one() == 1
    elsewhere.dispose()


# Detecting dead processes


def test_a_living_process_is_not_dead() -> None:
    """Neither this process nor another on this machine."""
    with child(PRINT_OWNER) as (_, owner):
        assert not leases.is_dead(owner)
        assert owner != leases.owner_identity()
    assert not leases.is_dead(leases.owner_identity())


def test_a_killed_process_is_dead() -> None:
    """As a zombie, before its parent has waited for it, and after that."""
    with child(PRINT_OWNER) as (process, owner):
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert leases.is_dead(owner)
        process.wait()
        assert leases.is_dead(owner)


def test_a_reused_pid_is_another_process() -> None:
    """A process with the owner's PID that started at another time is not the owner."""
    space_and_pid, _, started = leases.owner_identity().rpartition(" ")
    assert leases.is_dead(f"{space_and_pid} {int(started) - 1}")


@pytest.mark.parametrize("owner", ["", "nonsense", "a b c", "boot pid:[1] 1 2", "boot pid:[1] x y"])
def test_an_invisible_process_is_not_dead(owner: str) -> None:
    """A process of another machine or container may be alive."""
    assert not leases.is_dead(owner)


def test_a_run_in_another_pid_namespace_ends_by_expiry(engine: Engine) -> None:
    """Its PID means nothing here, so only the expiry counts."""
    remote, _ = start_run(engine, A)
    set_owner(engine, "3f520413-0000-0000-0000-000000000000 pid:[4026531836] 999999999 1")
    assert close_dead_runs(engine, second(59)) == []
    assert close_dead_runs(engine, second(60)) == [remote]
    _, claim = start_run(engine, A, now=second(60))
    assert claim.held == {A}


def test_a_killed_run_frees_its_numbers_at_once(engine: Engine, database_url: str) -> None:
    """On the same machine, long before the lease expires."""
    with child(CLAIM, database_url, NOON.isoformat()) as (process, run_id):
        assert close_dead_runs(engine, second(1)) == []
        process.kill()
        process.wait()
        assert close_dead_runs(engine, second(2)) == [int(run_id)]
    _, claim = start_run(engine, A, now=second(3))
    assert claim.held == {A}
    assert statuses(engine)[int(run_id)] == "abandoned"

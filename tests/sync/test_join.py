"""Runs that share their numbers, in one process, against the sandbox."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, update

from etl.api.client import LinqClient
from etl.api.pace import Pace
from etl.config import PhoneNumber
from etl.db import run_log
from etl.db.engine import database_clock, writing
from etl.db.run_log import RunOutcome
from etl.db.tables import phone_numbers, sync_run_numbers, sync_runs
from etl.sandbox import Faults, Sandbox, World, build_world
from etl.sync import join, reach
from etl.sync.context import RunOptions
from etl.sync.progress import LogProgress
from etl.sync.run import RunResult, sync
from etl.sync.shard import Shard
from tests.support.builders import Rows, config_with, start_run
from tests.support.command import CLOSED_PORT, TOKEN, HoldingSandbox, held, stored

NUMBERS = tuple(f"+1312555{n:04}" for n in range(12))
UNKNOWN = "+13125559999"  # not of the account
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("SHORTEST_WAIT", 0.01), ("LONGEST_WAIT", 0.05), ("TICK", 0.01)):
        monkeypatch.setattr(join, name, seconds)
    monkeypatch.setattr(reach, "WAIT", 0.01)


@pytest.fixture
def world() -> World:
    return build_world(numbers=NUMBERS, chats_per_number=7)


@pytest.fixture
def sandbox(world: World) -> Iterator[Sandbox]:
    with Sandbox(world) as running:
        yield running


async def run(
    engine: Engine, url: str, *numbers: str, share: float = 1.0, **options: Any
) -> RunResult:
    """A run of its own, with a client of its own."""
    token = options.pop("token", TOKEN)
    config = config_with(API__BASE_URL=url, API__PER_PAGE=2, API__MAX_ATTEMPTS=1)
    chosen = tuple(PhoneNumber(n, token=type(config.token)(token)) for n in numbers or NUMBERS)  # type: ignore[misc]
    clock = database_clock(engine)
    async with LinqClient(config.api, Pace(8, share=share), clock=clock) as client:
        asked_for = RunOptions(chosen, **{"since": HOUR} | options)
        return await sync(config, engine, client, options=asked_for, progress=LogProgress())


def together(engine: Engine, sandbox: Sandbox, count: int, *numbers: str) -> list[RunResult]:
    async def run_all() -> list[RunResult]:
        return await asyncio.gather(*(run(engine, sandbox.url, *numbers) for _ in range(count)))

    return asyncio.run(run_all())


def alone(engine: Engine, url: str, *numbers: str, **options: Any) -> RunResult:
    return asyncio.run(run(engine, url, *numbers, **options))


def synced(rows: Rows) -> Counter[str]:
    """How often each number was synced well."""
    entries = [row for row in rows(sync_run_numbers) if row["status"] == "succeeded"]
    return Counter(row["phone_number"] for row in entries)


async def until(happened: Callable[[], object]) -> None:
    """Wait for what a run writes."""
    for _ in range(3000):
        if happened():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


def listings(sandbox: Sandbox) -> int:
    return sum(request.path.endswith("/phone_numbers") for request in sandbox.requests)


def test_each_number_is_synced_once(
    engine: Engine, rows: Rows, sandbox: Sandbox, world: World, database_url: str
) -> None:
    """By one of four runs, whose requests are those of a single run; each has a row in the log."""
    results = together(engine, sandbox, 4)
    assert [result.exit_code for result in results] == [0, 0, 0, 0]
    assert synced(rows) == Counter(NUMBERS)
    assert stored(database_url) == held(world, NUMBERS)
    runs = rows(sync_runs)
    assert [run["status"] for run in runs] == ["succeeded"] * 4
    assert sum(run["numbers_total"] for run in runs) == len(rows(sync_run_numbers)) == 12
    # A run that finds another one's answer to List Phone Numbers late asks too.
    shared = sandbox.request_count - listings(sandbox)
    alone(engine, sandbox.url, since=timedelta())
    assert sandbox.request_count - listings(sandbox) == 2 * shared


def test_what_is_finished_is_left_out(engine: Engine, rows: Rows, sandbox: Sandbox) -> None:
    """With exit code 0 and no request; a number that is new is synced."""
    alone(engine, sandbox.url, *NUMBERS[:5])
    before = sandbox.request_count
    again = alone(engine, sandbox.url, *NUMBERS[:5])
    assert (again.exit_code, again.record["status"]) == (0, "succeeded")
    assert (again.record["numbers_total"], sandbox.request_count) == (0, before)
    assert alone(engine, sandbox.url, *NUMBERS[:6]).record["numbers_total"] == 1
    assert synced(rows) == Counter(NUMBERS[:6])


def test_all_is_synced_again_if_nothing_counts_as_finished(
    engine: Engine, sandbox: Sandbox
) -> None:
    """With --since 0s."""
    for _ in range(2):
        done = alone(engine, sandbox.url, *NUMBERS[:2], since=timedelta())
        assert (done.exit_code, done.record["numbers_total"]) == (0, 2)


def test_a_number_of_a_dead_run_is_taken_over(engine: Engine, rows: Rows, sandbox: Sandbox) -> None:
    """Of another machine: once its lease has expired."""
    begun = database_clock(engine)() - timedelta(seconds=59.7)
    dead, _ = start_run(engine, *NUMBERS[:3], now=begun)
    with writing(engine) as connection:
        connection.execute(update(sync_runs).values(owner="elsewhere"))
    assert alone(engine, sandbox.url).exit_code == 0
    assert synced(rows) == Counter(NUMBERS)
    entries = [row["status"] for row in rows(sync_run_numbers) if row["run_id"] == dead]
    assert entries == ["abandoned"] * 3


def test_a_number_that_another_run_holds_is_waited_for(
    engine: Engine, rows: Rows, sandbox: Sandbox
) -> None:
    """Until that run releases it; without success, this run syncs it."""
    other, _ = start_run(engine, NUMBERS[0], now=database_clock(engine)())

    async def wait_and_release() -> RunResult:
        waiting = asyncio.ensure_future(run(engine, sandbox.url, *NUMBERS[:2]))
        await until(lambda: synced(rows) == Counter(NUMBERS[1:2]))
        assert not waiting.done()
        with writing(engine) as connection:
            now = database_clock(engine)()
            run_log.finish(connection, other, RunOutcome("interrupted"), now)
        return await waiting

    done = asyncio.run(wait_and_release())
    assert (done.exit_code, done.record["numbers_total"]) == (0, 2)
    assert synced(rows) == Counter(NUMBERS[:2])


def test_a_number_that_fails_makes_each_run_partial(
    engine: Engine, rows: Rows, sandbox: Sandbox
) -> None:
    """The API does not know it, so no more than one of them tries it; each one names it."""
    results = together(engine, sandbox, 3, *NUMBERS[:6], UNKNOWN)
    assert [result.exit_code for result in results] == [3, 3, 3]
    for result in results:
        (error,) = result.errors
        assert error.startswith("…9999: The API refused the request (HTTP 404")
    assert synced(rows) == Counter(NUMBERS[:6])
    assert sum(row["phone_number"] == UNKNOWN for row in rows(sync_run_numbers)) == 1


@pytest.mark.parametrize(("token", "code"), [("wrong", 4), (TOKEN, 5)])
def test_what_fails_alike_gives_its_exit_code(
    engine: Engine, rows: Rows, sandbox: Sandbox, token: str, code: int
) -> None:
    """No run goes on claiming numbers while no request can succeed."""
    url = sandbox.url if code == 4 else CLOSED_PORT
    done = alone(engine, url, token=token)
    assert (done.exit_code, done.record["status"]) == (code, "failed")
    assert (code == 4) == (len(rows(sync_run_numbers)) == 12)
    assert done.errors[0].startswith("12 of 12 numbers: ")


def test_a_failure_that_another_run_repaired_is_none(
    engine: Engine, rows: Rows, sandbox: Sandbox
) -> None:
    """The run that failed with it waits for the other one, and ends with 0."""
    holder, _ = start_run(engine, NUMBERS[1], now=database_clock(engine)())
    sandbox.faults = Faults(server_error=1)

    async def fail_then_repair() -> tuple[RunResult, RunResult]:
        failing = asyncio.ensure_future(run(engine, sandbox.url, *NUMBERS[:2]))
        await until(lambda: any(row["status"] == "failed" for row in rows(sync_run_numbers)))
        sandbox.faults = Faults()
        repairing = asyncio.ensure_future(run(engine, sandbox.url, *NUMBERS[:2]))
        await until(lambda: synced(rows))
        with writing(engine) as connection:
            now = database_clock(engine)()
            run_log.finish(connection, holder, RunOutcome("interrupted"), now)
        return await asyncio.gather(failing, repairing)

    failed, repaired = asyncio.run(fail_then_repair())
    assert (failed.exit_code, repaired.exit_code) == (0, 0)
    assert (failed.errors, failed.record["numbers_failed"]) == ([], 1)
    assert synced(rows) == Counter(NUMBERS[:2])


def test_a_run_that_was_taken_for_dead_joins_again(
    engine: Engine, rows: Rows, world: World
) -> None:
    """As a new run: the numbers that it had not finished are free, and it does not end with 7."""

    async def close_it(sandbox: HoldingSandbox) -> RunResult:
        running = asyncio.ensure_future(run(engine, sandbox.url))
        await until(sandbox.holding.is_set)
        with writing(engine) as connection:
            now = database_clock(engine)()
            run_log.finish(connection, 1, RunOutcome("abandoned"), now)
        sandbox.release()
        return await running

    with HoldingSandbox(world, answers=1, number=NUMBERS[0]) as sandbox:
        assert asyncio.run(close_it(sandbox)).exit_code == 0
    assert synced(rows) == Counter(NUMBERS)
    assert [row["status"] for row in rows(sync_runs)] == ["abandoned", "succeeded"]


@pytest.mark.slow
def test_shards_sync_every_number(engine: Engine, rows: Rows, sandbox: Sandbox) -> None:
    """One of them asks for all which numbers are reached; one without numbers succeeds."""
    results = [
        alone(engine, sandbox.url, since=None, shard=Shard(k, 40), share=1 / 40) for k in range(40)
    ]
    assert {result.exit_code for result in results} == {0}
    assert {result.record["status"] for result in results} == {"succeeded"}
    assert min(result.record["numbers_total"] for result in results) == 0
    assert (synced(rows), listings(sandbox)) == (Counter(NUMBERS), 1)
    assert len(rows(phone_numbers)) == len(NUMBERS)

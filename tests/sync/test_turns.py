"""Whose turn it is in runs whose requests do not suffice for all of their numbers."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from msgspec import structs
from sqlalchemy import Engine

from etl.api.client import LinqClient
from etl.api.pace import Pace
from etl.config import PhoneNumber
from etl.db.engine import database_clock, reading
from etl.db.tables import sync_run_numbers
from etl.db.turns import Turn, last_turns
from etl.sandbox import Sandbox, World
from etl.sync import join, reach
from etl.sync.context import RunOptions
from etl.sync.progress import LogProgress
from etl.sync.run import RunResult, sync
from etl.sync.shard import Shard
from etl.sync.turns import LEFT_OUT, requests_for
from tests.support.builders import Rows, config_with
from tests.support.command import TOKEN

NUMBERS = tuple(f"+1312555{n:04}" for n in range(10))
NEEDED = 6  # requests for a list of seven chats on four pages
TOO_LONG = (
    "budget: the list needs about {} requests, more than the {} of a run, so it never completes; "
    "raise --max-requests or sync.max_requests"
)
LEFT = f"budget: about {NEEDED} requests are needed, more than are left in this run"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("SHORTEST_WAIT", 0.01), ("LONGEST_WAIT", 0.05), ("TICK", 0.01)):
        monkeypatch.setattr(join, name, seconds)
    monkeypatch.setattr(reach, "WAIT", 0.01)


@pytest.fixture
def world() -> World:
    """Ten numbers with seven chats each."""
    made = World(NUMBERS)
    made.populate([(number,) for number in NUMBERS for _ in range(7)])
    return made


@pytest.fixture
def sandbox(world: World) -> Iterator[Sandbox]:
    with Sandbox(world) as running:
        yield running


def run(
    engine: Engine, sandbox: Sandbox, limit: int | None, *numbers: str, **options: Any
) -> RunResult:
    """A run with a client of its own."""
    budget = {} if limit is None else {"SYNC__MAX_REQUESTS": limit}
    config = config_with(API__BASE_URL=sandbox.url, API__PER_PAGE=2, **budget)
    token = type(config.token)(TOKEN)  # type: ignore[misc]
    chosen = tuple(PhoneNumber(number, token=token) for number in numbers or NUMBERS)

    async def run_once() -> RunResult:
        clock = database_clock(engine)
        async with LinqClient(config.api, Pace(8), clock=clock) as client:
            asked_for = RunOptions(chosen, **options)
            return await sync(config, engine, client, options=asked_for, progress=LogProgress())

    return asyncio.run(run_once())


def synced(rows: Rows) -> Counter[str]:
    """How often each list was read to its end."""
    entries = [row for row in rows(sync_run_numbers) if row["status"] == "succeeded"]
    return Counter(row["phone_number"] for row in entries)


def entries_of(result: RunResult) -> dict[str, tuple[str, str | None, int]]:
    """By number: its status, the reason and the requests."""
    return {
        row["phone_number"]: (row["status"], row["reason"], row["requests"])
        for row in result.record["numbers"]
    }


@pytest.mark.parametrize(
    "options",
    [{}, {"since": timedelta()}, {"shard": Shard(0, 1)}],
    ids=["alone", "joined", "shard"],
)
def test_each_number_gets_its_turn(
    engine: Engine, rows: Rows, sandbox: Sandbox, options: dict[str, Any]
) -> None:
    """If a run can read two lists of ten, five runs read all of them, and so do the next five."""
    for turn in (1, 2):
        for _ in range(5):
            sandbox.request_count = 0
            assert run(engine, sandbox, 2 * NEEDED + 3, **options).exit_code == 3
            assert sandbox.request_count <= 2 * NEEDED + 3
        assert synced(rows) == Counter(dict.fromkeys(NUMBERS, turn))


def test_the_next_run_begins_with_what_was_left_out(engine: Engine, sandbox: Sandbox) -> None:
    """What is known to need more than is left is not begun; what is new is begun and given up."""
    first = run(engine, sandbox, 9, *NUMBERS[:3])
    ended = entries_of(first)
    assert ended[NUMBERS[0]] == ("succeeded", None, NEEDED)
    assert ended[NUMBERS[1]] == ("partial", LEFT, 1)
    assert ended[NUMBERS[2]][0] == "partial"
    second = run(engine, sandbox, 9, *NUMBERS[:3])
    assert entries_of(second) == {
        NUMBERS[0]: ("partial", LEFT_OUT, 0),
        NUMBERS[1]: ("succeeded", None, NEEDED),
        NUMBERS[2]: ("partial", LEFT_OUT, 0),
    }
    third = run(engine, sandbox, 9, *NUMBERS[:3])
    assert entries_of(third)[NUMBERS[2]] == ("succeeded", None, NEEDED)
    with reading(engine) as connection:
        turns = last_turns(connection, NUMBERS[:4])
    ids = [result.record["id"] for result in (first, second, third)]
    assert turns == {n: Turn(run_id, 7) for n, run_id in zip(NUMBERS, ids, strict=False)}


@pytest.mark.parametrize("options", [{}, {"since": timedelta()}], ids=["alone", "joined"])
def test_a_list_longer_than_the_budget_is_named_and_gives_way(
    engine: Engine, rows: Rows, sandbox: Sandbox, world: World, options: dict[str, Any]
) -> None:
    """It costs one request while others wait, however often it comes; the others get their turn."""
    world.populate([(NUMBERS[0],)] * 60)
    needed = requests_for(34)
    reason = TOO_LONG.format(needed, 15)
    assert entries_of(run(engine, sandbox, 15, **options))[NUMBERS[0]] == ("partial", reason, 1)
    for _ in range(5):
        run(engine, sandbox, 15, **options)
    assert {*synced(rows)} == {*NUMBERS[1:]}
    entries = [row for row in rows(sync_run_numbers) if row["phone_number"] == NUMBERS[0]]
    assert {row["reason"] for row in entries} <= {reason, LEFT_OUT}


def test_a_list_longer_than_the_budget_gets_what_the_others_leave(
    engine: Engine, sandbox: Sandbox, world: World
) -> None:
    """If no other number waits, it is read as far as the requests go."""
    world.populate([(NUMBERS[0],)] * 60)
    reason = TOO_LONG.format(requests_for(34), 15)
    run(engine, sandbox, 15, *NUMBERS[:2])
    ended = entries_of(run(engine, sandbox, 15, *NUMBERS[:2]))
    assert ended == {
        NUMBERS[0]: ("partial", reason, 15 - NEEDED),
        NUMBERS[1]: ("succeeded", None, NEEDED),
    }


def test_a_list_that_the_api_does_not_count_gives_way_too(
    engine: Engine, rows: Rows, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has had all requests of a run, so the next run begins with others."""
    honest = LinqClient.list_chats

    async def uncounted(self: LinqClient, context: Any, page_number: int, **again: bool) -> Any:
        page = await honest(self, context, page_number, **again)
        if context.phone_number != NUMBERS[0]:
            return page
        return structs.replace(page, total_count=None, last_page=None)

    monkeypatch.setattr(LinqClient, "list_chats", uncounted)
    limit = 4
    first = entries_of(run(engine, sandbox, limit, *NUMBERS[:2]))
    named = f"budget: the list needs more than the {limit} requests of a run; raise --max-requests"
    assert first[NUMBERS[0]] == ("partial", f"{named} or sync.max_requests", limit)
    assert first[NUMBERS[1]] == ("partial", LEFT_OUT, 0)
    run(engine, sandbox, 8, *NUMBERS[:2])
    assert synced(rows) == Counter([NUMBERS[1]])


def test_a_number_that_was_left_out_keeps_what_came_before(
    engine: Engine, rows: Rows, sandbox: Sandbox
) -> None:
    """Its last walk is still proved by the next one."""
    run(engine, sandbox, None, *NUMBERS[:2])
    left_out = run(engine, sandbox, NEEDED, *NUMBERS[:2])
    assert entries_of(left_out)[NUMBERS[1]] == ("partial", LEFT_OUT, 0)
    run(engine, sandbox, None, *NUMBERS[:2])
    of_second = [row for row in rows(sync_run_numbers) if row["phone_number"] == NUMBERS[1]]
    assert [row["completeness"] for row in of_second] == ["proved", None, "consistent"]


def test_a_backfill_goes_on_in_the_next_run(
    engine: Engine, rows: Rows, sandbox: Sandbox, world: World
) -> None:
    """Its list may need more than a run has, but it has to get beyond the pages it reads again."""
    world.populate([(NUMBERS[0],)] * 60)
    named = entries_of(run(engine, sandbox, 10, NUMBERS[0], command="backfill"))
    assert named == {NUMBERS[0]: ("partial", TOO_LONG.format(21, 10), 10)}
    for _ in range(3):
        assert run(engine, sandbox, 26, NUMBERS[0], command="backfill").exit_code in {0, 3}
    assert synced(rows) == Counter([NUMBERS[0]])

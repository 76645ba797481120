"""The benchmark's virtual day: what it counts, on a short one."""

import asyncio
from bisect import bisect_right
from itertools import pairwise

import pytest
from sqlalchemy import Engine

from etl.db.tables import sync_run_numbers, sync_runs
from etl.sandbox import Message
from etl.sandbox.world import Order
from tests.benchmarks.virtual_day import (
    LATENCY,
    PER_PAGE,
    Clock,
    Day,
    ScheduleMode,
    Staleness,
    VirtualAccount,
    rotate,
    schedule,
    staleness,
)
from tests.support.builders import NOON, Rows

RUNS = 12


def short_day(account: VirtualAccount, mode: ScheduleMode) -> Day:
    async def run() -> Day:
        with account.serving():
            await account.learn()
            return await account.day(schedule(mode, account.order, pages=6), runs=RUNS)

    return asyncio.run(run())


@pytest.mark.slow
@pytest.mark.parametrize("order", ["recency", "id"])
def test_a_day_of_full_runs(engine: Engine, rows: Rows, order: Order) -> None:
    """A run every 15 minutes finds what happened before it; the rest counts until the end."""
    account = VirtualAccount(engine, order, chats=300, clock=Clock(NOON))
    day = short_day(account, "full")
    runs = rows(sync_runs)[-RUNS:]
    begins = [row["started_at"].timestamp() for row in runs]
    end = begins[0] + RUNS * 15 * 60
    found = [message for message in account.messages if message.at < begins[-1]]
    waits = [
        ([*begins, end])[bisect_right(begins, message.at)] - message.at
        for message in account.messages
    ]

    assert [after - before for before, after in pairwise(begins)] == [15 * 60] * (RUNS - 1)
    assert (day.runs, day.full_walks) == (RUNS, RUNS)
    assert (day.requests, day.pages) == tuple(
        sum(row[name] for row in runs) for name in ("requests", "pages")
    )
    assert (day.staleness.messages, day.staleness.found) == (len(account.messages), len(found))
    assert day.staleness.mean_seconds == pytest.approx(sum(waits) / len(waits), abs=1)
    assert (day.rotation is not None) == (order == "id")


@pytest.mark.slow
@pytest.mark.parametrize("order", ["recency", "id"])
def test_a_day_of_quick_runs(engine: Engine, rows: Rows, order: Order) -> None:
    """A run every 5 minutes; in order of ids, each may make a third of a full walk's requests."""
    account = VirtualAccount(engine, order, chats=300, clock=Clock(NOON))
    day = short_day(account, "quick")
    runs, numbers = rows(sync_runs)[-RUNS:], rows(sync_run_numbers)[-RUNS:]
    begins = [row["started_at"].timestamp() for row in runs]

    assert [after - before for before, after in pairwise(begins)] == [5 * 60] * (RUNS - 1)
    assert {row["mode"] for row in runs} == {"quick"}
    assert (order == "id") == all(row["requests"] == 2 for row in runs)
    assert day.requests == sum(row["requests"] for row in runs)
    assert day.full_walks == len([row for row in numbers if row["completeness"] != "quick"])
    assert day.staleness.found > len(account.messages) / 2


def test_a_message_is_stale_until_it_is_found() -> None:
    """One that is not found is stale until the end; one that a request in flight sees, never."""
    messages = [Message(0, 1, 5), Message(10, 1, 6), Message(20, 2, 9)]
    found_at = {5: 30.0, 6: 9.9, 9: None}

    spent = staleness(messages, lambda message: found_at[message.message_count], end=100)

    assert spent == Staleness(messages=3, found=2, mean_seconds=(30 + 0 + 80) / 3)


def test_rotation_reads_page_after_page() -> None:
    """It begins again after the last page there is, and a new chat may begin another page."""
    before = range(2 * PER_PAGE)
    new_chat = 2 * PER_PAGE
    messages = [Message(1, 0, 2), Message(1, PER_PAGE, 2), Message(150, new_chat, 1)]
    begins = [0, 100, 200, 300, 400]

    found_at = rotate(before, [*before, new_chat], messages, begins, requests=7)

    # Page 1 at 0; 2 at 100; 1 and 2 at 200 and a moment later; 3 at 300; 1 and 2 at 400.
    assert [found_at(message) for message in messages] == [200, 100, 300]
    assert found_at(Message(350, PER_PAGE, 3)) == 400 + LATENCY
    assert found_at(Message(350, new_chat, 2)) is None

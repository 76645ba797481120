"""One transaction after another: in order, in batches, to the end, and no further than a lease."""

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, Table, event
from sqlalchemy.exc import OperationalError

from etl.api import decode as wire
from etl.api.models import ApiUsage
from etl.config import PhoneNumber
from etl.db import run_log as runs
from etl.db.engine import writing
from etl.db.run_log import NumberOutcome
from etl.db.store.batch import ObservedPage
from etl.db.tables import chats, phone_numbers, sync_run_numbers
from etl.errors import DatabaseError, LeaseLostError
from etl.sync.writer import BATCH, Writer

Item = dict[str, Any]
Rows = Callable[[Table], list[Item]]

A, B, OURS_NOT = "+13343284472", "+13125550100", "+13125550199"
NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)
DONE = NumberOutcome(A, "succeeded", ApiUsage(requests=9), completeness="consistent", passes=1)


def page(chat_id: int, under: str = A) -> ObservedPage:
    """A page with one chat."""
    body = json.dumps({"data": [{"id": chat_id}]}).encode()
    return ObservedPage(under, wire.decode_page(body, 1, NOON), emit_created=False)


def start_run(engine: Engine, now: datetime = NOON) -> int:
    """A run that holds both numbers."""
    with writing(engine) as connection:
        run_id = runs.start(connection, "sync", now=now, lease_seconds=60)
        runs.claim(connection, run_id, [PhoneNumber(A), PhoneNumber(B)], now)
    return run_id


@pytest.fixture
def writer(engine: Engine) -> Writer:
    traffic: dict[str, ApiUsage] = defaultdict(ApiUsage, {A: ApiUsage(requests=5)})
    return Writer(engine, start_run(engine), lambda: NOON, traffic)


@pytest.fixture
def commits(engine: Engine, writer: Writer) -> list[str]:
    """Grows by one with each commit from now on."""
    seen: list[str] = []
    event.listen(engine, "commit", lambda _: seen.append("commit"))
    return seen


async def write(writer: Writer, *items: ObservedPage | NumberOutcome) -> None:
    """Hand the items over, then write until all of them are stored."""
    for item in items:
        await writer.put(item)
    await ended_first(writer.run(), writer.drain())


async def ended_first(*coroutines: Awaitable[None]) -> None:
    """Run together until one ends, and raise its error if it has one; cancel the others."""
    tasks = [asyncio.ensure_future(one) for one in coroutines]
    done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    for task in done:
        task.result()


def stored(rows: Rows) -> list[int]:
    return [row["id"] for row in rows(chats)]


def test_a_page_is_stored_and_counted(writer: Writer, rows: Rows) -> None:
    """Its chats, its counts, and what its number has spent so far."""
    asyncio.run(write(writer, page(1)))
    assert stored(rows) == [1]
    (of_a,) = [row for row in rows(sync_run_numbers) if row["phone_number"] == A]
    assert [of_a[name] for name in ("pages", "chats_inserted", "requests")] == [1, 1, 5]
    assert of_a["status"] == "running"


def test_what_waits_together_is_stored_together(
    writer: Writer, rows: Rows, commits: list[str]
) -> None:
    """A full queue of pages is one transaction."""
    asyncio.run(write(writer, *map(page, range(BATCH))))
    assert stored(rows) == list(range(BATCH))
    assert len(commits) == 1


def test_what_is_drained_is_stored_at_once(writer: Writer, rows: Rows, commits: list[str]) -> None:
    """Who waits for the end does not wait for a batch to gather."""

    async def one_by_one() -> None:
        for number in range(3):
            await writer.put(page(number))
            await writer.drain()

    async def both() -> None:
        await ended_first(writer.run(), one_by_one())

    asyncio.run(both())
    assert stored(rows) == [0, 1, 2]
    assert len(commits) == 3


def test_a_page_alone_is_stored_a_moment_later(writer: Writer, rows: Rows, engine: Engine) -> None:
    """It does not wait for others to fill its batch, nor for anybody to ask."""

    async def until_committed() -> None:
        committed, loop = asyncio.Event(), asyncio.get_running_loop()
        event.listen(engine, "commit", lambda _: loop.call_soon_threadsafe(committed.set))
        await writer.put(page(1))
        await committed.wait()

    asyncio.run(ended_first(writer.run(), until_committed()))
    assert stored(rows) == [1]


def test_a_number_closes_after_its_pages(writer: Writer, rows: Rows) -> None:
    """In one transaction its last page is stored first, then its end and the end of its lease."""
    asyncio.run(write(writer, page(1), page(2, B), page(3), DONE))
    of_b, of_a = rows(sync_run_numbers)
    assert [of_a[name] for name in ("status", "pages", "requests")] == ["succeeded", 2, 9]
    assert [of_b[name] for name in ("status", "pages", "requests")] == ["running", 1, 0]
    assert [row["first_loaded_at"] for row in rows(phone_numbers)] == [None, NOON]


def test_a_closed_number_takes_no_more_pages(writer: Writer, rows: Rows) -> None:
    """With its end its lease was given back."""

    async def go_on_after_the_end() -> None:
        await write(writer, DONE)
        with pytest.raises(LeaseLostError):
            await write(writer, page(1))

    asyncio.run(go_on_after_the_end())
    assert stored(rows) == []


def test_who_hands_over_waits_while_the_writer_is_behind(writer: Writer) -> None:
    """No more than a batch gathers in memory."""

    async def fill() -> bool:
        for number in range(BATCH):
            await writer.put(page(number))
        waiting = asyncio.ensure_future(writer.put(page(BATCH)))
        for _ in range(10):
            await asyncio.sleep(0)
        waits = not waiting.done()
        waiting.cancel()
        return waits

    assert asyncio.run(fill())


def test_a_failing_transaction_ends_it(engine: Engine, writer: Writer, rows: Rows) -> None:
    """With the error, and with nothing of its batch."""

    @event.listens_for(engine, "commit")
    def fail(_: Any) -> None:
        raise OperationalError("COMMIT", None, Exception("could not write"))

    with pytest.raises(DatabaseError, match="could not write") as caught:
        asyncio.run(write(writer, page(1), page(2)))
    assert caught.value.exit_code == 6
    assert stored(rows) == []


def test_another_runs_number_is_not_written(writer: Writer, rows: Rows) -> None:
    """One page that the run may not write, and its whole batch is refused."""
    with pytest.raises(LeaseLostError):
        asyncio.run(write(writer, page(1), page(2, OURS_NOT)))
    assert stored(rows) == []


def test_a_stalled_writer_writes_no_more(engine: Engine, writer: Writer, rows: Rows) -> None:
    """Its lease expired and another run took over: neither its pages nor its verdict count."""

    async def go_on() -> None:
        for item in (page(1), DONE):
            with pytest.raises(LeaseLostError):
                await write(writer, item)

    start_run(engine, NOON + timedelta(seconds=60))
    asyncio.run(go_on())
    assert stored(rows) == []
    assert [row["status"] for row in rows(sync_run_numbers)] == ["abandoned"] * 2 + ["running"] * 2


def test_cancelled_it_finishes_the_transaction_in_hand(
    engine: Engine, writer: Writer, rows: Rows
) -> None:
    """A page that is being stored when the signal comes is stored; those behind it are not."""

    async def cancel_while_it_waits_for_the_lock() -> None:
        begun, loop = asyncio.Event(), asyncio.get_running_loop()

        def tell(*_: Any) -> None:
            loop.call_soon_threadsafe(begun.set)

        with writing(engine):
            event.listen(engine, "do_connect", tell)
            running = asyncio.ensure_future(writer.run())
            await writer.put(page(1))
            await begun.wait()
            await writer.put(page(2))
            running.cancel()
            for _ in range(10):
                await asyncio.sleep(0)
            assert not running.done()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        assert running.cancelled()

    engine.dispose()
    asyncio.run(cancel_while_it_waits_for_the_lock())
    assert stored(rows) == [1]

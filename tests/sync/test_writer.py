"""One transaction after another: in order, in batches, and only while the leases last."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Awaitable
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

from etl.api.models import ApiUsage
from etl.db.engine import writing
from etl.db.run_log import NumberOutcome
from etl.db.store.batch import ObservedPage
from etl.db.store.removals import Removals
from etl.db.tables import chats, phone_numbers, sync_run_numbers
from etl.errors import DatabaseError, LeaseLostError
from etl.sync.writer import BATCH, Writer
from tests.support.builders import NOON, A, B, C, Rows, minute, observed_page, start_run

DONE = NumberOutcome(A, "succeeded", ApiUsage(requests=9), completeness="consistent", passes=1)


def page(chat_id: int, phone_number: str = A) -> ObservedPage:
    """A page with one chat."""
    return observed_page({"id": chat_id}, phone_number=phone_number)


@pytest.fixture
def writer(engine: Engine) -> Writer:
    """The writer of a run that holds A and B, and has spent five requests on A."""
    run_id, _ = start_run(engine, A, B)
    usage: dict[str | None, ApiUsage] = defaultdict(ApiUsage, {A: ApiUsage(requests=5)})
    return Writer(engine, run_id, lambda: NOON, usage)


@pytest.fixture
def commits(engine: Engine, writer: Writer) -> list[str]:
    """Grows by one with each commit from now on."""
    seen: list[str] = []
    event.listen(engine, "commit", lambda _: seen.append("commit"))
    return seen


async def write(writer: Writer, *items: ObservedPage | Removals | NumberOutcome) -> None:
    """Queue the items, then write until all of them are stored."""
    for item in items:
        await writer.put(item)
    await ended_first(writer.run(), writer.drain())


async def ended_first(*coroutines: Awaitable[None]) -> None:
    """Run together until one ends, and raise its error if it has one; cancel the others."""
    tasks = [asyncio.ensure_future(each) for each in coroutines]
    done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    for task in done:
        task.result()


def stored(rows: Rows) -> list[int]:
    return [row["id"] for row in rows(chats)]


def test_a_page_is_stored_and_counted(writer: Writer, rows: Rows) -> None:
    """Its chat, its counts, and the requests that its number has spent so far."""
    asyncio.run(write(writer, page(1)))
    assert stored(rows) == [1]
    (of_a,) = [row for row in rows(sync_run_numbers) if row["phone_number"] == A]
    assert [of_a[name] for name in ("pages", "chats_inserted", "requests")] == [1, 1, 5]
    assert of_a["status"] == "running"


def test_a_full_queue_is_one_transaction(writer: Writer, rows: Rows, commits: list[str]) -> None:
    """A batch is everything that was queued together."""
    asyncio.run(write(writer, *map(page, range(BATCH))))
    assert stored(rows) == list(range(BATCH))
    assert len(commits) == 1


def test_a_drain_does_not_wait_for_a_batch(writer: Writer, rows: Rows, commits: list[str]) -> None:
    """The queued pages are stored at once."""

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
    """Neither a full batch nor a drain is needed."""

    async def until_committed() -> None:
        committed, loop = asyncio.Event(), asyncio.get_running_loop()
        event.listen(engine, "commit", lambda _: loop.call_soon_threadsafe(committed.set))
        await writer.put(page(1))
        await committed.wait()

    asyncio.run(ended_first(writer.run(), until_committed()))
    assert stored(rows) == [1]


def test_a_number_closes_after_its_pages(writer: Writer, rows: Rows) -> None:
    """In one transaction, its pages are stored, then its outcome, and its lease is released."""
    asyncio.run(write(writer, page(1), page(2, B), page(3), DONE))
    of_b, of_a = rows(sync_run_numbers)
    assert [of_a[name] for name in ("status", "pages", "requests")] == ["succeeded", 2, 9]
    assert [of_b[name] for name in ("status", "pages", "requests")] == ["running", 1, 0]
    assert [row["first_loaded_at"] for row in rows(phone_numbers)] == [None, NOON]


def test_removals_follow_the_pages_before_them(writer: Writer, rows: Rows) -> None:
    """A chat that was listed and then found gone is removed, and counted."""
    gone = Removals(A, gone=(1,), left=(), missing=(), observed_at=minute(1))
    asyncio.run(write(writer, page(1), page(2), gone))
    assert [row["removed_at"] for row in rows(chats)] == [minute(1), None]
    assert [row["chats_removed"] for row in rows(sync_run_numbers)] == [0, 1]


def test_a_closed_number_takes_no_more_pages(writer: Writer, rows: Rows) -> None:
    """Its lease is released."""

    async def write_after_the_end() -> None:
        await write(writer, DONE)
        with pytest.raises(LeaseLostError):
            await write(writer, page(1))

    asyncio.run(write_after_the_end())
    assert stored(rows) == []


def test_put_waits_while_the_queue_is_full(writer: Writer) -> None:
    """So that memory holds no more than a batch."""

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


def test_a_failed_transaction_ends_the_writer(engine: Engine, writer: Writer, rows: Rows) -> None:
    """With the error, and without a row of its batch."""

    @event.listens_for(engine, "commit")
    def fail(_: Any) -> None:
        raise OperationalError("COMMIT", None, Exception("could not write"))

    with pytest.raises(DatabaseError, match="could not write") as caught:
        asyncio.run(write(writer, page(1), page(2)))
    assert caught.value.exit_code == 6
    assert stored(rows) == []


def test_a_number_without_a_lease_is_not_written(writer: Writer, rows: Rows) -> None:
    """One such page, and the whole batch is refused."""
    with pytest.raises(LeaseLostError):
        asyncio.run(write(writer, page(1), page(2, C)))
    assert stored(rows) == []


def test_a_stalled_writer_writes_no_more(engine: Engine, writer: Writer, rows: Rows) -> None:
    """After another run took over its expired lease, neither pages nor an outcome are stored."""

    async def continue_writing() -> None:
        for item in (page(1), DONE):
            with pytest.raises(LeaseLostError):
                await write(writer, item)

    start_run(engine, A, B, now=minute(1))
    asyncio.run(continue_writing())
    assert stored(rows) == []
    assert [row["status"] for row in rows(sync_run_numbers)] == ["abandoned"] * 2 + ["running"] * 2


def test_cancellation_waits_for_the_transaction_in_progress(
    engine: Engine, writer: Writer, rows: Rows
) -> None:
    """Its page is stored; pages that are still queued are not."""

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

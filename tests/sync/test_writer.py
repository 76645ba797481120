"""One transaction after another: in order, in batches, and only while the leases last."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Awaitable, Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from msgspec import structs
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import OperationalError
from tenacity import wait_none

from etl.api.models import ApiUsage
from etl.db.engine import writing
from etl.db.run_log import NumberOutcome
from etl.db.store.batch import ObservedPage
from etl.db.store.pages import store_pages
from etl.db.store.removals import Removals
from etl.db.tables import (
    chat_events,
    chat_message_counts,
    chats,
    phone_numbers,
    rejected_records,
    sync_run_numbers,
    sync_runs,
)
from etl.db.transactions import Transactions
from etl.errors import DatabaseError, LeaseLostError
from etl.sync.lease_keeper import LeaseKeeper
from etl.sync.writer import BATCH, MAX_QUEUE_BYTES, Item, Writer
from tests.support.builders import (
    NOON,
    A,
    B,
    C,
    Rows,
    chat,
    close_dead_runs,
    load_numbers,
    minute,
    observed_page,
    start_run,
)
from tests.support.marks import only_servers
from tests.support.outages import lost_answers

DONE = NumberOutcome(
    A, "succeeded", ApiUsage(requests=9), "consistent", passes=1, evidence={"missing": 0}
)


def sized_page(chat_id: int, size: int) -> ObservedPage:
    """A page that counts as so many bytes."""
    small = page(chat_id)
    return replace(small, page=structs.replace(small.page, size=size))


def page(chat_id: int, phone_number: str = A) -> ObservedPage:
    """A page with one chat."""
    return observed_page({"id": chat_id}, phone_number=phone_number)


@pytest.fixture
def writer(engine: Engine) -> Writer:
    """The writer of a run that holds A and B, and has spent five requests on A."""
    run_id, _ = start_run(engine, A, B)
    return writer_of(engine, run_id)


def writer_of(engine: Engine, run_id: int) -> Writer:
    usage: dict[str | None, ApiUsage] = defaultdict(ApiUsage, {A: ApiUsage(requests=5)})
    transactions = Transactions(engine, patience=60, run_id=run_id, wait=wait_none())
    return Writer(transactions, run_id, lambda: NOON, usage, least_recall=0.99)


@pytest.fixture
def commits(engine: Engine, writer: Writer) -> list[str]:
    """Grows by one with each commit from now on."""
    seen: list[str] = []
    event.listen(engine, "commit", lambda _: seen.append("commit"))
    return seen


async def write(writer: Writer, *items: Item) -> None:
    """Queue the items, then write until all of them are stored."""
    await ended_first(writer.run(), write_all(writer, items))


async def write_all(writer: Writer, items: Iterable[Item]) -> None:
    """Queue the items and wait until all of them are stored."""
    for item in items:
        await writer.put(item)
    await writer.drain()


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


@pytest.mark.parametrize(
    "sizes",
    [[MAX_QUEUE_BYTES // 2, MAX_QUEUE_BYTES // 2, 1], [3 * MAX_QUEUE_BYTES, 1]],
    ids=["many pages", "one large page"],
)
def test_put_waits_while_the_queue_holds_many_bytes(
    writer: Writer, rows: Rows, sizes: list[int]
) -> None:
    """A page that is larger than that alone is queued as the only one."""

    async def fill() -> None:
        puts = [
            asyncio.ensure_future(writer.put(sized_page(number, size)))
            for number, size in enumerate(sizes)
        ]
        for _ in range(10):
            await asyncio.sleep(0)
        assert [put.done() for put in puts] == [True] * (len(sizes) - 1) + [False]

        async def rest() -> None:
            await puts[-1]
            await writer.drain()

        await ended_first(writer.run(), rest())

    asyncio.run(fill())
    assert stored(rows) == [*range(len(sizes))]


def test_a_failed_transaction_ends_the_writer(engine: Engine, writer: Writer, rows: Rows) -> None:
    """With the error, and without a row of its batch."""

    @event.listens_for(engine, "commit")
    def fail(_: Any) -> None:
        raise OperationalError("COMMIT", None, Exception("could not write"))

    with pytest.raises(DatabaseError, match="could not write") as caught:
        asyncio.run(write(writer, page(1), page(2)))
    assert caught.value.exit_code == 6
    assert stored(rows) == []


@pytest.mark.parametrize("lost", [set(), {0}, {0, 1, 2}, {1, 3}], ids=str)
def test_a_batch_is_written_and_counted_once(
    engine: Engine, writer: Writer, rows: Rows, lost: set[int]
) -> None:
    """Also if the answers to some of its COMMITs are lost, so that it is run again."""
    changed = chat(1, display_name="Bo", message_count=2, chat_handles=[])
    batches: tuple[list[Item], ...] = (
        [observed_page(chat(1), {"id": "x"}), page(2, B)],
        [observed_page(changed, at=minute(1)), page(2, B)],
        [Removals(A, gone=(1,), left=(), missing=(), observed_at=minute(2)), DONE],
    )

    async def run() -> None:
        for batch in batches:
            await write_all(writer, batch)

    load_numbers(engine, A)
    with lost_answers(engine, lost) as commits:
        asyncio.run(ended_first(writer.run(), run()))
    assert len(commits) == 3 + len(lost)
    assert [row["display_name"] for row in rows(chats)] == ["Bo", None]
    assert [row["kind"] for row in rows(chat_events)] == ["created", "renamed", "left", "removed"]
    assert [row["message_count"] for row in rows(chat_message_counts)] == [1, 2, None]
    assert [row["reason"] != "" for row in rows(rejected_records)] == [True]
    of_b, of_a = rows(sync_run_numbers)
    names = ("status", "pages", "chats_inserted", "chats_updated", "chats_removed", "rejected")
    assert [of_a[name] for name in names] == ["succeeded", 2, 1, 1, 1, 1]
    assert [of_b[name] for name in names] == ["running", 2, 1, 0, 0, 0]


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

    close_dead_runs(engine, minute(1))
    start_run(engine, A, B, now=minute(1))
    asyncio.run(continue_writing())
    assert stored(rows) == []
    assert [row["status"] for row in rows(sync_run_numbers)] == ["abandoned"] * 2 + ["running"] * 2


@only_servers
def test_a_writer_that_stalls_between_two_statements_writes_no_more(
    engine: Engine, writer: Writer, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its session was ended and its run closed before it goes on; the batch is not committed."""
    store = store_pages

    def stall(connection: Connection, *args: Any, **kwargs: Any) -> Any:
        counts = store(connection, *args, **kwargs)
        monkeypatch.undo()
        while rows(sync_runs)[0]["status"] == "running":  # The server takes a moment.
            asyncio.run(keeper_at(engine, minute(1)).close_dead_runs())
        return counts

    monkeypatch.setattr("etl.sync.writer.store_pages", stall)
    with pytest.raises(LeaseLostError) as caught:
        asyncio.run(write(writer, page(1), page(2)))
    assert caught.value.exit_code == 7
    assert stored(rows) == []
    assert [row["status"] for row in rows(sync_run_numbers)] == ["abandoned"] * 2


def keeper_at(engine: Engine, now: datetime) -> LeaseKeeper:
    return LeaseKeeper(Transactions(engine, patience=0), lambda: now, lease_seconds=60)


# MySQL's backend connects by itself, so that no other listener of that event is called.
@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
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

"""A dry run: it tells what a sync would do, and commits its row in the run log and its leases."""

import asyncio
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, Table, update

from etl.config import PhoneNumber
from etl.db import leases, run_log
from etl.db.engine import database_clock, writing
from etl.db.run_log import NumberOutcome
from etl.db.tables import (
    COUNTS,
    metadata,
    number_leases,
    phone_numbers,
    run_fences,
    sync_run_numbers,
    sync_runs,
)
from etl.db.transactions import Transactions
from etl.sync import writer
from etl.sync.dry_run import DryWriter
from etl.sync.run import RunResult
from etl.sync.shard import Shard
from tests.support.account import UNLIMITED, Account, number_in
from tests.support.builders import NOON, A, B, Row, Rows, start_run
from tests.support.memory_api import change

OF_RUNS = {sync_runs, number_leases, run_fences}
SPENT = {"requests", "retries", "throttled"}
START: dict[str, Any] = {"now": NOON, "lease_seconds": 60}
READ = {"pages", "chats_seen", "chats_unchanged"}


@pytest.fixture
def account(engine: Engine, rows: Rows) -> Account:
    return Account(engine, rows)


def data(account: Account) -> dict[Table, list[Row]]:
    """Every row of every table but those that a dry run may write."""
    return {table: account.rows(table) for table in metadata.sorted_tables if table not in OF_RUNS}


def try_out(account: Account, number: str = A, **options: Any) -> RunResult:
    """A dry run, which leaves neither data nor leases nor fences."""
    before = data(account)
    result = account.sync(number, mode="dry-run", **options)
    assert data(account) == before
    assert account.rows(number_leases) == []
    assert [row["run_id"] for row in account.rows(run_fences)] == [leases.WRITERS]
    return result


def counts(record: Row, without: set[str] = SPENT) -> dict[str, int]:
    return {name: record[name] for name in COUNTS if name not in without}


def change_much(account: Account) -> None:
    """Of the account's chats, two are new, two are gone, and others changed in each way."""
    world, ids = account.world, account.listed
    for chat_id in ids[:2]:
        world.delete(chat_id)
    world.create(A)
    world.create(A)
    world.jump(ids[2])
    world.rename(ids[3], "Opening night")
    world.change_service(ids[4])
    world.join(ids[5])
    world.leave(ids[6])
    world.leave_list(A, ids[7])
    world.edit(ids[8], service=5)  # rejected
    world.edit(ids[9], display_name="a\0b")  # cleaned


# What it tells


@pytest.mark.parametrize("first", ["a new number", "a number that was synced"])
def test_a_sync_right_after_has_the_same_counts(account: Account, first: str) -> None:
    """Of new, changed and removed chats, and of their participants; also for a new number."""
    if first == "a number that was synced":
        account.sync()
        change_much(account)
    told = try_out(account)
    done = account.sync()
    assert counts(told.record) == counts(done.record)
    assert counts(number_in(told)) == counts(number_in(done))
    ends = [
        (each.exit_code, each.record["status"], number_in(each)["completeness"], each.errors)
        for each in (told, done)
    ]
    assert ends[0] == ends[1]
    changed = ("chats_inserted", "chats_updated", "chats_removed", "rejected")
    some = {"a new number": [12, 0, 0, 0], "a number that was synced": [2, 4, 2, 1]}
    assert [told.record[name] for name in changed] == some[first]
    assert (told.record["handles_removed"] > 0) == (first != "a new number")
    nothing = dict.fromkeys(counts(told.record, SPENT | READ | {"texts_cleaned", "rejected"}), 0)
    assert nothing.items() <= try_out(account).record.items()


def test_a_number_has_the_columns_of_its_entry(account: Account) -> None:
    """The same as in a sync, but nowhere in the database."""
    told, done = try_out(account), account.sync()
    learned = {"quick_hits", "quick_misses", "quick_recall_lower"}
    times = {"run_id", "finished_at"} | learned
    numbers = [number_in(each) for each in (told, done)]
    first, second = ({k: v for k, v in each.items() if k not in times} for each in numbers)
    assert first == second
    assert numbers[0].keys() == numbers[1].keys()
    assert [row["run_id"] for row in account.rows(sync_run_numbers)] == [2]


def test_the_runs_row_has_the_sums(account: Account) -> None:
    """With its mode, and how many numbers there are."""
    account.sync()
    change_much(account)
    told = try_out(account)
    row = account.rows(sync_runs)[-1]
    assert (
        counts(row, set())
        == counts(told.record, set())
        == counts(number_in(told), set()) | {"requests": told.record["requests"]}
    )
    named = ("command", "mode", "status", "numbers_total", "numbers_failed")
    assert [row[name] for name in named] == ["sync", "dry-run", "partial", 1, 0]
    assert [each["mode"] for each in account.rows(sync_runs)] == ["full", "dry-run"]


@pytest.mark.parametrize("stored", [False, True])
def test_a_chat_counts_once_on_a_list_that_moves(
    account: Account, stored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each page is read after chats moved from its end to the list's head, with other contents.

    The page is compared before the next one is read.
    """
    monkeypatch.setattr(writer, "BATCH", 1)
    if stored:
        account.sync()
        for chat_id in account.listed:
            account.world.rename(chat_id)
    account.api.changes = [[partial(change, A, "jump", -1)] * 2 for _ in range(9)]
    told, done = try_out(account), account.sync()
    assert number_in(told)["duplicates"] > 0
    assert counts(told.record, SPENT | READ) == counts(done.record, SPENT | READ)
    assert told.record["chats_updated" if stored else "chats_inserted"] == 12


def test_removals_are_withheld_as_in_a_sync(account: Account) -> None:
    """Too many at once: none is counted, unless they are allowed."""
    account.populate(30)
    account.sync()
    for chat_id in account.listed[:20]:
        account.world.delete(chat_id)
    withheld, allowed = try_out(account), try_out(account, allow_removals=True)
    assert (withheld.exit_code, withheld.record["chats_removed"]) == (3, 0)
    assert "--allow-removals" in number_in(withheld)["reason"]
    assert (allowed.exit_code, allowed.record["chats_removed"]) == (0, 20)
    assert account.sync(allow_removals=True).record["chats_removed"] == 20


def test_a_list_can_be_proved(account: Account) -> None:
    """By reading it twice; the sync before is not, although its list was the same."""
    account.sync()
    told = try_out(account, prove=True)
    assert number_in(told)["completeness"] == "proved"
    assert account.completeness() == ["consistent"]
    account.sync()
    assert account.completeness() == ["proved", "consistent"]


def test_a_budget_and_a_shard(account: Account) -> None:
    """What the budget cuts short is partial; a shard's numbers need no row."""
    spent = try_out(account, max_requests=2, shard=Shard(0, 1))
    assert (spent.exit_code, spent.record["status"]) == (3, "partial")
    assert number_in(spent)["reason"].startswith("budget")
    empty = try_out(account, shard=Shard(0 if Shard(1, 2).has(A) else 1, 2))
    assert (empty.exit_code, empty.record["numbers"]) == (0, [])


def test_a_failure_is_told(account: Account) -> None:
    """As by a sync, with what was counted before."""
    account.sync()
    account.world.rename(account.listed[0])
    account.api.good_pages = 1
    failed = try_out(account)
    assert (failed.exit_code, failed.record["numbers_failed"]) == (5, 1)
    assert (number_in(failed)["status"], number_in(failed)["error_kind"]) == (
        "failed",
        "unavailable",
    )
    assert account.rows(sync_runs)[-1]["chats_updated"] == 1


# Other runs


def test_a_number_that_another_run_holds_is_busy(account: Account) -> None:
    """Exit code 7, and the entry names the run."""
    account.sync()
    run_id, _ = start_run(account.engine, A, now=database_clock(account.engine)())
    before = data(account)
    busy = account.sync(mode="dry-run")
    assert (busy.exit_code, busy.record["numbers_failed"]) == (7, 1)
    assert number_in(busy)["error_kind"] == "busy"
    assert number_in(busy)["error_detail"].startswith(f"run {run_id} on ")
    assert data(account) == before
    assert [row["run_id"] for row in account.rows(number_leases)] == [run_id]


def test_its_number_is_busy_for_others(account: Account) -> None:
    """From the first request to the last."""
    account.sync()
    held: list[Row] = []
    account.api.changes = [[lambda _: held.extend(account.rows(number_leases))]]
    account.sync(mode="dry-run")
    assert held == [{"phone_number": A, "run_id": 2}]


def test_a_number_is_free_once_it_has_ended(account: Account) -> None:
    """While the dry run goes on with the others."""
    for number in (A, B):
        account.sync(number)
    transactions = Transactions(account.engine, patience=5)

    async def end_one() -> None:
        run_id = await transactions.write(partial(run_log.start, command="sync", **START))
        numbers = [PhoneNumber(number) for number in (A, B)]
        dry = DryWriter(transactions, run_id, lambda: NOON, {}, least_recall=0.99)
        await transactions.write(partial(dry.claim, numbers=numbers, now=NOON))
        running = asyncio.create_task(dry.run())
        await dry.put(NumberOutcome(A, "succeeded"))
        await dry.drain()
        running.cancel()

    asyncio.run(end_one())
    assert account.rows(number_leases) == [{"phone_number": B, "run_id": 3}]


def test_a_dead_run_holds_nothing_and_stays(account: Account) -> None:
    """Its entries would change if it were closed; the next sync does that."""
    account.sync()
    start_run(account.engine, A)
    with writing(account.engine) as connection:
        connection.execute(update(sync_runs).where(sync_runs.c.id == 2).values(owner="elsewhere"))
    before = data(account)
    assert account.sync(mode="dry-run").exit_code == 0
    assert data(account) == before
    assert account.sync().exit_code == 0
    statuses = [row["status"] for row in account.rows(sync_runs)]
    assert statuses == ["succeeded", "abandoned", "succeeded", "succeeded"]


def test_an_interrupted_one_is_closed(account: Account) -> None:
    """Its number counts as failed; the lease goes, and no data was written."""
    account.sync()
    account.world.rename(account.listed[0])
    before = data(account)

    async def interrupt() -> None:
        account.api.good_pages = 2
        account.api.interrupted = asyncio.ensure_future(account.run(mode="dry-run"))
        with suppress(asyncio.CancelledError):
            await account.api.interrupted
        account.api.interrupted, account.api.good_pages = None, UNLIMITED

    asyncio.run(interrupt())
    row = account.rows(sync_runs)[-1]
    named = ("mode", "status", "error_kind", "numbers_total", "numbers_failed")
    assert [row[name] for name in named] == ["dry-run", "interrupted", "interrupted", 1, 1]
    assert data(account) == before
    assert account.rows(number_leases) == []


def test_it_asks_which_numbers_the_token_reaches_and_keeps_the_answer(account: Account) -> None:
    """The next sync asks again, because nothing of the answer was stored."""
    account.api.reached = (B,)
    told = try_out(account)
    assert "List Phone Numbers does not name this number" in number_in(told)["reason"]
    assert account.api.listings == 1
    account.sync()
    assert account.api.listings == 2
    assert account.rows(phone_numbers)[0]["unreached_since"] is not None

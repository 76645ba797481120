"""What a run stores and says if its requests run out, or if a list or an account has no end."""

import asyncio
from typing import Any

import pytest
from msgspec import structs
from sqlalchemy import Engine

from etl.api.client import RequestContext
from etl.api.models import ApiUsage, LinqNumber, Page
from etl.config import PhoneNumber
from etl.db.tables import api_pace, chat_events, chat_phone_numbers, chats
from etl.sync.context import RunOptions
from etl.sync.progress import LogProgress
from etl.sync.run import RunResult, sync
from tests.support.account import Account, number_in
from tests.support.builders import A, B, C, Rows, config_with

SPENT = "budget: the run has spent its {} requests (--max-requests or sync.max_requests)"
TOO_LONG = (
    "budget: the list needs about {} requests, more than the {} of a run, so it never completes; "
    "raise --max-requests or sync.max_requests"
)
WALK = 5  # requests for a list of three pages that does not move


@pytest.fixture
def account(engine: Engine, rows: Rows) -> Account:
    return Account(engine, rows)


def end_of(result: RunResult) -> tuple[Any, ...]:
    number = number_in(result)
    return (result.exit_code, *(number[name] for name in ("status", "completeness", "reason")))


# sync.max_requests


def test_a_run_that_has_spent_its_requests_is_partial(account: Account) -> None:
    """It stores what it has read and claims no completeness; the next run starts over."""
    result = account.sync(max_requests=2)
    assert end_of(result) == (3, "partial", None, TOO_LONG.format(WALK, 2))
    assert account.api.requests == 2
    assert len(account.rows(chats)) == 8
    assert end_of(account.sync(max_requests=WALK)) == (0, "succeeded", "consistent", None)
    assert len(account.rows(chats)) == 12
    assert account.rows(chat_events) == []


@pytest.mark.parametrize("spent", range(1, WALK))
def test_an_incomplete_walk_removes_and_marks_nothing(account: Account, spent: int) -> None:
    """No chat is asked for, and no earlier walk is proved."""
    account.sync()
    account.world.delete(account.listed[0])
    before = account.links()
    result = account.sync(max_requests=spent)
    assert (result.exit_code, number_in(result)["missing"]) == (3, None)
    assert (account.api.asked, account.links()) == ([], before)
    assert account.completeness()[0] == "consistent"
    assert account.sync().record["chats_removed"] == 1


def test_confirmations_count(account: Account) -> None:
    """What was answered before the budget was spent is stored; the other chats are unknown."""
    account.sync()
    for chat_id in account.listed[:4]:
        account.world.delete(chat_id)
    # The list has two pages now: it is read with three requests. One lists the phone numbers.
    result = account.sync(max_requests=3 + 1 + 2)
    unknown = "2 missing chats are unknown: not asked, or no answer"
    assert end_of(result) == (3, "partial", "consistent", f"{SPENT.format(6)}; {unknown}")
    assert account.removed() == set(account.api.asked)
    assert len(account.api.asked) == 2


def test_removals_are_withheld_if_the_numbers_cannot_be_listed(account: Account) -> None:
    """Whether the token still reaches the number is then unknown."""
    account.sync()
    account.world.delete(account.listed[0])
    result = account.sync(max_requests=WALK)
    assert end_of(result) == (3, "partial", "consistent", SPENT.format(WALK))
    assert (account.api.asked, account.removed(), account.absent()) == ([], set(), set())


def test_no_run_waits_for_an_answer_that_does_not_come(account: Account) -> None:
    """A run without a request left does not announce that it asks which numbers are reached."""
    account.sync(max_requests=WALK)
    assert account.rows(api_pace) == []


def test_retries_count(account: Account) -> None:
    """Two retries leave two requests less."""

    def retry(_: object) -> None:
        account.api.usage[A] += ApiUsage(retries=2)

    account.api.changes = [[], [retry]]
    before = account.api.requests
    assert number_in(account.sync(max_requests=5))["completeness"] is None
    assert account.api.requests - before == 3


def test_a_proof_that_runs_out_of_budget(account: Account) -> None:
    """The first walk's verdict stands, and the run is partial."""
    result = account.sync(prove=True, max_requests=WALK + 2)
    assert end_of(result) == (3, "partial", "consistent", SPENT.format(WALK + 2))


def test_numbers_share_the_budget(account: Account, engine: Engine) -> None:
    """All of them end as partial: the long list gives way, and so it is with the next one."""
    numbers = tuple(PhoneNumber(number) for number in (A, B, C))
    client: Any = account.api
    config = config_with(API__MAX_CONCURRENCY=1, SYNC__MAX_REQUESTS=4)
    run = sync(config, engine, client, options=RunOptions(numbers), progress=LogProgress())
    result = asyncio.run(run)
    ends = [(each["status"], each["reason"]) for each in result.record["numbers"]]
    assert ends == [("partial", TOO_LONG.format(WALK, 4))] * 3
    assert (result.exit_code, result.record["status"], result.errors) == (3, "partial", [])
    assert account.api.requests == 4


def test_a_page_range_that_runs_out_of_budget(account: Account) -> None:
    """Its reason says which pages were read."""
    result = account.sync(command="backfill", first_page=2, last_page=3, max_requests=1)
    read = "only pages 2 to 2 were read; the next sync tells whether the list is complete"
    assert end_of(result) == (3, "partial", None, f"{TOO_LONG.format(3, 1)}; {read}")


# Lists without an end


def grow(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its first page, the list counts a million chats."""
    honest = account.api.list_chats

    async def list_chats(context: RequestContext, page_number: int) -> Page:
        page = await honest(context, page_number)
        if page_number == 1:
            return page
        return structs.replace(page, total_count=10**6, last_page=250_000)

    monkeypatch.setattr(account.api, "list_chats", list_chats)


def test_a_list_without_an_end_is_unproved(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read is stored, nothing is removed, and the run is partial."""
    account.sync()
    account.world.delete(account.listed[-1])
    before = account.rows(chat_phone_numbers)
    created = account.world.create(A)
    grow(account, monkeypatch)
    result = account.sync()
    reason = "the list went from 12 to 1000000 while it was read"
    assert end_of(result) == (3, "partial", "unproved", reason)
    assert account.api.asked == []
    assert account.chat(created)["removed_at"] is None
    assert [row for row in account.rows(chat_phone_numbers) if row["chat_id"] != created] == before


def test_a_walk_without_an_end_is_not_proved_by_the_next(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has not marked the chats that it did not see."""
    account.sync()
    grow(account, monkeypatch)
    account.sync()
    monkeypatch.undo()
    account.sync()
    assert account.completeness() == ["consistent", "unproved", "consistent"]


# Many chats, many numbers


def test_missing_chats_are_marked_in_chunks(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are, each is marked."""
    monkeypatch.setattr("etl.sync.number.CHUNK", 2)
    account.sync()
    dead = {account.world.delete(chat_id) for chat_id in account.listed[:5]}
    assert account.sync(max_confirmations=0).exit_code == 3
    assert account.absent() == dead
    assert account.sync().record["chats_removed"] == 5


def test_an_account_with_too_many_numbers(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configured number and the first others are synced; the run is partial and says so."""
    monkeypatch.setattr("etl.sync.run.MAX_REACHED", 2)
    numbers = [f"+1312555{n:04}" for n in range(5)]

    async def list_phone_numbers(_: RequestContext) -> tuple[LinqNumber, ...]:
        return tuple(map(LinqNumber, [*numbers, *numbers, "no number"]))

    monkeypatch.setattr(account.api, "list_phone_numbers", list_phone_numbers)
    result = account.sync(all_reached=True)
    synced = [each["phone_number"] for each in result.record["numbers"]]
    assert (result.exit_code, result.record["status"]) == (3, "partial")
    assert synced == sorted([A, *numbers[:2]])
    assert result.errors == [
        "The API lists over 2 phone numbers: 3 of them were left out. Name them in "
        "sync.phone_numbers."
    ]

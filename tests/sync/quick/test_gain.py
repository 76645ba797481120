"""Which pages a run reads whose budget does not suffice for the whole list."""

import math
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from sqlalchemy import Engine

from etl.db.tables import chats, list_orders, sync_run_numbers
from etl.sandbox.world import Order
from etl.sync.quick.gain import gain, page_gains
from tests.support.account import Account, number_in
from tests.support.builders import A, Row, Rows

CHATS = 400  # on a hundred pages


@pytest.fixture
def account(engine: Engine, rows: Rows) -> Account:
    return Account(engine, rows)


def learn(account: Account, order: Order) -> None:
    account.populate(CHATS, order=order)
    for walk in range(6):
        if walk:
            for chat_id in Random(walk).sample(account.listed, 60):
                account.world.jump(chat_id)
        account.sync()


def pages_read(account: Account, requests: int, minutes: int = 5) -> tuple[Row, set[int]]:
    """A quick run with so many requests, minutes after the walks, and the pages that it read."""
    at = datetime.now(UTC) + timedelta(minutes=minutes)
    pages: list[int] = []
    ask = account.api.list_chats

    async def list_chats(context: Any, page_number: int, **options: Any) -> Any:
        pages.append(page_number)
        return await ask(context, page_number, **options)

    account.api.list_chats = list_chats  # type: ignore[method-assign]
    account.api.clock = lambda: at  # type: ignore[method-assign]
    result = account.sync(mode="quick", max_requests=requests, clock=lambda: at)
    account.api.list_chats = ask  # type: ignore[method-assign]
    return number_in(result), set(pages)


@pytest.mark.parametrize("order", ["id", "id-desc", "shuffled"])
@pytest.mark.slow
def test_every_page_has_its_turn(account: Account, order: Order) -> None:
    """Also without any change; the newest chats of a list by id are read each time."""
    learn(account, order)
    found: set[int] = set()
    for run in range(24):
        number, pages = pages_read(account, 20, minutes=5 * (run + 1))
        assert (number["status"], number["completeness"]) == ("partial", "quick")
        found |= pages
        newest = {"id": 100, "id-desc": 1}.get(order)
        assert newest is None or newest in pages
        assert len(pages) == 20
    assert found == set(range(1, 101))


def test_nothing_is_called_fresh_that_is_not(account: Account) -> None:
    """A reading that a budget ended does not find all changes."""
    learn(account, "id")
    (before,) = account.rows(list_orders)
    number, _ = pages_read(account, 10)
    (after,) = account.rows(list_orders)
    assert after["fresh_as_of"] == before["fresh_as_of"]
    assert number["reason"].startswith(
        "budget: the list needs about 102 requests, more than the 10"
    )


@pytest.mark.parametrize("order", ["id", "id-desc"])
def test_a_list_that_grows_is_read_to_its_newest_page(account: Account, order: Order) -> None:
    """However many chats were created since the last full walk."""
    learn(account, order)
    for run in range(3):
        for _ in range(6):
            account.world.create(A)
        pages_read(account, 12, minutes=5 * (run + 1))
        pages_read(account, 12, minutes=5 * (run + 1) + 1)
    assert {*account.listed} == {row["id"] for row in account.rows(chats)}


def test_readings_by_worth_are_no_evidence_of_those_by_the_rule(account: Account) -> None:
    """The full walk after them adds none either."""
    learn(account, "id")
    for position in range(0, CHATS, 8):
        account.world.jump(account.listed[position])
    evidence = account.rows(sync_run_numbers)[-1]
    published = (evidence["quick_hits"], evidence["quick_misses"])
    caught = 0
    for run in range(2):
        number, _ = pages_read(account, 10, minutes=5 * (run + 1))
        caught += number["chats_updated"]
    walk = number_in(account.sync())
    assert (caught > 0, walk["chats_updated"]) == (True, 50 - caught)
    assert (walk["quick_hits"], walk["quick_misses"]) == published


def test_busy_chats_make_a_page_worth_more() -> None:
    """Ten chats a page; the one on the second page gets messages."""
    ids = range(30)
    gains = page_gains(ids, {15: 40.0}, [600.0] * 3, per_page=10)
    assert gains[1] > gains[0] == pytest.approx(gains[2])


def test_the_longer_a_page_was_not_read_the_more_it_is_worth() -> None:
    gains = page_gains(range(30), {}, [600.0, 1200.0, 300.0], per_page=10)
    assert gains[1] > gains[0] > gains[2]


@pytest.mark.parametrize("rate", [1e-12, 1e-6, 1e-3, 10.0])
@pytest.mark.parametrize("age", [1.0, 3600.0, 10.0**7])
def test_the_gain_of_a_chat(rate: float, age: float) -> None:
    """The expected time for which messages have waited, by the formula in exact terms."""
    if rate * age > 1e-4:
        assert gain(rate, age) == pytest.approx(
            (1 - (1 + rate * age) * math.exp(-rate * age)) / rate, rel=1e-6
        )
    assert 0 < gain(rate, age) <= 1 / rate


def test_good_quick_readings_go_on_without_full_walks(account: Account) -> None:
    """If a full walk is due for which the requests never suffice; that is named."""
    learn(account, "recency")
    for position in (300, 200):
        account.world.jump(account.listed[position])
    before = account.api.requests
    result = account.sync(mode="quick", max_requests=10, full_every="0s")
    number = number_in(result)
    assert (result.exit_code, number["status"], number["completeness"]) == (3, "partial", "quick")
    assert number["reason"].startswith("budget: the list needs about 102 requests")
    assert (account.api.requests - before, number["chats_updated"]) == (3, 2)
    (known,) = account.rows(list_orders)
    assert known["fresh_as_of"] > known["walked_at"]

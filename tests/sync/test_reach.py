"""Numbers that their token does not reach: the API answers them with an empty list."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, update

from etl.db.engine import writing
from etl.db.tables import api_pace, phone_numbers
from etl.sync import reach
from etl.sync.reach import EVERY, UNREACHED
from etl.sync.run import RunResult
from tests.support.account import Account, number_in
from tests.support.builders import A, B, Rows


@pytest.fixture
def account(engine: Engine, rows: Rows) -> Account:
    """Its token reaches A only; B has no chats."""
    account = Account(engine, rows)
    account.api.reached = (A,)
    return account


def end_of(result: RunResult) -> tuple[Any, ...]:
    number = number_in(result)
    return (result.exit_code, *(number[name] for name in ("status", "completeness", "reason")))


def listings(account: Account) -> int:
    """How often the numbers were listed since the last call."""
    spent, account.api.listings = account.api.listings, 0
    return spent


def an_hour_later(account: Account) -> None:
    """Let the last listing be an hour old."""
    before = account.api.clock() - EVERY - timedelta(seconds=1)
    with writing(account.engine) as connection:
        connection.execute(update(api_pace).values(numbers_listed_at=before))


def unreached(account: Account) -> dict[str, bool]:
    marks = account.rows(phone_numbers)
    return {row["phone_number"]: row["unreached_since"] is not None for row in marks}


WRONG = (3, "partial", "consistent", UNREACHED)
FINE = (0, "succeeded", "consistent", None)


def test_a_number_that_its_token_does_not_reach_is_partial(account: Account) -> None:
    """Also in the runs of the same hour, which do not ask again."""
    assert end_of(account.sync(B)) == end_of(account.sync(B)) == WRONG
    assert (listings(account), unreached(account)) == (1, {B: True})
    an_hour_later(account)
    account.api.reached = (B,)
    assert end_of(account.sync(B)) == FINE
    assert (listings(account), unreached(account)) == (1, {B: False})


def test_a_number_that_is_reached_costs_one_request_an_hour(account: Account) -> None:
    """It counts for the run, not for the number."""
    first, second = account.sync(), account.sync()
    assert end_of(first) == end_of(second) == FINE
    assert listings(account) == 1
    an_hour_later(account)
    account.sync()
    assert (listings(account), unreached(account)) == (1, {A: False})


def test_the_time_since_when_it_is_not_reached_stays(account: Account) -> None:
    """Until it is reached."""
    account.sync(B)
    before = account.rows(phone_numbers)
    an_hour_later(account)
    account.sync(B)
    assert (listings(account), account.rows(phone_numbers)) == (2, before)


@pytest.mark.parametrize("fault", ["refuses_numbers", "hides_numbers"])
def test_an_api_that_does_not_list_numbers_makes_nothing_partial(
    account: Account, fault: str
) -> None:
    """It is asked again after an hour."""
    setattr(account.api, fault, True)
    assert end_of(account.sync(B)) == end_of(account.sync(B)) == FINE
    assert (listings(account), unreached(account)) == (1, {B: False})
    an_hour_later(account)
    account.sync(B)
    assert listings(account) == 1


def test_what_is_known_stays_while_the_api_does_not_answer(account: Account) -> None:
    """A refusal, however, says that the token may not list numbers at all."""
    account.sync(B)
    an_hour_later(account)
    account.api.hides_numbers = True
    assert end_of(account.sync(B)) == WRONG
    an_hour_later(account)
    account.api.hides_numbers, account.api.refuses_numbers = False, True
    assert end_of(account.sync(B)) == FINE


def test_a_list_that_was_not_read_asks_for_nothing(account: Account) -> None:
    """The token may be wrong."""
    account.api.good_pages = 0
    assert account.sync(B).exit_code == 5
    assert listings(account) == 0


def test_a_run_that_died_while_it_asked_delays_the_next_one(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it cannot get an answer any more; then the next one asks."""
    monkeypatch.setattr(reach, "WAIT", 0)
    account.sync()
    soon = account.api.clock() + timedelta(seconds=0.2)
    with writing(account.engine) as connection:
        connection.execute(update(api_pace).values(numbers_listed_at=soon))
    assert end_of(account.sync(B)) == WRONG
    assert listings(account) == 2


def test_a_listing_far_in_the_future_does_not_count(account: Account) -> None:
    """A wrong clock wrote it."""
    account.sync()
    future = account.api.clock() + timedelta(hours=1)
    with writing(account.engine) as connection:
        connection.execute(update(api_pace).values(numbers_listed_at=future))
    assert end_of(account.sync(B)) == WRONG
    assert listings(account) == 2

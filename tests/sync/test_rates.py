"""Runs that share a token's rate tell each other what throttles taught them."""

import asyncio
from datetime import datetime

import pytest
from sqlalchemy import Engine

from etl.api.client import LinqClient
from etl.api.pace import Pace
from etl.config import Api, Token
from etl.db.engine import reading
from etl.db.tokens import read_rates
from etl.db.transactions import Transactions
from etl.sync.rates import SharedRates
from tests.support.builders import second

TOKEN = Token("one")
URL = "https://api.example.com"


class Client(LinqClient):
    """A client of a quarter of the rate, whose throttles are counted by hand."""

    def __init__(self) -> None:
        super().__init__(Api(), Pace(8, share=0.25), clock=datetime.now)
        self.throttled = 0

    def throttles(self) -> dict[Token, int]:
        return {TOKEN: self.throttled}


class Run:
    """A run that exchanges rates at a given second."""

    def __init__(self, engine: Engine) -> None:
        self.client = Client()
        self.now = 0
        self._rates = SharedRates(
            self.client, Transactions(engine, patience=0), URL, lambda: second(self.now)
        )

    def exchange(self, at: int) -> None:
        self.now = at
        asyncio.run(self._rates.exchange())

    @property
    def rate(self) -> float | None:
        return self.client.rates().get(TOKEN)


def stored(engine: Engine, at: int) -> float | None:
    with reading(engine) as connection:
        return read_rates(connection, URL, [TOKEN], second(at)).get(TOKEN)


@pytest.fixture
def runs(engine: Engine) -> tuple[Run, Run]:
    return Run(engine), Run(engine)


def learn(run: Run, rate: float) -> None:
    run.client.throttled += 1
    run.client.set_rate(TOKEN, rate)


def test_a_throttle_teaches_the_others(engine: Engine, runs: tuple[Run, Run]) -> None:
    """The whole rate is stored; each run uses its share, just below."""
    taught, other = runs
    learn(taught, 40)
    taught.exchange(1)
    other.exchange(2)
    assert stored(engine, 2) == taught.rate == pytest.approx(40 * 0.985)
    assert other.rate == pytest.approx(40 * 0.985**2)


def test_a_slower_run_stays_slow(runs: tuple[Run, Run]) -> None:
    """What others learn does not speed it up."""
    taught, other = runs
    learn(taught, 40)
    other.client.set_rate(TOKEN, 10)
    taught.exchange(1)
    other.exchange(2)
    assert other.rate == pytest.approx(10 * 0.985)


def test_each_lesson_is_told_once(engine: Engine, runs: tuple[Run, Run]) -> None:
    """A run that is not throttled again listens to the others."""
    taught, other = runs
    learn(taught, 40)
    taught.exchange(1)
    learn(other, 20)
    other.exchange(2)
    taught.exchange(3)
    assert stored(engine, 3) == other.rate
    assert taught.rate == pytest.approx(20 * 0.985**2)


def test_an_old_lesson_does_not_hold_a_rate_down(runs: tuple[Run, Run]) -> None:
    """It has risen since, and no throttle came."""
    taught, other = runs
    learn(taught, 40)
    taught.exchange(1)
    other.exchange(60)
    assert other.rate is None

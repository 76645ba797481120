"""The rates that the API allowed, stored per token."""

from datetime import timedelta

import pytest
from sqlalchemy import Engine

from etl.config import Token
from etl.db.engine import reading, writing
from etl.db.tables import api_pace
from etl.db.tokens import read_rates, write_rates
from tests.support.builders import NOON, Rows

ONE, TWO, THREE = Token("one"), Token("two"), Token("three")
API = "https://api.example.com"


def store(engine: Engine, rates: dict[Token, float], days: float = 0, api: str = API) -> None:
    """Write the rates of a run that ends so many days after NOON."""
    with writing(engine) as connection:
        write_rates(connection, api, rates, NOON + timedelta(days=days))


def read(engine: Engine, days: float = 0, api: str = API) -> dict[Token, float]:
    """The rates of a run that starts so many days after NOON."""
    with reading(engine) as connection:
        return read_rates(connection, api, [ONE, TWO], NOON + timedelta(days=days))


def test_each_token_has_its_last_rate(engine: Engine) -> None:
    """Tokens that this run does not use are left out."""
    store(engine, {ONE: 4.25, TWO: 50.0, THREE: 7.0})
    store(engine, {ONE: 1 / 3}, days=1)
    store(engine, {}, days=1)
    assert read(engine, days=2) == {ONE: 1 / 3, TWO: 50.0}


def test_a_rate_counts_for_a_week(engine: Engine) -> None:
    """The provider may have changed the limit since."""
    store(engine, {ONE: 5.0})
    store(engine, {TWO: 6.0}, days=1)
    assert read(engine, days=6.99) == {ONE: 5.0, TWO: 6.0}
    assert read(engine, days=7) == {TWO: 6.0}


def test_another_api_has_rates_of_its_own(engine: Engine) -> None:
    """A sandbox does not slow down the real API."""
    store(engine, {ONE: 5.0}, api="http://127.0.0.1:8080")
    assert read(engine) == {}


@pytest.mark.parametrize("token", [ONE, TWO])
def test_the_token_is_not_stored(engine: Engine, rows: Rows, token: Token) -> None:
    """Neither whole nor in part: a hash of it, with 128 bits."""
    store(engine, {token: 5.0})
    (row,) = rows(api_pace)
    assert token.value not in row["fingerprint"]
    assert len(bytes.fromhex(row["fingerprint"])) == 16

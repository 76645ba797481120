"""What a run leaves for the next one."""

from datetime import timedelta

import pytest
from sqlalchemy import Engine

from etl.config import Token
from etl.db.tables import sync_run_numbers, sync_runs
from etl.errors import TokenRefusedError
from tests.support.account import Account, Api
from tests.support.builders import NOON, Rows, config_with, minute

LEARNED = 12.5  # requests a second


class ThrottlingApi(Api):
    """Every run learns the same rate; `started_with` are the rates set at the start of the last."""

    started_with: dict[Token, float]

    def set_rate(self, token: Token, requests_per_second: float) -> None:
        self.started_with[token] = requests_per_second

    def rates(self) -> dict[Token, float]:
        token = config_with().token
        return {token: LEARNED} if token else {}


@pytest.fixture
def account(engine: Engine, rows: Rows) -> Account:
    account = Account(engine, rows)
    account.api = ThrottlingApi(account.world)
    account.api.started_with = {}
    return account


@pytest.mark.parametrize("ending", ["succeeded", "failed", "interrupted"])
def test_a_run_starts_with_the_rate_that_the_one_before_learned(
    account: Account, ending: str
) -> None:
    """However that run ended."""
    api = account.api
    assert isinstance(api, ThrottlingApi)
    if ending == "interrupted":
        account.interrupt(after_pages=1)
    else:
        api.good_pages = 1 if ending == "failed" else api.good_pages
        account.sync()
    assert [row["status"] for row in account.rows(sync_runs)] == [ending]
    assert api.started_with == {}
    api.good_pages = 100
    account.sync()
    assert list(api.started_with.values()) == [LEARNED]


def test_a_run_at_another_time(account: Account) -> None:
    """With a clock of its own, the run and its lease have that clock's times only."""
    account.sync(clock=lambda: NOON)
    account.sync(clock=lambda: minute(15))
    times = ("started_at", "finished_at", "lease_expires_at")
    runs = [tuple(row[name] for name in times) for row in account.rows(sync_runs)]
    assert runs == [(at, at, at + timedelta(seconds=60)) for at in (NOON, minute(15))]
    finished = [row["finished_at"] for row in account.rows(sync_run_numbers)]
    assert finished == [NOON, minute(15)]


@pytest.mark.parametrize("ending", ["failed", "interrupted"])
def test_the_log_of_a_run_ends_with_its_end(
    account: Account, caplog: pytest.LogCaptureFixture, ending: str
) -> None:
    """Also if the whole run was ended, by an error or by a signal."""
    if ending == "failed":

        async def list_phone_numbers(_: object) -> None:
            raise TokenRefusedError("The API refused the token (401). Get another one.")

        account.api.list_phone_numbers = list_phone_numbers  # type: ignore[assignment, method-assign]
        with pytest.raises(TokenRefusedError):
            account.sync(all_reached=True)
    else:
        account.interrupt(after_pages=1)
    last = caplog.records[-1]
    assert (last.getMessage(), last.__dict__["fields"]["status"]) == ("run_ended", ending)
    assert last.levelname == ("ERROR" if ending == "failed" else "WARNING")

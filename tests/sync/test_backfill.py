"""Backfill: a number's list, or some pages of it, at a polite pace; nothing is ever removed."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Engine, update
from sqlalchemy import select as sql

from etl.api.pace import ApiUsage
from etl.config import PhoneNumber
from etl.db import run_log as runs
from etl.db.engine import writing
from etl.db.run_log import NumberOutcome, RunOutcome
from etl.db.tables import sync_run_numbers
from etl.sandbox import Sandbox, build_world
from etl.sandbox.routes import LIST_CHATS
from tests.support.command import (
    A,
    Ended,
    held,
    instant,
    linq_etl,
    select,
    settings,
    snapshot,
    stored,
)

pytestmark = pytest.mark.slow  # Each test starts processes.

PAGES = 40
PER_PAGE = 3
# A backfill that goes on reads again what may have been under way: twice the concurrency and three.
AGAIN = 2 * 2 + 3
UNREAD = "; the next sync tells whether the list is complete"


class Account:
    """A sandbox with a list of 40 pages, and the command on a database."""

    def __init__(self, sandbox: Sandbox, database_url: str) -> None:
        self.sandbox = sandbox
        self.world = sandbox.world
        self.url = database_url
        self.env = settings(
            sandbox,
            database_url,
            A,
            LINQ_ETL_API__PER_PAGE=str(PER_PAGE),
            LINQ_ETL_API__MAX_CONCURRENCY="2",
        )

    def run(self, command: str, *options: str) -> Ended:
        self.sandbox.requests.clear()
        return linq_etl(command, *options, "--json", env=self.env)

    def backfill(self, *options: str) -> Ended:
        return self.run("backfill", "--phone-number", A, "--max-rps", "1000", *options)

    @property
    def pages_read(self) -> set[int]:
        """The pages of the list that the last command asked for; nothing else was asked for."""
        assert {request.path for request in self.sandbox.requests} <= {LIST_CHATS}
        return {int(request.query["page"]) for request in self.sandbox.requests}


@pytest.fixture
def account(database_url: str) -> Iterator[Account]:
    with Sandbox(build_world(numbers=[A], chats_per_number=PAGES * PER_PAGE)) as sandbox:
        yield Account(sandbox, database_url)


def number_of(done: Ended) -> dict[str, Any]:
    (number,) = done.data["numbers"]
    return dict(number)


def test_a_whole_list_is_walked_to_a_verdict(account: Account) -> None:
    """Everything is stored, and the run log says that it is complete, as after a sync."""
    done = account.backfill()
    assert (done.code, done.data["command"], done.data["status"]) == (0, "backfill", "succeeded")
    assert stored(account.url) == held(account.world, [A])
    number = number_of(done)
    assert (number["completeness"], number["reason"]) == ("consistent", None)
    assert (number["first_page"], number["total_count"]) == (1, PAGES * PER_PAGE)
    before = snapshot(account.url)
    assert account.run("sync").data["chats_unchanged"] > 0
    assert snapshot(account.url) == before


def test_a_range_of_pages_is_read_and_no_other(account: Account) -> None:
    """Its chats are stored; the log says that it tells nothing of the others."""
    expected = set(account.world.listing(A)[3 * PER_PAGE : 6 * PER_PAGE])
    done = account.backfill("--first-page", "4", "--last-page", "6")
    assert (done.code, done.data["status"]) == (0, "succeeded")
    assert account.pages_read == {4, 5, 6}
    assert {row[0] for row in stored(account.url)["chats"]} == expected
    number = number_of(done)
    assert (number["completeness"], number["first_page"], number["pages"]) == (None, 4, 3)
    assert number["reason"] == "only pages 4 to 6 were read" + UNREAD


@pytest.mark.parametrize(
    ("options", "pages"),
    [
        (("--first-page", "38"), {38, 39, 40}),
        (("--last-page", "2"), {1, 2}),
        (("--first-page", "39", "--last-page", "99"), {39, 40}),
        (("--first-page", "7", "--last-page", "7"), {7}),
    ],
)
def test_a_range_ends_with_the_list(
    options: tuple[str, ...], pages: set[int], account: Account
) -> None:
    """Without a first or a last page it reaches to the list's begin or end."""
    done = account.backfill(*options)
    assert (done.code, account.pages_read) == (0, pages)
    assert number_of(done)["reason"] == f"only pages {min(pages)} to {max(pages)} were read{UNREAD}"


def test_a_first_page_after_the_last_is_a_mistake(account: Account) -> None:
    """Exit code 2, and no run."""
    done = account.backfill("--first-page", "5", "--last-page", "4")
    assert (done.code, done.stdout) == (2, "")
    assert "--last-page: page 4 comes before page 5" in done.stderr
    assert not account.sandbox.requests


def test_nothing_is_removed(account: Account) -> None:
    """Chats that are gone are not even asked for, whether all or some pages are read."""
    assert account.run("sync").code == 0
    for chat_id in account.world.listing(A)[:3]:
        account.world.delete(chat_id)
    before = snapshot(account.url)
    assert account.backfill().code == 0
    assert account.pages_read == set(range(1, PAGES))
    assert account.backfill("--first-page", "2", "--last-page", "3").code == 0
    assert snapshot(account.url) == before
    assert account.run("sync").data["chats_removed"] == 3


def test_a_range_does_not_make_the_rest_news(account: Account) -> None:
    """A list of which only a part was read has no events until it was read to the end."""
    account.backfill("--first-page", "4", "--last-page", "6")
    assert account.run("sync").code == 0
    assert stored(account.url) == held(account.world, [A])
    assert select(account.url, "SELECT * FROM chat_events") == []


# After an interruption


def plant(engine: Engine, command: str, *, first_page: int, pages: int, status: str) -> None:
    """An entry in the run log that ended so, after so many pages."""
    now = datetime.now(UTC)
    with writing(engine) as connection:
        run_id = runs.start(connection, command, now=now, lease_seconds=60)
        runs.claim(connection, run_id, [PhoneNumber(A)], now)
        runs.note_first_page(connection, run_id, A, first_page)
        of_run = sync_run_numbers.c.run_id == run_id
        connection.execute(update(sync_run_numbers).where(of_run).values(pages=pages))
        if status in {"succeeded", "failed"}:
            runs.close_number(connection, run_id, NumberOutcome(A, status, ApiUsage()), now)
        runs.finish(connection, run_id, RunOutcome(status), now)
        ended = connection.execute(sql(sync_run_numbers.c.status).where(of_run)).scalar_one()
        assert ended == status


@pytest.mark.parametrize("status", ["interrupted", "abandoned", "failed"])
def test_after_an_interruption_it_goes_on(status: str, engine: Engine, account: Account) -> None:
    """It begins a few pages before the last one stored, and says that it read only the rest."""
    plant(engine, "backfill", first_page=1, pages=30, status=status)
    begin = 1 + 30 - AGAIN
    done = account.backfill()
    assert (done.code, account.pages_read) == (0, set(range(begin, PAGES + 1)))
    number = number_of(done)
    assert (number["completeness"], number["first_page"]) == (None, begin)
    assert number["reason"] == f"only pages {begin} to {PAGES} were read{UNREAD}"


def test_it_can_be_interrupted_again_and_again(engine: Engine, account: Account) -> None:
    """Where it goes on is counted from where it last began."""
    plant(engine, "backfill", first_page=20, pages=15, status="interrupted")
    account.backfill()
    assert account.pages_read == set(range(20 + 15 - AGAIN, PAGES + 1))


@pytest.mark.parametrize(
    ("command", "pages", "status"),
    [
        ("backfill", 30, "succeeded"),
        ("backfill", 5, "interrupted"),
        ("sync", 30, "interrupted"),
    ],
)
def test_otherwise_it_reads_the_whole_list(
    command: str, pages: int, status: str, engine: Engine, account: Account
) -> None:
    """After a good end, after a few pages, and after a sync, which goes on nowhere."""
    plant(engine, command, first_page=1, pages=pages, status=status)
    done = account.backfill()
    assert (done.code, account.pages_read) == (0, set(range(1, PAGES + 1)))
    assert number_of(done)["completeness"] == "consistent"


def test_a_first_page_that_is_asked_for_counts(engine: Engine, account: Account) -> None:
    """It goes on where it was only if nothing else is said."""
    plant(engine, "backfill", first_page=1, pages=30, status="interrupted")
    account.backfill("--first-page", "1")
    assert account.pages_read == set(range(1, PAGES + 1))


# Its pace


def test_the_pace_is_kept(database_url: str) -> None:
    """--max-rps bounds the requests a second, whatever the API would bear."""
    with Sandbox(build_world(numbers=[A], chats_per_number=10)) as sandbox:
        env = settings(sandbox, database_url, A, LINQ_ETL_API__PER_PAGE="2")
        done = linq_etl("backfill", "--phone-number", A, "--max-rps", "10", "--json", env=env)
    began, finished = (instant(done.data[name]) for name in ("started_at", "finished_at"))
    assert began
    assert finished
    requests = done.data["requests"]
    assert (done.code, requests >= 6) == (0, True)
    assert (finished - began).total_seconds() >= (requests - 1) / 10


@pytest.mark.parametrize("pace", ["0", "-1", "fast"])
def test_a_pace_is_a_positive_number(pace: str, account: Account) -> None:
    """Anything else is exit code 2."""
    done = linq_etl("backfill", "--phone-number", A, "--max-rps", pace, env=account.env)
    assert (done.code, "--max-rps" in done.stderr) == (2, True)

"""Backfill: a number's list, or a page range of it, at a limited rate; it removes nothing."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Engine, update
from sqlalchemy import select as sql

from etl.db import run_log
from etl.db.engine import writing
from etl.db.run_log import NumberOutcome, RunOutcome
from etl.db.tables import Status, sync_run_numbers
from etl.sandbox import Sandbox, build_world
from etl.sandbox.routes import LIST_CHATS, LIST_PHONE_NUMBERS
from tests.support.builders import A, start_run
from tests.support.command import (
    Ended,
    environment,
    held,
    instant,
    linq_etl,
    select,
    snapshot,
    stored,
)

pytestmark = pytest.mark.slow  # Each test starts processes.

PAGES = 40
PER_PAGE = 3
# How many pages a resumed backfill reads again because they may have been in flight: twice the
# concurrency, and three.
OVERLAP = 2 * 2 + 3
UNREAD = "; the next sync tells whether the list is complete"


class Account:
    """A sandbox with a list of 40 pages, and a database to run the command on."""

    def __init__(self, sandbox: Sandbox, database_url: str) -> None:
        self.sandbox = sandbox
        self.world = sandbox.world
        self.url = database_url
        self.env = environment(
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
        """The pages that the last command requested, which may list the phone numbers, too."""
        paths = [request.path for request in self.sandbox.requests]
        assert {*paths} <= {LIST_CHATS, LIST_PHONE_NUMBERS}
        assert paths.count(LIST_PHONE_NUMBERS) <= 1
        lists = [each for each in self.sandbox.requests if each.path == LIST_CHATS]
        return {int(request.query["page"]) for request in lists}


@pytest.fixture
def account(database_url: str) -> Iterator[Account]:
    with Sandbox(build_world(numbers=[A], chats_per_number=PAGES * PER_PAGE)) as sandbox:
        yield Account(sandbox, database_url)


def number_in(done: Ended) -> dict[str, Any]:
    (number,) = done.data["numbers"]
    return dict(number)


def test_a_whole_list_is_walked_to_a_verdict(account: Account) -> None:
    """Every chat is stored, and the run log says that the list is complete, as after a sync."""
    done = account.backfill()
    assert (done.code, done.data["command"], done.data["status"]) == (0, "backfill", "succeeded")
    assert stored(account.url) == held(account.world, [A])
    number = number_in(done)
    assert (number["completeness"], number["reason"]) == ("consistent", None)
    assert (number["first_page"], number["total_count"]) == (1, PAGES * PER_PAGE)
    before = snapshot(account.url)
    assert account.run("sync").data["chats_unchanged"] > 0
    assert snapshot(account.url) == before


def test_only_the_page_range_is_read(account: Account) -> None:
    """Its chats are stored; the run log says which pages were read and claims no completeness."""
    expected = set(account.world.listing(A)[3 * PER_PAGE : 6 * PER_PAGE])
    done = account.backfill("--first-page", "4", "--last-page", "6")
    assert (done.code, done.data["status"]) == (0, "succeeded")
    assert account.pages_read == {4, 5, 6}
    assert {row[0] for row in stored(account.url)["chats"]} == expected
    number = number_in(done)
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
def test_a_page_range_ends_with_the_list(
    options: tuple[str, ...], pages: set[int], account: Account
) -> None:
    """Without a first or a last page it starts or ends where the list does."""
    done = account.backfill(*options)
    assert (done.code, account.pages_read) == (0, pages)
    assert number_in(done)["reason"] == f"only pages {min(pages)} to {max(pages)} were read{UNREAD}"


def test_a_first_page_after_the_last_is_refused(account: Account) -> None:
    """Exit code 2, and no request."""
    done = account.backfill("--first-page", "5", "--last-page", "4")
    assert (done.code, done.stdout) == (2, "")
    assert "--last-page: page 4 comes before page 5" in done.stderr
    assert not account.sandbox.requests


def test_nothing_is_removed(account: Account) -> None:
    """Missing chats are not even asked for, whether all pages are read or some."""
    assert account.run("sync").code == 0
    for chat_id in account.world.listing(A)[:3]:
        account.world.delete(chat_id)
    before = snapshot(account.url)
    assert account.backfill().code == 0
    assert account.pages_read == set(range(1, PAGES))
    assert account.backfill("--first-page", "2", "--last-page", "3").code == 0
    assert snapshot(account.url) == before
    assert account.run("sync").data["chats_removed"] == 3


def test_a_page_range_is_no_first_full_read(account: Account) -> None:
    """Chats found after it get no `created` event until the list was read to the end."""
    account.backfill("--first-page", "4", "--last-page", "6")
    assert account.run("sync").code == 0
    assert stored(account.url) == held(account.world, [A])
    assert select(account.url, "SELECT * FROM chat_events") == []


# Resuming


def plant(engine: Engine, command: str, *, first_page: int, pages: int, status: Status) -> None:
    """An earlier run in the run log, which ended like this after so many pages."""
    now = datetime.now(UTC)
    run_id, _ = start_run(engine, A, command=command, now=now)
    with writing(engine) as connection:
        run_log.note_first_page(connection, run_id, A, first_page)
        of_run = sync_run_numbers.c.run_id == run_id
        connection.execute(update(sync_run_numbers).where(of_run).values(pages=pages))
        if status in {"succeeded", "failed"}:
            run_log.close_number(connection, run_id, NumberOutcome(A, status), now)
        run_log.finish(connection, run_id, RunOutcome(status), now)
        ended = connection.execute(sql(sync_run_numbers.c.status).where(of_run)).scalar_one()
        assert ended == status


@pytest.mark.parametrize("status", ["interrupted", "abandoned", "failed"])
def test_an_unfinished_backfill_is_resumed(
    status: Status, engine: Engine, account: Account
) -> None:
    """It starts a few pages before the last one stored, and says that it read only the rest."""
    plant(engine, "backfill", first_page=1, pages=30, status=status)
    start = 1 + 30 - OVERLAP
    done = account.backfill()
    assert (done.code, account.pages_read) == (0, set(range(start, PAGES + 1)))
    number = number_in(done)
    assert (number["completeness"], number["first_page"]) == (None, start)
    assert number["reason"] == f"only pages {start} to {PAGES} were read{UNREAD}"


def test_a_resumed_backfill_can_be_resumed(engine: Engine, account: Account) -> None:
    """Its pages are counted from where it started, not from 1."""
    plant(engine, "backfill", first_page=20, pages=15, status="interrupted")
    account.backfill()
    assert account.pages_read == set(range(20 + 15 - OVERLAP, PAGES + 1))


@pytest.mark.parametrize(
    ("command", "pages", "status"),
    [
        ("backfill", 30, "succeeded"),
        ("backfill", 5, "interrupted"),
        ("sync", 30, "interrupted"),
    ],
)
def test_nothing_else_is_resumed(
    command: str, pages: int, status: Status, engine: Engine, account: Account
) -> None:
    """After a finished backfill, after very few pages, or after a sync it reads the whole list."""
    plant(engine, command, first_page=1, pages=pages, status=status)
    done = account.backfill()
    assert (done.code, account.pages_read) == (0, set(range(1, PAGES + 1)))
    assert number_in(done)["completeness"] == "consistent"


def test_first_page_overrides_resuming(engine: Engine, account: Account) -> None:
    """`--first-page 1` reads the whole list again."""
    plant(engine, "backfill", first_page=1, pages=30, status="interrupted")
    account.backfill("--first-page", "1")
    assert account.pages_read == set(range(1, PAGES + 1))


# The rate limit


def test_max_rps_limits_the_rate(database_url: str) -> None:
    """--max-rps bounds the requests per second, even if the API would take more."""
    with Sandbox(build_world(numbers=[A], chats_per_number=10)) as sandbox:
        env = environment(sandbox, database_url, A, LINQ_ETL_API__PER_PAGE="2")
        done = linq_etl("backfill", "--phone-number", A, "--max-rps", "10", "--json", env=env)
    began, finished = (instant(done.data[name]) for name in ("started_at", "finished_at"))
    assert began
    assert finished
    requests = done.data["requests"]
    assert (done.code, requests >= 6) == (0, True)
    assert (finished - began).total_seconds() >= (requests - 1) / 10


@pytest.mark.parametrize("rate", ["0", "-1", "fast"])
def test_max_rps_is_a_positive_number(rate: str, account: Account) -> None:
    """Anything else is exit code 2."""
    done = linq_etl("backfill", "--phone-number", A, "--max-rps", rate, env=account.env)
    assert (done.code, "--max-rps" in done.stderr) == (2, True)

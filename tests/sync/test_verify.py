"""Verify: what a random sample says of the stored chats, and of all that were not sampled."""

import asyncio
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from math import comb

import pytest
from sqlalchemy import update

from etl.config import Token
from etl.db.engine import open_engine, writing
from etl.db.tables import chats
from etl.sandbox import Sandbox, World, build_world
from etl.sync.verify import Mismatch, Verification, upper_bound, verify
from tests.support.builders import config_with
from tests.support.command import TOKEN, A, B, environment, execute, linq_etl, select, snapshot

pytestmark = pytest.mark.slow  # Each test starts processes.


class Account:
    """A sandbox, all of whose chats are synced."""

    def __init__(self, sandbox: Sandbox, database_url: str) -> None:
        self.sandbox = sandbox
        self.url = database_url
        self.env = environment(sandbox, database_url, A)
        assert linq_etl("sync", env=self.env).code == 0
        sandbox.requests.clear()

    @property
    def world(self) -> World:
        return self.sandbox.world

    def some_chat(self) -> int:
        return self.world.listing(A)[17]


@pytest.fixture
def account(database_url: str) -> Iterator[Account]:
    with Sandbox(build_world(numbers=[A], chats_per_number=40)) as sandbox:
        yield Account(sandbox, database_url)


def test_a_right_database_is_less_than_one_percent_wrong(database_url: str) -> None:
    """300 chats without a difference bound the share of wrong ones; nothing is written."""
    with Sandbox(build_world(numbers=[A], chats_per_number=300)) as sandbox:
        account = Account(sandbox, database_url)
        before = snapshot(account.url)
        done = linq_etl("verify", env=account.env)
    assert done.code == 0
    assert done.stdout == (
        "300 chats read again: 300 match, 0 stale, 0 wrong, 0 could not be read\n"
        "at 95 % confidence, less than 0.99 % of all chats are wrong\n"
    )
    assert snapshot(account.url) == before
    asked = {request.path.rpartition("/")[2] for request in account.sandbox.requests}
    assert asked == {str(chat_id) for chat_id in account.world.listing(A)}


def test_a_smaller_sample_says_less(account: Account) -> None:
    """It costs one request for each chat; the record for machines has the same numbers."""
    done = linq_etl("verify", "--sample", "20", "--json", env=account.env)
    assert (done.code, len(account.sandbox.requests)) == (0, 20)
    assert done.data == {
        "sampled": 20,
        "matches": 20,
        "unknown": 0,
        "findings": [],
        "wrong": 0,
        "bound": pytest.approx(1 - 0.05 ** (1 / 20)),
    }


def test_a_budget_bounds_the_sample(account: Account) -> None:
    """Of the command line before the configuration's."""
    env = account.env | {"LINQ_ETL_SYNC__MAX_REQUESTS": "9"}
    for options, size in (((), 9), (("--max-requests", "5"), 5)):
        account.sandbox.requests.clear()
        done = linq_etl("verify", *options, "--json", env=env)
        found = [done.data[name] for name in ("sampled", "matches", "unknown")]
        assert (done.code, found, len(account.sandbox.requests)) == (0, [size, size, 0], size)


def test_a_tampered_row_is_wrong(account: Account) -> None:
    """Exit code 3; the field is named, and what people wrote is not shown."""
    chat_id = account.some_chat()
    execute(account.url, f"UPDATE chats SET display_name = 'forged' WHERE id = {chat_id}")
    done = linq_etl("verify", env=account.env)
    assert done.code == 3
    assert done.stdout == (
        "40 chats read again: 39 match, 0 stale, 1 wrong, 0 could not be read\n"
        f"at 95 % confidence, less than {100 * upper_bound(1, 40):.2f} % of all chats are wrong\n"
        f"  WRONG  chat {chat_id}: display_name\n"
    )


def test_every_kind_of_difference_is_found(account: Account) -> None:
    """A lost participant, a participant's field and a chat buried alive are wrong."""
    several = (chat_id for chat_id in account.world.listing(A) if len(handles(account, chat_id)))
    lost, moved, buried = (next(several) for _ in range(3))
    for statement in (
        f"DELETE FROM chat_handles WHERE chat_id = {lost} AND id = {handles(account, lost)[0]}",
        "UPDATE chat_handles SET service = 'pigeon' "
        f"WHERE chat_id = {moved} AND id = {handles(account, moved)[0]}",
        f"UPDATE chats SET removed_at = changed_at WHERE id = {buried}",
    ):
        execute(account.url, statement)
    done = linq_etl("verify", "--json", env=account.env)
    assert (done.code, done.data["matches"], done.data["wrong"]) == (3, 37, 3)
    assert sorted(done.data["findings"], key=lambda finding: finding["fields"]) == [
        {"chat_id": lost, "fields": ["chat_handles"], "explained": False},
        {"chat_id": moved, "fields": ["chat_handles.service"], "explained": False},
        {"chat_id": buried, "fields": ["removed_at"], "explained": False},
    ]


def test_what_happened_since_makes_a_row_stale(account: Account) -> None:
    """New messages explain a difference, also a new name with them, and so does the chat's end."""
    busy, renamed, dead, *_ = account.world.listing(A)
    account.world.jump(busy)
    account.world.jump(renamed)
    account.world.rename(renamed)
    account.world.delete(dead)
    done = linq_etl("verify", "--json", env=account.env)
    assert (done.code, done.data["matches"], done.data["wrong"]) == (0, 37, 0)
    assert sorted(done.data["findings"], key=lambda finding: finding["fields"]) == [
        {"chat_id": renamed, "fields": ["display_name", "message_count"], "explained": True},
        {"chat_id": busy, "fields": ["message_count"], "explained": True},
        {"chat_id": dead, "fields": ["removed_at"], "explained": True},
    ]


def test_a_rename_alone_looks_wrong_until_the_next_sync(account: Account) -> None:
    """Nothing tells it from a fault; after a sync it is there."""
    account.world.rename(account.some_chat())
    assert linq_etl("verify", env=account.env).code == 3
    assert linq_etl("sync", env=account.env).code == 0
    assert linq_etl("verify", env=account.env).code == 0


def test_a_removed_chat_that_is_gone_matches(account: Account) -> None:
    """Rows that were marked are in the sample too."""
    account.world.delete(account.some_chat())
    assert linq_etl("sync", env=account.env).code == 0
    assert select(account.url, "SELECT count(*) FROM chats WHERE removed_at IS NOT NULL") == [(1,)]
    done = linq_etl("verify", "--json", env=account.env)
    assert (done.code, done.data["sampled"], done.data["matches"]) == (0, 40, 40)


def test_chats_that_are_large_as_stored_take_bounded_memory(account: Account) -> None:
    """Names of 4 MiB, of 40 chats, are read some at a time."""
    config = config_with(API__BASE_URL=account.sandbox.url, DATABASE__URL=account.url)
    config = replace(config, token=Token(TOKEN))
    engine = open_engine(account.url)
    try:
        with writing(engine) as connection:
            connection.execute(update(chats).values(display_name="😀" * 2**20))
        tracemalloc.start()
        result = asyncio.run(verify(config, engine, sample=40))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    finally:
        engine.dispose()
    assert (result.sampled, result.wrong) == (40, 40)
    assert most < 80 * 2**20


def test_a_refused_token_is_no_finding(account: Account) -> None:
    """Exit code 4, as everywhere."""
    wrong = account.env | {"LINQ_INTEGRATION_TOKEN": "wrong"}
    done = linq_etl("verify", env=wrong)
    assert (done.code, done.stdout) == (4, "")


def test_only_numbers_with_a_token_are_sampled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Without a common token, the chats of other numbers cannot be asked for."""
    folder = tmp_path_factory.mktemp("tokens")
    url = f"sqlite:///{folder}/linq.db"
    world = World((A, B))
    world.populate([(A,)] * 3 + [(B,)] * 4)
    with Sandbox(world, tokens={"sales": [A]}) as sandbox:
        assert linq_etl("sync", env=environment(sandbox, url)).code == 0
        path = folder / "config.toml"
        path.write_text(
            f'[sync]\nphone_numbers = [{{ number = "{A}", token_env = "TOKEN_SALES" }}]\n'
        )
        env = environment(sandbox, url, TOKEN_SALES="sales")
        del env["LINQ_ETL_SYNC__PHONE_NUMBERS"], env["LINQ_INTEGRATION_TOKEN"]
        done = linq_etl("--config", str(path), "verify", "--json", env=env)
    assert TOKEN not in env.values()
    assert (done.code, done.data["sampled"], done.data["matches"]) == (0, 3, 3)


@pytest.mark.parametrize(
    ("wrong", "sampled", "bound"),
    [
        (0, 300, 0.009936),
        (1, 300, 0.015715),
        (5, 300, 0.034722),
        (0, 10, 0.258866),
        (1, 10, 0.394163),
        (0, 1, 0.95),
        (10, 10, 1.0),
        (0, 0, 1.0),
    ],
)
def test_the_bound_is_that_of_clopper_and_pearson(wrong: int, sampled: int, bound: float) -> None:
    """With that share of wrong rows, so few are found in one sample of twenty."""
    assert upper_bound(wrong, sampled) == pytest.approx(bound, abs=1e-6)
    if wrong < sampled:
        share = upper_bound(wrong, sampled)
        chances = (
            comb(sampled, k) * share**k * (1 - share) ** (sampled - k) for k in range(wrong + 1)
        )
        assert sum(chances) == pytest.approx(0.05)


def test_what_could_not_be_read_counts_for_nothing() -> None:
    """The bound is about the chats that were answered for; stale ones are not wrong."""
    stale = Mismatch(1, ("removed_at",), explained=True)
    wrong = Mismatch(2, ("id",), explained=False)
    result = Verification(sampled=310, matches=298, unknown=10, findings=(stale, wrong))
    assert result.wrong == 1
    assert result.bound == upper_bound(1, 300)


def handles(account: Account, chat_id: int) -> list[int]:
    return [handle["id"] for handle in account.world.chat(chat_id)["chat_handles"]]

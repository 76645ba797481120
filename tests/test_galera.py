"""Runs on different nodes of a Galera cluster, where a row locked on one node is free on another.

Of two transactions that wrote the same row, the cluster refuses the one that commits second; it is
repeated whole.
"""

import asyncio
import subprocess
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, func, insert, select

from etl.api.models import ApiUsage
from etl.config import PhoneNumber
from etl.db import leases, run_log
from etl.db.engine import open_engine, reading, writing
from etl.db.run_log import RunOutcome
from etl.db.store.pages import store_pages
from etl.db.store.removals import Removals
from etl.db.tables import chat_events, chat_message_counts, chats, metadata
from etl.db.transactions import Transactions
from etl.errors import DatabaseConflictError, LeaseLostError
from etl.sandbox import Sandbox, World
from etl.sync.writer import Item, Writer
from tests.support import galera, mysql
from tests.support.builders import (
    NOON,
    A,
    B,
    C,
    chat,
    load_numbers,
    minute,
    observed_page,
    second,
    start_run,
)
from tests.support.command import (
    HoldingSandbox,
    ended,
    environment,
    held,
    linq_etl,
    running,
    stored,
    wait_until,
)
from tests.support.command import select as rows_of
from tests.support.marks import cannot_run

pytestmark = pytest.mark.slow  # Each test starts processes, and the first one a cluster.

D = "+13125550188"
NUMBERS = (A, B, C, D)
Nodes = tuple[galera.Node, galera.Node, galera.Node]
Urls = tuple[str, str, str]
TAKEOVERS = 25  # for each order of their statements


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    try:
        with galera.cluster() as started:
            yield started
    except galera.NoGaleraError as reason:
        cannot_run(f"no Galera: {reason}")


@pytest.fixture
def empty(nodes: Nodes) -> Iterator[Urls]:
    """The URLs of a new, empty database, one for each node."""
    one, two, three = nodes
    for node in nodes:
        node.wait_until_synced(len(nodes))
    with mysql.database(one.url) as url:
        name = url.rpartition("/")[2]
        for node in (two, three):
            node.wait(lambda: mysql.execute(node.url, f"SHOW DATABASES LIKE '{name}'"))  # noqa: B023
        yield one.database(name), two.database(name), three.database(name)


@pytest.fixture
def urls(empty: Urls) -> Urls:
    """The same, migrated."""
    assert linq_etl("db", "upgrade", env={"LINQ_ETL_DATABASE__URL": empty[0]}).code == 0
    return empty


@pytest.fixture
def world() -> World:
    """Sixty chats that all four numbers list, and ten of each number alone."""
    world = World(NUMBERS)
    alone: list[tuple[str, ...]] = [(number,) for number in NUMBERS]
    world.populate([NUMBERS] * 60 + alone * 10)
    return world


def everything(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables, as the node has them once it has what the others committed."""
    engine = open_engine(url)
    try:
        with reading(engine) as connection:
            found = {name: connection.execute(select(t)) for name, t in metadata.tables.items()}
            return {name: sorted(map(tuple, rows), key=repr) for name, rows in found.items()}
    finally:
        engine.dispose()


def assert_same(urls: Urls) -> None:
    """All nodes have the same rows."""
    first, *others = map(everything, urls)
    for other in others:
        assert other == first


def assert_synced(urls: Urls, world: World, numbers: Sequence[str] = NUMBERS) -> None:
    """All nodes have the same rows, which are what the API has."""
    assert_same(urls)
    found = stored(urls[0])
    ids = {chat_id for chat_id, *_ in found["chats"]}
    found["handles"] = [row for row in found["handles"] if row[0] in ids]  # not of removed chats
    assert found == held(world, numbers)


def events(url: str) -> list[tuple[Any, ...]]:
    """Each as often as it was recorded."""
    found = rows_of(url, "SELECT chat_id, kind, old_value, new_value FROM chat_events")
    return sorted(found, key=repr)


def change(world: World, name: str) -> list[tuple[Any, ...]]:
    """Change each chat that all numbers list, in one way; return the events."""
    expected: list[tuple[Any, ...]] = []
    shared = sorted(chat_id for chat_id in world.listing(A) if len(world.owners(chat_id)) > 1)
    for position, chat_id in enumerate(shared):
        match position % 4:
            case 0:
                before = world.chat(chat_id)["display_name"]
                world.rename(chat_id, name)
                expected.append((chat_id, "renamed", before, name))
            case 1:
                world.join(chat_id)
                joined = world.chat(chat_id)["chat_handles"][-1]["phone_number"]
                expected.append((chat_id, "joined", None, joined))
            case 2 if position < 20:
                world.delete(chat_id)
                expected.append((chat_id, "removed", None, None))
            case _:
                world.jump(chat_id)
    return expected


# Many runs


def settings(sandbox: Sandbox, url: str, *numbers: str, **others: str) -> dict[str, str]:
    """With short pages, so that a run writes many batches."""
    short = {"LINQ_ETL_API__PER_PAGE": "5", "LINQ_ETL_API__MAX_CONCURRENCY": "2"}
    return environment(sandbox, url, *numbers, **short, **others)


def sync_at_once(sandbox: Sandbox, where: Sequence[tuple[str, str]]) -> list[int]:
    """A process for each URL and number; their exit codes."""
    with ExitStack() as stack:
        processes = [
            stack.enter_context(running("sync", env=settings(sandbox, url, number)))
            for url, number in where
        ]
        return [ended(process, 120).code for process in processes]


def test_runs_of_different_numbers(urls: Urls, world: World) -> None:
    """Each run ends well; each chat that they share, and each event, is stored once."""
    one, two, three = urls
    where = [(one, A), (two, B), (three, C), (one, D)]
    with Sandbox(world) as sandbox:
        assert sync_at_once(sandbox, where) == [0] * 4
        assert_synced(urls, world)
        assert events(one) == []
        expected = change(world, "All at once")
        assert sync_at_once(sandbox, where) == [0] * 4
        assert_synced(urls, world)
        assert events(one) == sorted(expected, key=repr)


def test_runs_of_one_number(urls: Urls, world: World) -> None:
    """Of runs that begin at once, one syncs the number, and the others say that it is busy."""
    with HoldingSandbox(world, answers=3) as sandbox, ExitStack() as stack:
        env = [settings(sandbox, url, A) for url in urls]
        runs = [stack.enter_context(running("sync", env=each)) for each in env]
        wait_until_any(runs, 2)
        sandbox.release()
        assert sorted(ended(run).code for run in runs) == [0, 7, 7]
    assert_synced(urls, world, [A])


def wait_until_any(processes: Sequence["subprocess.Popen[str]"], count: int) -> None:
    """Wait until so many of them have ended."""
    pause = threading.Event()
    for _ in range(3000):
        if sum(process.poll() is not None for process in processes) == count:
            return
        pause.wait(0.02)
    raise AssertionError("they have not ended")


def test_nodes_that_fail(nodes: Nodes, urls: Urls, world: World) -> None:
    """A run whose node stays away fails, one whose node comes back goes on; nothing is lost."""
    one, two, three = urls
    with Sandbox(world) as sandbox:
        assert linq_etl("sync", env=settings(sandbox, one, *NUMBERS)).code == 0
    expected = change(world, "While a node is killed")
    with in_mid_run(world, [(one, A), (two, B), (three, C)]) as (sandbox, runs):
        nodes[2].kill()
        sandbox.release()
        assert [ended(run, 60).code for run in runs] == [0, 0, 6]
    nodes[2].start()
    expected += change(world, "While a node is cut off")
    with in_mid_run(world, [(one, A), (two, B), (three, C)], patience=60) as (sandbox, runs):
        with nodes[1].isolated():
            nodes[1].wait_until_cut_off()
            sandbox.release()
            assert [ended(run, 60).code for run in (runs[0], runs[2])] == [0, 0]
            assert runs[1].poll() is None
        assert ended(runs[1], 60).code == 0
    nodes[1].wait_until_synced(3)
    with Sandbox(world) as sandbox:
        assert linq_etl("sync", env=settings(sandbox, two, *NUMBERS)).code == 0
    assert_synced(urls, world)
    assert events(two) == sorted(expected, key=repr)
    statuses = "SELECT status, count(*) FROM sync_runs GROUP BY status ORDER BY status"
    assert rows_of(three, statuses) == [("abandoned", 1), ("succeeded", 7)]


@contextmanager
def in_mid_run(
    world: World, where: Sequence[tuple[str, str]], patience: int = 1
) -> Iterator[tuple[HoldingSandbox, list["subprocess.Popen[str]"]]]:
    """A run for each URL and number, once each has stored some pages and waits for the next."""
    (url, _), *_ = where
    numbers = [number for _, number in where]
    stored_pages = "SELECT count(*) FROM sync_run_numbers WHERE status = 'running' AND pages > 0"
    api = HoldingSandbox(world, answers=4, number=numbers[0], others=numbers[1:])
    with api as sandbox, ExitStack() as stack:
        waits = {"LINQ_ETL_DATABASE__PATIENCE": str(patience)}
        runs = [
            stack.enter_context(running("sync", env=settings(sandbox, each, number, **waits)))
            for each, number in where
        ]
        wait_until(lambda: rows_of(url, stored_pages) == [(len(runs),)], runs[0])
        yield sandbox, runs


# Two transactions


@pytest.fixture
def engines(urls: Urls) -> Iterator[list[Engine]]:
    """The database, opened on each node."""
    opened = [open_engine(url) for url in urls]
    yield opened
    for engine in opened:
        engine.dispose()


class Meeting:
    """Lets two transactions wait for each other, the first time that each gets there."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(2, timeout=30)
        self._arrived: set[str] = set()

    def arrive(self, name: str) -> None:
        if name not in self._arrived:
            self._arrived.add(name)
            self._barrier.wait()


POINTS = ("at the beginning", "after the fence", "in the middle", "before the commits")


@pytest.mark.parametrize("point", POINTS)
def test_a_takeover_on_another_node(engines: list[Engine], point: str) -> None:
    """What a run writes is there before it is taken for dead, or it is never written."""
    one, two, _ = engines
    outcomes = {Takeover(one, two, number, point).outcome() for number in range(TAKEOVERS)}
    written, refused = ("written", 1), ("refused", 0)
    assert outcomes <= ({refused} if point == "in the middle" else {written, refused})


class Takeover:
    """A run that stalled until its lease expired writes a batch, and another one takes over."""

    def __init__(self, one: Engine, two: Engine, number: int, point: str) -> None:
        self._one, self._two, self._point = one, two, point
        self._number = number
        self._at = NOON + timedelta(hours=2 * number)
        self._later = self._at + timedelta(hours=1)
        self._run_id, _ = start_run(one, A, now=self._at)
        self._meetings = {each: Meeting() for each in self._places()}

    def _places(self) -> set[str]:
        """Where the two wait for each other."""
        if self._point == "in the middle":
            return {"after the fence", "after the takeover"}
        return {self._point}

    def outcome(self) -> tuple[str, int]:
        """What became of the batch, and how many of its rows the other run found afterwards."""
        return asyncio.run(self._race())

    async def _race(self) -> tuple[str, int]:
        stalled, other = Transactions(self._one, patience=30), Transactions(self._two, patience=30)

        async def take_over() -> int:
            run_id = await other.write(self._take_over)
            self._reach("after the takeover", "takeover")
            found = await other.read(self._count)
            finished = RunOutcome("succeeded")
            await other.write(lambda c: run_log.finish(c, run_id, finished, self._later))
            return found

        written, found = await asyncio.gather(
            stalled.write(self._write), take_over(), return_exceptions=True
        )
        assert isinstance(found, int), found
        assert written is None or isinstance(written, LeaseLostError), written
        return "written" if written is None else "refused", found

    def _write(self, connection: Connection) -> None:
        self._reach("at the beginning", "batch")
        leases.lock_writers(connection)
        leases.move_fence(connection, self._run_id, 1)
        leases.ensure_held(connection, self._run_id, [A])
        self._reach("after the fence", "batch")
        self._reach("after the takeover", "batch")
        row = {"chat_id": self._number, "observed_at": self._at, "run_id": self._run_id}
        connection.execute(insert(chat_message_counts), {**row, "observed_on": self._at.date()})
        self._reach("before the commits", "batch")

    def _take_over(self, connection: Connection) -> int:
        self._reach("at the beginning", "takeover")
        self._reach("after the fence", "takeover")
        if not run_log.abandon(connection, self._run_id, self._later):
            raise DatabaseConflictError("its batch arrives from the other node just now")
        run_id = run_log.start(connection, "sync", now=self._later, lease_seconds=60)
        claim = run_log.claim(connection, run_id, [PhoneNumber(A)], self._later)
        assert claim.held == {A}
        self._reach("before the commits", "takeover")
        return run_id

    def _reach(self, place: str, name: str) -> None:
        if place in self._meetings:
            self._meetings[place].arrive(name)

    def _count(self, connection: Connection) -> int:
        mine = chat_message_counts.c.run_id == self._run_id
        return connection.execute(select(func.count()).where(mine)).scalar_one()


@pytest.fixture
def runs(engines: list[Engine]) -> tuple[int, int]:
    """A run of A on the first node and one of B on the second; both list chat 1 since long."""
    one, two, _ = engines
    first, _ = start_run(one, A, B)
    with writing(one) as connection:
        pages = [observed_page(chat(1), phone_number=number) for number in (A, B)]
        store_pages(connection, pages, run_id=first, now=NOON)
        run_log.finish(connection, first, RunOutcome("succeeded"), NOON)
    load_numbers(one, A, B)
    return start_run(one, A, now=second(1))[0], start_run(two, B, now=second(2))[0]


def test_a_change_that_two_numbers_show_at_once(
    engines: list[Engine], runs: tuple[int, int]
) -> None:
    """A run that compares while another node commits the same change compares again."""
    one, two, three = engines
    renamed = [
        observed_page(chat(1, display_name="Bo"), phone_number=number, at=minute(1))
        for number in (A, B)
    ]
    others: list[int] = []

    def write_on_one(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO chats") and not others:
            others.append(1)
            asyncio.run(write(one, runs[0], renamed[0]))
            with reading(two) as connection:
                connection.execute(select(chats.c.id)).all()

    event.listen(two, "before_cursor_execute", write_on_one)
    asyncio.run(write(two, runs[1], renamed[1]))
    assert others == [1]
    assert history(three) == [(runs[0], "renamed")]


def test_a_chat_that_two_numbers_lose_at_once(engines: list[Engine], runs: tuple[int, int]) -> None:
    """The run that commits second sees that no number lists it any more, and marks it."""
    one, two, three = engines
    gone = [Removals(number, (1,), (), (), minute(1)) for number in (A, B)]
    meeting = Meeting()
    for engine, name in ((one, "first"), (two, "second")):
        event.listen(engine, "commit", lambda _, name=name: meeting.arrive(name))

    async def both() -> None:
        await asyncio.gather(write(one, runs[0], gone[0]), write(two, runs[1], gone[1]))

    asyncio.run(both())
    ((_, kind),) = history(three)
    assert kind == "removed"
    with reading(three) as connection:
        assert connection.execute(select(chats.c.removed_at)).scalars().all() == [minute(1)]


def history(engine: Engine) -> list[tuple[int, str]]:
    with reading(engine) as connection:
        found = connection.execute(select(chat_events.c.run_id, chat_events.c.kind))
        return [(row.run_id, row.kind) for row in found]


async def write(engine: Engine, run_id: int, *items: Item) -> None:
    """Store the items as the run does."""
    transactions = Transactions(engine, patience=30, run_id=run_id)
    usage: defaultdict[str | None, ApiUsage] = defaultdict(ApiUsage)
    writer = Writer(transactions, run_id, lambda: minute(2), usage, least_recall=0.99)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(writer.run())
        for item in items:
            await writer.put(item)
        await writer.drain()
        running.cancel()


# Migrations


def test_upgrades_at_once(empty: Urls) -> None:
    """Each waits for the others or finds their work done; the schema is what one alone makes."""
    with ExitStack() as stack:
        env = [{"LINQ_ETL_DATABASE__URL": url} for url in empty]
        upgrades = [stack.enter_context(running("db", "upgrade", env=each)) for each in env]
        assert [ended(process, 90).code for process in upgrades] == [0, 0, 0]
    assert_same(empty)
    for each in env:
        assert linq_etl("db", "check", env=each).code == 0

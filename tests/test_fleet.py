"""Many processes that share one list of numbers, some of which are killed."""

import signal
from collections import Counter
from contextlib import ExitStack
from itertools import count, islice

import pytest

from etl.sandbox import Faults, Sandbox, World
from tests.support import postgres
from tests.support.command import (
    A,
    B,
    HoldingSandbox,
    ended,
    environment,
    execute,
    held,
    linq_etl,
    running,
    select,
    stored,
    wait_until,
)

pytestmark = pytest.mark.slow  # Each test starts processes.

NUMBERS = tuple(f"+1312555{n:04}" for n in range(60))
PER_PAGE = 5
LOG = "SELECT phone_number, status, requests FROM sync_run_numbers"


def uneven_world(numbers: tuple[str, ...] = NUMBERS) -> World:
    """Lists of 40, 20, 13, 10, 8, … pages, the longest ones last."""
    world = World(numbers)
    pages = dict(zip(reversed(numbers), (max(40 // n, 1) for n in count(1)), strict=False))
    world.populate([(number,) for number in numbers for _ in range(PER_PAGE * pages[number])])
    return world


def fleet_environment(sandbox: Sandbox, url: str, *numbers: str) -> dict[str, str]:
    per_page = {"LINQ_ETL_API__PER_PAGE": str(PER_PAGE)}
    return environment(sandbox, url, *numbers, **per_page)


def finished(url: str) -> int:
    return len(select(url, f"{LOG} WHERE status = 'succeeded'"))


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_eight_workers_of_which_two_are_killed(database_url: str) -> None:
    """Each number is synced once, the tables equal the API, and few requests are wasted."""
    world = uneven_world()
    with Sandbox(world, faults=Faults(latency=0.02)) as sandbox, ExitStack() as stack:
        env = fleet_environment(sandbox, database_url, *NUMBERS)
        assert linq_etl("db", "upgrade", env=env).code == 0
        workers = [stack.enter_context(running("sync", "--join", env=env)) for _ in range(8)]
        wait_until(lambda: finished(database_url) >= 5, workers[0])
        for worker in workers[:2]:
            worker.kill()
        codes = [ended(worker).code for worker in workers]
        requests = sandbox.request_count
    assert codes == [-signal.SIGKILL] * 2 + [0] * 6
    log = select(database_url, LOG)
    assert Counter(number for number, status, _ in log if status == "succeeded") == Counter(NUMBERS)
    assert stored(database_url) == held(world, NUMBERS)
    assert select(database_url, "SELECT * FROM number_leases") == []
    spent = sum(number[2] for number in log if number[1] == "succeeded")
    lists = sum(request.path.endswith("/chats") for request in sandbox.requests)
    assert requests - lists <= 3  # List Phone Numbers; each killed worker may have asked too
    assert spent <= 1.05 * requests_of_one_worker(world)


def requests_of_one_worker(world: World) -> int:
    """Two requests more than a list has pages, and one for the numbers."""
    pages = [-(-len(world.listing(number)) // PER_PAGE) for number in world.numbers]
    return sum(pages) + 2 * len(pages) + 1


def test_a_worker_waits_for_a_number_and_takes_it_over(postgres_server: str) -> None:
    """From a process of this machine at once when that is killed, however long its lease is."""
    world = uneven_world((A, B))
    with (
        postgres.database(postgres_server) as url,
        HoldingSandbox(world, answers=2) as sandbox,
        running("sync", env=fleet_environment(sandbox, url, A)) as holder,
    ):
        wait_until(sandbox.holding.is_set, holder)
        execute(url, "UPDATE sync_runs SET lease_expires_at = now() + interval '50 minutes'")
        with running("sync", "--join", env=fleet_environment(sandbox, url)) as worker:
            wait_until(lambda: finished(url) == 1, worker)
            sandbox.release()
            holder.kill()
            holder.wait()
            assert ended(worker).code == 0
        assert stored(url) == held(world)


def test_a_waiting_worker_holds_no_connection_and_ends_at_once(postgres_server: str) -> None:
    """By SIGTERM, with exit code 143 and its run closed."""
    mine = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid()"
    )
    world = uneven_world((A, B))
    with (
        postgres.database(postgres_server) as url,
        Sandbox(world) as sandbox,
    ):
        env = fleet_environment(sandbox, url, A)
        assert linq_etl("sync", env=env).code == 0
        execute(
            url,
            "UPDATE sync_runs SET status = 'running', owner = 'elsewhere', "
            "lease_expires_at = now() + interval '50 minutes'",
        )
        execute(url, "INSERT INTO number_leases SELECT phone_number, 1 FROM phone_numbers")
        with running("sync", "--join", "--since", "0s", env=env) as worker:
            wait_until(lambda: len(select(url, "SELECT 1 FROM sync_runs")) == 2, worker)
            looks = (select(url, mine)[0][0] for _ in count())
            wait_until(lambda: not any(islice(looks, 3)), worker)
            worker.send_signal(signal.SIGTERM)
            assert ended(worker, within=5).code == 143
        assert select(url, "SELECT status FROM sync_runs ORDER BY id") == [
            ("running",),
            ("interrupted",),
        ]

"""Runs that are killed, stopped, interrupted or compete for a number, as real processes."""

import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from etl.sandbox import Faults, Sandbox, World, build_world
from tests.support import postgres
from tests.support.builders import A, B
from tests.support.command import (
    HoldingSandbox,
    ended,
    environment,
    execute,
    held,
    linq_etl,
    running,
    select,
    snapshot,
    stored,
    wait_until,
)

pytestmark = pytest.mark.slow  # Each test starts processes.

PAGES = 4  # pages of ten chats that are stored when a run is stopped in the middle
LAST_PAGE = 12
FEW_SECONDS = 5.0


@pytest.fixture
def world() -> World:
    return build_world(chats_per_number=10 * LAST_PAGE)


@pytest.fixture
def sandbox(world: World) -> Iterator[HoldingSandbox]:
    """Answers four pages of A's list, then lets the run wait."""
    with HoldingSandbox(world, answers=PAGES) as holding:
        yield holding


def short_pages(api: Sandbox, database_url: str, *numbers: str) -> dict[str, str]:
    """An environment with short pages, requested one after another."""
    return environment(
        api,
        database_url,
        *(numbers or (A,)),
        LINQ_ETL_API__PER_PAGE="10",
        LINQ_ETL_API__MAX_CONCURRENCY="1",
    )


def wait_for_middle(
    process: subprocess.Popen[str], sandbox: HoldingSandbox, database_url: str
) -> None:
    """Wait until the run has stored the pages it got and waits for the next."""
    wait_until(sandbox.holding.is_set, process)
    pages = f"SELECT pages FROM sync_run_numbers WHERE phone_number = '{A}'"
    wait_until(lambda: select(database_url, pages) == [(PAGES,)], process)


def run_statuses(database_url: str) -> list[str]:
    return [
        status for (status,) in select(database_url, "SELECT status FROM sync_runs ORDER BY id")
    ]


def assert_whole_pages(world: World, database_url: str) -> None:
    """The stored chats are those of whole pages, complete as the API holds them."""
    found, everything = stored(database_url), held(world, [A])
    ids = {chat[0] for chat in found["chats"]}
    assert len(ids) == 10 * PAGES
    assert found == {
        "chats": [row for row in everything["chats"] if row[0] in ids],
        "handles": [row for row in everything["handles"] if row[0] in ids],
        "memberships": [row for row in everything["memberships"] if row[1] in ids],
    }


def test_a_killed_run_blocks_nothing(
    sandbox: HoldingSandbox, world: World, database_url: str
) -> None:
    """After kill -9 the next sync starts at once, closes the dead run and stores every chat."""
    env = short_pages(sandbox, database_url)
    with running("sync", env=env) as process:
        wait_for_middle(process, sandbox, database_url)
        process.kill()
        process.wait()
    assert_whole_pages(world, database_url)
    sandbox.release()
    assert linq_etl("sync", env=env).code == 0
    assert stored(database_url) == held(world, [A])
    log = linq_etl("runs", "--json", env=env).data
    assert [run["status"] for run in log] == ["succeeded", "abandoned"]
    assert log[1]["finished_at"]
    assert select(database_url, "SELECT * FROM number_leases") == []


def test_a_killed_dry_run_blocks_nothing(
    sandbox: HoldingSandbox, world: World, database_url: str
) -> None:
    """After kill -9 it has a lease and no data; the next sync closes it."""
    env = short_pages(sandbox, database_url)
    assert linq_etl("sync", env=short_pages(sandbox, database_url, B)).code == 0
    execute(
        database_url,
        "INSERT INTO phone_numbers (phone_number, first_seen_at) "
        f"VALUES ('{A}', '2025-06-01 00:00:00.000000')",
    )
    before = snapshot(database_url)
    with running("sync", "--dry-run", env=env) as process:
        wait_until(sandbox.holding.is_set, process)
        process.kill()
        process.wait()
    assert snapshot(database_url) == before
    assert select(database_url, "SELECT phone_number FROM number_leases") == [(A,)]
    sandbox.release()
    assert linq_etl("sync", env=env).code == 0
    assert run_statuses(database_url) == ["succeeded", "abandoned", "succeeded"]
    assert select(database_url, "SELECT * FROM number_leases") == []
    assert stored(database_url) == held(world)


def test_a_stopped_run_whose_lease_expired_writes_no_more(
    sandbox: HoldingSandbox, world: World, database_url: str
) -> None:
    """Another run has taken its number; when it continues it ends with exit code 7."""
    env = short_pages(sandbox, database_url)
    with running("sync", env=env) as stopped:
        wait_for_middle(stopped, sandbox, database_url)
        stopped.send_signal(signal.SIGSTOP)
        execute(
            database_url, "UPDATE sync_runs SET lease_expires_at = '2001-01-01 00:00:00.000000'"
        )
        sandbox.release()
        assert linq_etl("sync", env=env).code == 0
        assert stored(database_url) == held(world, [A])
        after = snapshot(database_url)
        log = select(database_url, "SELECT * FROM sync_run_numbers ORDER BY run_id")
        for chat_id in world.listing(A):
            world.jump(chat_id)
        stopped.send_signal(signal.SIGCONT)
        resumed = ended(stopped)
    assert resumed.code == 7
    assert "this run was taken for dead and closed" in resumed.stderr
    assert snapshot(database_url) == after
    assert select(database_url, "SELECT * FROM sync_run_numbers ORDER BY run_id") == log
    assert run_statuses(database_url) == ["abandoned", "succeeded"]


def test_two_runs_at_once(sandbox: HoldingSandbox, world: World, database_url: str) -> None:
    """On the same number the second ends with exit code 7; on another number both succeed."""
    env = short_pages(sandbox, database_url)
    with running("sync", env=env) as first:
        wait_for_middle(first, sandbox, database_url)
        ((since,),) = select(database_url, "SELECT started_at FROM sync_runs")
        same = linq_etl("sync", env=env)
        other = linq_etl("sync", env=short_pages(sandbox, database_url, B))
        sandbox.release()
        assert ended(first).code == 0
    assert same.code == 7
    holder = f"…4472: run 1 on {socket.gethostname()} has held it since {str(since)[:19]}"
    assert holder in same.stderr
    assert other.code == 0
    assert stored(database_url) == held(world)
    assert run_statuses(database_url) == ["succeeded", "failed", "succeeded"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_run_ends_cleanly(
    number: signal.Signals, code: int, sandbox: HoldingSandbox, world: World, tmp_path: Path
) -> None:
    """It ends within seconds with whole pages stored and its number free for the next sync."""
    url = f"sqlite:///{tmp_path}/linq.db"
    env = short_pages(sandbox, url)
    with running("sync", env=env) as process:
        wait_for_middle(process, sandbox, url)
        process.send_signal(number)
        assert ended(process, within=FEW_SECONDS).code == code
    assert_whole_pages(world, url)
    assert select(url, "SELECT status, error_kind, pages FROM sync_run_numbers") == [
        ("interrupted", "interrupted", PAGES)
    ]
    sandbox.release()
    assert linq_etl("sync", env=env).code == 0
    assert stored(url) == held(world, [A])
    assert run_statuses(url) == ["interrupted", "succeeded"]


def test_a_run_that_waits_for_the_api_can_be_interrupted(tmp_path: Path, world: World) -> None:
    """A long Retry-After does not delay SIGTERM."""
    url = f"sqlite:///{tmp_path}/linq.db"
    throttling = Sandbox(world, faults=Faults(rate_limit=0.01, retry_after="seconds"))
    with throttling, running("sync", env=short_pages(throttling, url)) as process:
        wait_until(lambda: throttling.request_count > 1, process)
        process.send_signal(signal.SIGTERM)
        assert ended(process, within=FEW_SECONDS).code == 143
    assert run_statuses(url) == ["interrupted"]


def test_a_full_disk_loses_no_data(tmp_path: Path, world: World) -> None:
    """Exit code 6; once there is space, the next sync stores everything."""
    url = f"sqlite:///{tmp_path}/linq.db"
    with Sandbox(world) as sandbox:
        env = short_pages(sandbox, url)
        assert linq_etl("db", "upgrade", env=env).code == 0
        blocks = str(Path("linq.db").stat().st_size // 512 + 8)
        limited = 'ulimit -f "$1"; shift; exec "$@"'
        full = linq_etl("sync", env=env, under=("sh", "-c", limited, "sh", blocks))
        assert full.code == 6
        assert "linq-etl: the database is unavailable" in full.stderr
        assert linq_etl("sync", env=env).code == 0
    assert stored(url) == held(world, [A])
    assert run_statuses(url)[-1] == "succeeded"


def test_a_read_only_database_is_reported(world: World, postgres_server: str) -> None:
    """Exit code 6 before the first request to the API."""
    with postgres.database(postgres_server) as url, Sandbox(world) as sandbox:
        env = short_pages(sandbox, url)
        assert linq_etl("db", "upgrade", env=env).code == 0
        name = select(url, "SELECT current_database()")[0][0]
        execute(url, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        refused = linq_etl("sync", env=env)
        assert sandbox.request_count == 0
    assert refused.code == 6
    assert "it is read-only: connect to the primary" in refused.stderr

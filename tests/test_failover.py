"""A server that crashes in the middle of a run, and comes back or is replaced by its standby."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from etl.sandbox import World, build_world
from tests.support import postgres
from tests.support.command import (
    HoldingSandbox,
    ended,
    environment,
    execute,
    held,
    linq_etl,
    running,
    search_path,
    select,
    snapshot,
    stored,
    wait_until,
)
from tests.support.marks import cannot_run
from tests.support.postgres import PrivateServer

pytestmark = pytest.mark.slow  # Each test starts servers and processes.

OUTAGE = 20.0  # seconds
LOG = Path("log")


@pytest.fixture
def primary() -> Iterator[PrivateServer]:
    try:
        with postgres.private_server() as server:
            yield server
    except postgres.NoPostgresError as reason:
        cannot_run(f"no PostgreSQL: {reason}")


@pytest.fixture
def standby(primary: PrivateServer) -> Iterator[PrivateServer]:
    """A standby that has every transaction before its client hears that it is committed."""
    with postgres.private_server(primary=primary) as server:
        execute(primary.url, "ALTER SYSTEM SET synchronous_standby_names = '*'")
        execute(primary.url, "SELECT pg_reload_conf()")
        yield server


@contextmanager
def crash_in_a_run(
    primary: PrivateServer, url: str, **settings: str
) -> Iterator[subprocess.Popen[str]]:
    """A sync that has stored some pages and waits for its database; at the end, nothing is lost."""
    schema = settings.get("LINQ_ETL_DATABASE__SCHEMA", "public")
    rows_url = search_path(url, schema)
    world = build_world(chats_per_number=120)
    with HoldingSandbox(world, answers=4) as sandbox:
        env = environment(sandbox, url, LINQ_ETL_API__PER_PAGE="10", **settings)
        assert linq_etl("db", "upgrade", env=env).code == 0
        with (
            LOG.open("w") as stderr,
            running("--log-json", "sync", env=env, stderr=stderr) as process,
        ):
            wait_until(
                lambda: select(search_path(primary.url, schema), "SELECT id FROM chats"), process
            )
            wait_until(sandbox.holding.is_set, process)
            primary.stop()
            sandbox.release()
            wait_until(lambda: '"waiting_for_database"' in LOG.read_text(), process)
            yield process
            assert ended(process, within=60).code == 0
        assert "Traceback" not in LOG.read_text()
        assert '"level": "error"' not in LOG.read_text()
        assert_complete(world, rows_url)
        before = snapshot(rows_url)
        assert linq_etl("sync", env=env).code == 0
        assert snapshot(rows_url) == before


def assert_complete(world: World, url: str) -> None:
    """Every row is stored, and was counted once."""
    assert stored(url) == held(world)
    query = "SELECT status, error_kind, chats_inserted, handles_inserted FROM sync_runs"
    counts = len(held(world)["chats"]), len(held(world)["handles"])
    assert select(url, query) == [("succeeded", None, *counts)]


def test_a_server_may_be_away_for_20_seconds(primary: PrivateServer) -> None:
    """The run waits, and ends with 0 once the server is back."""
    with crash_in_a_run(primary, primary.url) as process:
        since = time.monotonic()
        wait_until(lambda: time.monotonic() - since > OUTAGE, process)
        primary.start()


def test_a_standby_may_take_over(primary: PrivateServer, standby: PrivateServer) -> None:
    """The run finds the new primary, and its schema, by itself: the URL names both servers."""
    hosts = ",".join(quote(str(server.folder), safe="") for server in (primary, standby))
    url = f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"
    with crash_in_a_run(primary, url, LINQ_ETL_DATABASE__SCHEMA="linq"):
        standby.promote()

"""The main job through PgBouncer in transaction pooling, where no session belongs to a client."""

from collections.abc import Iterator

import psycopg
import pytest

from etl.sandbox import Sandbox, build_world
from tests.db.conftest import RoleDatabase, change, run_main_job
from tests.support import pgbouncer
from tests.support.builders import A, B
from tests.support.command import ended, environment, held, linq_etl, running, select, stored
from tests.support.marks import cannot_run

pytestmark = pytest.mark.slow

# Fewer server connections than two syncs at once would open.
POOL_SIZE = 2
# PgBouncer itself sets these for each client.
PER_CLIENT = "'DateStyle', 'TimeZone', 'client_encoding', 'application_name'"


@pytest.fixture
def pooled_url(role_database: RoleDatabase) -> Iterator[str]:
    """The database through PgBouncer, whose role may create tables and has unusual settings."""
    role_database.execute(
        "GRANT CREATE ON SCHEMA public TO {role}",
        "ALTER ROLE {role} SET datestyle = 'SQL, DMY'",
        "ALTER ROLE {role} SET timezone = 'America/New_York'",
    )
    try:
        with pgbouncer.pooled(role_database.role_url, pool_size=POOL_SIZE) as url:
            yield url
    except pgbouncer.NoPgBouncerError as reason:
        cannot_run(f"no PgBouncer: {reason}")


def settings_found(pooled_url: str) -> dict[int, list[str]]:
    """By server process, the settings that a new client finds changed."""
    query = f"SELECT name FROM pg_settings WHERE source = 'session' AND name NOT IN ({PER_CLIENT})"
    found = {}
    clients = [psycopg.connect(pooled_url) for _ in range(POOL_SIZE)]
    for client in clients:  # Each keeps its server connection until its transaction ends.
        ((process,),) = client.execute("SELECT pg_backend_pid()").fetchall()
        found[process] = [name for (name,) in client.execute(query)]
    for client in clients:
        client.close()
    return found


def test_the_main_job_runs_through_a_pooler(pooled_url: str, role_database: RoleDatabase) -> None:
    """All rows are stored; the pooler's connections are left without settings or tables."""
    run_main_job(linq_etl, pooled_url, role_database.owner_url)
    sessions = f"SELECT pid FROM pg_stat_activity WHERE usename = '{role_database.role}'"
    used = {process for (process,) in select(role_database.owner_url, sessions)}
    found = settings_found(pooled_url)
    assert used
    assert used <= found.keys()
    assert [settings for settings in found.values() if settings] == []
    temporary = "SELECT relname FROM pg_class WHERE relpersistence = 't'"
    assert select(role_database.owner_url, temporary) == []


def test_two_syncs_run_at_once_through_a_pooler(
    pooled_url: str, role_database: RoleDatabase
) -> None:
    """Of different numbers that share chats, several times over."""
    world = build_world(chats_per_number=90)
    with Sandbox(world) as sandbox:
        env = environment(sandbox, pooled_url, LINQ_ETL_API__PER_PAGE="10")
        assert linq_etl("db", "upgrade", env=env).code == 0
        for _ in range(3):
            with (
                running("sync", "--phone-number", A, env=env) as first,
                running("sync", "--phone-number", B, env=env) as second,
            ):
                codes = [ended(first).code, ended(second).code]
            assert codes == [0, 0]
            assert stored(role_database.owner_url) == held(world)
            change(world)

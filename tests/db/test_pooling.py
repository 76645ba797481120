"""The main job through PgBouncer in transaction pooling, where no session belongs to a client."""

from collections.abc import Iterator

import psycopg
import pytest

from etl.sandbox import Sandbox, build_world
from tests.db.conftest import ODD_SCHEMA, RoleDatabase, change, in_schema, run_main_job
from tests.support import pgbouncer
from tests.support.builders import A, B
from tests.support.command import (
    ended,
    environment,
    held,
    linq_etl,
    running,
    search_path,
    select,
    stored,
)
from tests.support.marks import cannot_run

pytestmark = pytest.mark.slow

# Fewer server connections than two syncs at once would open.
POOL_SIZE = 2
# PgBouncer itself sets these for each client.
PER_CLIENT = "'DateStyle', 'TimeZone', 'client_encoding', 'application_name'"


@pytest.fixture(params=["installed", "newest"])
def postgres_server(request: pytest.FixtureRequest, postgres_server: str) -> str:
    """Version 18 tells the pooler each search_path, for example."""
    if request.param == "installed":
        return postgres_server
    newest: str = request.getfixturevalue("newest_postgres_server")
    return newest


@pytest.fixture
def pooled_url(role_database: RoleDatabase) -> Iterator[str]:
    """The database through PgBouncer, whose role may create tables and has unusual settings."""
    role_database.execute(
        "GRANT CREATE ON DATABASE {database} TO {role}",
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


@pytest.mark.parametrize("schema", [None, ODD_SCHEMA])
def test_the_main_job_runs_through_a_pooler(
    schema: str | None, pooled_url: str, role_database: RoleDatabase
) -> None:
    """All rows are stored; the pooler's connections are left without settings or tables."""
    if schema:
        owner_url = search_path(role_database.owner_url, schema)
        run_main_job(in_schema(schema, linq_etl), pooled_url, owner_url)
    else:
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


def test_two_schemas_are_synced_at_once_through_a_pooler(
    pooled_url: str, role_database: RoleDatabase
) -> None:
    """They share the server's connections, and neither sees the other's tables."""
    worlds = [build_world(seed=seed, chats_per_number=90) for seed in (1, 2)]
    with Sandbox(worlds[0]) as first, Sandbox(worlds[1]) as second:
        for _ in range(3):
            with (
                running("sync", env=pages_of(first, pooled_url, "one")) as one,
                running("sync", env=pages_of(second, pooled_url, "two")) as two,
            ):
                codes = [ended(one).code, ended(two).code]
            assert codes == [0, 0]
            for schema, world in zip(("one", "two"), worlds, strict=True):
                assert stored(search_path(role_database.owner_url, schema)) == held(world)
                change(world)


def pages_of(sandbox: Sandbox, url: str, schema: str) -> dict[str, str]:
    return environment(sandbox, url, LINQ_ETL_API__PER_PAGE="10", LINQ_ETL_DATABASE__SCHEMA=schema)

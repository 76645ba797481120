"""The newest PostgreSQL, beside the one that the other tests use."""

import pytest

from etl.db import schema
from etl.db.engine import open_engine
from etl.db.tables import REVISION
from etl.sandbox import build_world
from tests.db.conftest import ODD_SCHEMA, RoleDatabase, in_schema, run_main_job
from tests.support.builders import A
from tests.support.command import (
    HoldingSandbox,
    environment,
    held,
    linq_etl,
    running,
    search_path,
    select,
    stored,
    wait_until,
)

pytestmark = pytest.mark.slow  # It starts a server and many processes.


@pytest.fixture
def postgres_server(newest_postgres_server: str) -> str:
    return newest_postgres_server


@pytest.fixture(params=[None, ODD_SCHEMA])
def schema_name(request: pytest.FixtureRequest, role_database: RoleDatabase) -> str | None:
    """The schema of the tables, where the role may create what it needs."""
    role_database.execute(
        "GRANT CREATE ON DATABASE {database} TO {role}", "GRANT CREATE ON SCHEMA public TO {role}"
    )
    name: str | None = request.param
    return name


def test_the_version(postgres_server: str) -> None:
    """Else these tests would repeat the others."""
    ((version,),) = select(postgres_server, "SHOW server_version_num")
    assert int(version) // 10_000 == 18


def test_the_main_job(role_database: RoleDatabase, schema_name: str | None) -> None:
    """A second sync writes nothing; verify finds all as it is."""
    run = in_schema(schema_name, linq_etl) if schema_name else linq_etl
    owner_url = role_database.owner_url
    rows_url = search_path(owner_url, schema_name) if schema_name else owner_url
    run_main_job(run, role_database.role_url, rows_url)


def test_a_killed_run_blocks_nothing(role_database: RoleDatabase, schema_name: str | None) -> None:
    """After kill -9 the next sync closes the dead run and stores every chat."""
    world = build_world(numbers=(A,), chats_per_number=100)
    url = role_database.owner_url
    url = search_path(url, schema_name) if schema_name else url
    with HoldingSandbox(world, answers=4) as sandbox:
        env = environment(sandbox, role_database.role_url, A, LINQ_ETL_API__PER_PAGE="10")
        env |= {"LINQ_ETL_DATABASE__SCHEMA": schema_name} if schema_name else {}
        assert linq_etl("db", "upgrade", env=env).code == 0
        with running("sync", env=env) as process:
            wait_until(lambda: select(url, "SELECT id FROM chats"), process)
            process.kill()
            process.wait()
        sandbox.release()
        assert linq_etl("sync", env=env).code == 0
    assert stored(url) == held(world, [A])
    statuses = "SELECT status FROM sync_runs ORDER BY id"
    assert select(url, statuses) == [("abandoned",), ("succeeded",)]


def test_the_schema_goes_up_and_down(role_database: RoleDatabase, schema_name: str | None) -> None:
    """Revision by revision, and what results is what the program expects."""
    engine = open_engine(role_database.role_url, schema_name)
    assert schema.upgrade(engine) == REVISION
    while schema.current(engine):
        schema.downgrade(engine, "-1")
    assert schema.upgrade(engine) == REVISION
    assert schema.differences(engine) is None
    engine.dispose()

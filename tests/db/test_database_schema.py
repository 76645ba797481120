"""`database.schema`: everything of the program is in that schema, and nothing anywhere else."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress

import pytest
from sqlalchemy import Engine, make_url
from sqlalchemy.exc import OperationalError

from etl.db import leases, schema
from etl.db.backends import backend
from etl.db.engine import open_engine, reading, writing
from etl.db.tables import REVISION, VERSION_TABLE, metadata, views
from etl.errors import DatabaseError, SchemaError
from etl.sandbox import Sandbox, build_world
from tests.db.conftest import (
    ODD_SCHEMA,
    SCHEMA_VARIABLE,
    RoleDatabase,
    follow_grants,
    in_schema,
    run_main_job,
)
from tests.support import postgres
from tests.support.builders import A, start_run
from tests.support.command import (
    CLOSED_PORT,
    call,
    ended,
    environment,
    execute,
    held,
    running,
    search_path,
    select,
    stored,
)

RELATIONS = """
    SELECT nspname, relname, relkind FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
    WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' ORDER BY 1, 2
"""
SCHEMAS = "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' ORDER BY 1"


@pytest.fixture
def url(postgres_server: str) -> Iterator[str]:
    """A new and empty PostgreSQL database."""
    with postgres.database(postgres_server) as created:
        yield created


@pytest.fixture
def opened(url: str) -> Iterator[Callable[[str | None], Engine]]:
    """Opens a schema of the database."""
    with ExitStack() as stack:

        def open_schema(name: str | None) -> Engine:
            engine = open_engine(url, name)
            stack.callback(engine.dispose)
            return engine

        yield open_schema


def at_once(url: str) -> dict[str, str]:
    """Settings with which no request is repeated to an API that is not there."""
    return environment(CLOSED_PORT, url, LINQ_ETL_API__MAX_ATTEMPTS="1")


def schemas_with_relations(url: str) -> set[str]:
    return {name for name, _, _ in select(url, RELATIONS)}


# Everything is in the schema


@pytest.mark.parametrize("name", ["linq", ODD_SCHEMA])
def test_the_main_job(url: str, name: str) -> None:
    """The schema is created, whatever its name is made of; no other has a table."""
    run_main_job(in_schema(name), url, search_path(url, name))
    assert schemas_with_relations(url) == {name}


def test_every_other_command(url: str) -> None:
    """They look at the schema's run log, tables and comments; a downgrade empties it."""
    run = in_schema(ODD_SCHEMA)
    with Sandbox(build_world(chats_per_number=5)) as sandbox:
        env = environment(sandbox, url)
        assert run("sync", env=env).code == 0
        checked = run("check", env=env)
        for command in ("status --max-age 1h", "runs 1", "db current", "db check"):
            assert run(*command.split(), env=env).code == 0
        assert "deleted 0 runs" in run("prune", "--older-than", "1d", env=env).stdout
    assert checked.code == 0
    assert f", schema {ODD_SCHEMA}\n" in checked.stdout
    commented = "SELECT obj_description('chat_activity'::regclass)"
    assert select(search_path(url, ODD_SCHEMA), commented) == [
        (views.tables["chat_activity"].comment,)
    ]
    assert run("db", "downgrade", "base", "--yes", env=env).code == 0
    assert {relation for _, relation, _ in select(url, RELATIONS)} == {
        VERSION_TABLE,
        f"{VERSION_TABLE}_pkc",
    }


def test_a_session_keeps_nothing_of_it(opened: Callable[[str | None], Engine]) -> None:
    """A pooler hands the session to others after each transaction."""
    engine = opened(ODD_SCHEMA)
    schema.upgrade(engine)
    connection = engine.raw_connection()
    cursor = connection.cursor()
    cursor.execute("SHOW search_path")
    assert cursor.fetchone() == ('"$user", public',)
    connection.close()


def test_nothing_is_created_by_looking(url: str) -> None:
    """Neither by the commands that look at an empty database, nor if an upgrade is not allowed."""
    env = {**at_once(url), "LINQ_ETL_DATABASE__AUTO_UPGRADE": "false"}
    run = in_schema("linq")
    assert "no tables yet" in run("check", env=env).stdout
    for command in ("sync", "status", "db check"):
        assert run(*command.split(), env=env).code == 6
    assert "empty" in run("db", "current", env=env).stdout
    assert select(url, SCHEMAS) == [("information_schema",), ("public",)]


# Several schemas


def test_two_schemas_and_the_default_one_are_independent(url: str) -> None:
    """Each has runs, numbers and chats of its own, and may have another revision."""
    names = ("public", "one", "two")
    worlds = {name: build_world(chats_per_number=10, seed=seed) for seed, name in enumerate(names)}
    for name, world in worlds.items():
        run = call if name == "public" else in_schema(name)
        with Sandbox(world) as sandbox:
            assert run("sync", env=environment(sandbox, url)).code == 0
    for name, world in worlds.items():
        assert stored(search_path(url, name)) == held(world)
        assert select(search_path(url, name), "SELECT id FROM sync_runs") == [(1,)]
    down = in_schema("one")("db", "downgrade", "base", "--yes", env=environment(CLOSED_PORT, url))
    assert down.code == 0
    assert stored(search_path(url, "two")) == held(worlds["two"])
    assert stored(url) == held(worlds["public"])


def test_a_run_of_another_schema_is_not_ended(opened: Callable[[str | None], Engine]) -> None:
    """Its id is the same; neither is it named as the holder of a lock."""
    engines = [opened(None), opened("one"), opened("two")]
    database = backend(engines[0].dialect)
    sessions = []
    with ExitStack() as stack:
        for engine in engines:
            schema.upgrade(engine)
            assert start_run(engine, A)[0] == 1
            stack.enter_context(suppress(OperationalError))
            stalled = stack.enter_context(closing(engine.connect()))
            database.begin_writing(stalled, "linq-etl/1")
            leases.move_fence(stalled, 1, 1)
            sessions.append(stalled.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())
        for engine, session in zip(engines, sessions, strict=True):
            with writing(engine) as connection:
                holders = database.lock_holders(connection)
                assert holders == [f"linq-etl/1 (server process {session})"]
                assert database.end_sessions(connection, "linq-etl/1") == [session]


def test_starts_at_once_all_succeed(opened: Callable[[str | None], Engine], url: str) -> None:
    """Ten of them, when the schema does not exist."""
    start = threading.Barrier(10)
    ended_with: list[str] = []

    def upgrade(engine: Engine) -> None:
        start.wait()
        ended_with.append(schema.upgrade(engine))

    threads = [threading.Thread(target=upgrade, args=(opened("linq"),)) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended_with == [REVISION] * 10
    assert schemas_with_relations(url) == {"linq"}


@pytest.mark.slow  # It starts processes.
def test_jobs_that_start_at_once_all_succeed(url: str) -> None:
    """Ten syncs of different numbers, when the schema does not exist."""
    numbers = [f"+1312555{number:04}" for number in range(10)]
    world = build_world(numbers=tuple(numbers), chats_per_number=5)
    with Sandbox(world) as sandbox, ExitStack() as stack:
        processes = [
            stack.enter_context(
                running("sync", env={**environment(sandbox, url, number), SCHEMA_VARIABLE: "linq"})
            )
            for number in numbers
        ]
        assert [ended(process, within=120).code for process in processes] == [0] * 10
    assert stored(search_path(url, "linq")) == held(world, numbers)


# Roles


def test_a_role_that_may_not_create_the_schema_is_told_the_grant(
    role_database: RoleDatabase,
) -> None:
    """Also by check, before anything is tried."""
    env = {**at_once(role_database.role_url), SCHEMA_VARIABLE: "Linq"}
    database, role = make_url(role_database.owner_url).database, role_database.role
    grant = f"GRANT CREATE ON DATABASE {database} TO {role}"
    sentence = f'Role {role} may not create schema "Linq". Run: {grant};'
    assert sentence in call("check", env=env).stdout
    assert sentence in call("db", "upgrade", env=env).stderr
    assert follow_grants(role_database, "db", "upgrade", env=env) == [grant]
    assert "FAIL  database" not in call("check", env=env).stdout


def test_a_role_may_use_a_schema_that_it_may_not_create(role_database: RoleDatabase) -> None:
    """It is told the grants that it needs there, and does not need one on the database."""
    role_database.execute('CREATE SCHEMA "Linq"')
    env = {**at_once(role_database.role_url), SCHEMA_VARIABLE: "Linq"}
    role = role_database.role
    usage = f'GRANT USAGE ON SCHEMA "Linq" TO {role}'
    sentence = f'Role {role} may not use schema "Linq". Run: {usage};'
    assert sentence in call("check", env=env).stdout
    assert sentence in call("db", "upgrade", env=env).stderr
    assert follow_grants(role_database, "db", "upgrade", env=env) == [
        usage,
        f'GRANT CREATE ON SCHEMA "Linq" TO {role}',
    ]


def test_a_role_that_may_not_use_the_tables_is_told_the_schema(
    role_database: RoleDatabase,
) -> None:
    """The tables belong to another role; then the sync is complete."""
    engine = open_engine(role_database.owner_url, "Linq")
    schema.upgrade(engine)
    engine.dispose()
    role_database.execute('GRANT USAGE ON SCHEMA "Linq" TO {role}')
    world = build_world(numbers=(A,), chats_per_number=5)
    with Sandbox(world) as sandbox:
        env = environment(sandbox, role_database.role_url, A) | {SCHEMA_VARIABLE: "Linq"}
        granted = follow_grants(role_database, "sync", env=env)
    role = role_database.role
    assert granted == [
        f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "Linq" TO {role}',
        f'GRANT USAGE ON ALL SEQUENCES IN SCHEMA "Linq" TO {role}',
    ]
    assert stored(search_path(role_database.owner_url, "Linq")) == held(world, [A])


# Objects of another program


@pytest.mark.parametrize(
    ("named", "statements"),
    [
        ("table linq.chats", ["CREATE TABLE linq.chats (theirs TEXT)"]),
        (
            "table linq.chats",
            ["CREATE TABLE linq.chats (theirs TEXT) PARTITION BY LIST (theirs)"],
        ),
        ("view linq.chats", ["CREATE VIEW linq.chats AS SELECT 1 AS theirs"]),
        (
            "materialized view linq.participants",
            ["CREATE MATERIALIZED VIEW linq.participants AS SELECT 1 AS theirs"],
        ),
        ("sequence linq.sync_runs", ["CREATE SEQUENCE linq.sync_runs"]),
        (
            "foreign table linq.chat_events",
            [
                "CREATE FOREIGN DATA WRAPPER theirs",
                "CREATE SERVER theirs FOREIGN DATA WRAPPER theirs",
                "CREATE FOREIGN TABLE linq.chat_events (theirs TEXT) SERVER theirs",
            ],
        ),
        (
            "index linq.ix_chats_changed_at",
            [
                "CREATE TABLE linq.theirs (theirs TEXT)",
                "CREATE INDEX ix_chats_changed_at ON linq.theirs (theirs)",
            ],
        ),
        ("type linq.chats", ["CREATE TYPE linq.chats AS (theirs TEXT)"]),
        ("type linq.chats", ["CREATE TYPE linq.chats AS ENUM ('theirs')"]),
        ("type linq.participants", ["CREATE DOMAIN linq.participants AS TEXT"]),
        (f"sequence linq.{VERSION_TABLE}", [f"CREATE SEQUENCE linq.{VERSION_TABLE}"]),
        (VERSION_TABLE, [f"CREATE TABLE linq.{VERSION_TABLE} (theirs TEXT)"]),
        (VERSION_TABLE, [f"CREATE VIEW linq.{VERSION_TABLE} AS SELECT 1 AS theirs"]),
    ],
)
def test_an_object_of_another_program_is_named(
    url: str, opened: Callable[[str | None], Engine], named: str, statements: list[str]
) -> None:
    """Before anything is written, with what to do; in another schema it does no harm."""
    for statement in ["CREATE SCHEMA linq", *statements]:
        execute(url, statement)
    before = select(url, RELATIONS)
    engine = opened("linq")
    for command in (
        lambda: schema.ensure_current(engine, upgrade_allowed=True),
        lambda: schema.upgrade(engine),
    ):
        with pytest.raises(SchemaError, match=named) as caught:
            command()
        assert "of another program" in str(caught.value)
        assert "database.schema" in str(caught.value)
    assert select(url, RELATIONS) == before
    other = opened("another")
    assert schema.upgrade(other) == REVISION
    assert schema.differences(other) is None


def test_a_name_that_a_later_revision_needs_is_named(
    url: str, opened: Callable[[str | None], Engine]
) -> None:
    """Another program took it since; the upgrade is rolled back."""
    engine = opened("linq")
    schema.upgrade(engine)
    schema.downgrade(engine, "0009_gains")
    execute(url, "CREATE VIEW linq.participants AS SELECT 1 AS theirs")
    before = select(url, RELATIONS)
    with pytest.raises(DatabaseError) as caught:
        schema.upgrade(engine)
    assert str(caught.value).startswith(
        'relation "participants" already exists, and this program did not create it: drop it, or '
        "set database.schema to another schema"
    )
    assert select(url, RELATIONS) == before


def test_tables_of_the_default_schema_are_not_looked_at(
    url: str, opened: Callable[[str | None], Engine]
) -> None:
    """Neither a table that is missing in the schema, nor one that is there twice, is theirs."""
    execute(url, "CREATE TABLE run_fences (theirs TEXT)")
    engine = opened("linq")
    schema.upgrade(engine)
    execute(url, "DROP TABLE linq.run_fences")
    with reading(engine) as connection:
        assert schema.lacking(connection) == ["run_fences"]
    assert "run_fences" in (schema.differences(engine) or "")
    assert set(metadata.tables) > {"run_fences"}

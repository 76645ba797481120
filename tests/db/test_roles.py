"""PostgreSQL roles: which privileges the program needs, and which settings it does not."""

import re

import pytest

from etl.db import schema
from etl.db.engine import open_engine, reading
from etl.errors import DatabaseError
from etl.sandbox import Sandbox, build_world
from tests.db.conftest import RoleDatabase, run_main_job
from tests.support.builders import A
from tests.support.command import call, environment, execute, held, stored

MAY_CREATE = "GRANT CREATE ON SCHEMA public TO {role}"
ODD_SETTINGS = (
    "ALTER ROLE {role} SET datestyle = 'SQL, DMY'",
    "ALTER ROLE {role} SET timezone = 'America/New_York'",
    "ALTER ROLE {role} SET client_encoding = 'LATIN1'",
)


def test_the_main_job_needs_no_temporary_privilege(role_database: RoleDatabase) -> None:
    """A role that may create tables and nothing else upgrades, syncs and verifies."""
    role_database.execute(MAY_CREATE)
    with pytest.raises(Exception, match="permission denied to create temporary tables"):
        execute(role_database.role_url, "CREATE TEMPORARY TABLE t (id INTEGER)")
    run_main_job(call, role_database.role_url, role_database.owner_url)


def test_the_settings_of_a_role_do_not_matter(role_database: RoleDatabase) -> None:
    """Date style, time zone and encoding are set by the connection."""
    role_database.execute(MAY_CREATE, *ODD_SETTINGS)
    engine = open_engine(role_database.role_url)
    with reading(engine) as connection:
        settings = [
            connection.exec_driver_sql(f"SHOW {name}").scalar_one()
            for name in ("datestyle", "timezone", "client_encoding", "application_name")
        ]
    engine.dispose()
    assert settings == ["ISO, MDY", "UTC", "UTF8", "linq-etl"]
    run_main_job(call, role_database.role_url, role_database.owner_url)


def test_a_role_that_may_not_create_tables_is_told_the_grant(role_database: RoleDatabase) -> None:
    """Exit code 6 and the statement to run, with which the upgrade succeeds."""
    env = environment("http://127.0.0.1:1", role_database.role_url)
    refused = call("db", "upgrade", env=env)
    role = role_database.role
    grant = f"GRANT CREATE ON SCHEMA public TO {role};"
    assert refused.code == 6
    assert f"Role {role} may not create tables. Run: {grant}" in refused.stderr
    execute(role_database.owner_url, grant)
    assert call("db", "upgrade", env=env).code == 0


def test_a_role_that_may_not_use_the_tables_is_told_each_grant(
    role_database: RoleDatabase,
) -> None:
    """The tables belong to another role; following the messages ends in a complete sync."""
    owner = open_engine(role_database.owner_url)
    schema.upgrade(owner)
    owner.dispose()
    granted = []
    world = build_world(numbers=[A], chats_per_number=20)
    with Sandbox(world) as sandbox:
        env = environment(sandbox, role_database.role_url, A)
        while (done := call("sync", env=env)).code:
            assert done.code == 6, done
            grant = re.findall("GRANT .*;", done.stderr)[-1]
            assert grant not in granted
            granted.append(grant)
            execute(role_database.owner_url, grant)
    assert stored(role_database.owner_url) == held(world, [A])
    first = "linq_etl_alembic_version"
    assert granted[0] == f"GRANT SELECT, INSERT, UPDATE, DELETE ON {first} TO {role_database.role};"


def test_a_read_only_role_is_explained(role_database: RoleDatabase) -> None:
    """It may be a replica too."""
    role_database.execute(MAY_CREATE, "ALTER ROLE {role} SET default_transaction_read_only = on")
    engine = open_engine(role_database.role_url)
    with pytest.raises(DatabaseError) as caught:
        schema.upgrade(engine)
    engine.dispose()
    assert "it is read-only: connect to the primary, or let the role write" in str(caught.value)

"""PostgreSQL roles: which privileges the program needs, and which settings it does not."""

import os
import pwd
from types import SimpleNamespace

import psycopg
import pytest
from sqlalchemy import URL, true

from etl.db import schema
from etl.db.backends import postgresql_errors
from etl.db.backends.postgresql import create_engine
from etl.db.backends.postgresql_errors import explain, outage
from etl.db.engine import open_engine, reading
from etl.errors import DatabaseError
from etl.sandbox import Sandbox, build_world
from tests.db.conftest import RoleDatabase, follow_grants, run_main_job
from tests.support.builders import A
from tests.support.command import CLOSED_PORT, call, environment, execute, held, stored

CLOSED_SERVER = "postgresql://ada@127.0.0.1:1/linq"
MAY_CREATE = "GRANT CREATE ON SCHEMA public TO {role}"
ODD_SETTINGS = (
    "ALTER ROLE {role} SET datestyle = 'SQL, DMY'",
    "ALTER ROLE {role} SET timezone = 'America/New_York'",
    "ALTER ROLE {role} SET client_encoding = 'LATIN1'",
)


@pytest.fixture
def owned_by_another(role_database: RoleDatabase) -> None:
    """The database's owner makes the tables."""
    engine = open_engine(role_database.owner_url)
    schema.upgrade(engine)
    engine.dispose()


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
    env = environment(CLOSED_PORT, role_database.role_url)
    refused = call("db", "upgrade", env=env)
    role = role_database.role
    grant = f"GRANT CREATE ON SCHEMA public TO {role}"
    assert f"Role {role} may not create tables. Run: {grant};" in refused.stderr
    assert follow_grants(role_database, "db", "upgrade", env=env) == [grant]


def test_a_role_without_a_schema_is_told_the_grants(role_database: RoleDatabase) -> None:
    """First to see the schema, then to create tables in it."""
    role_database.execute("REVOKE USAGE ON SCHEMA public FROM PUBLIC")
    env = environment(CLOSED_PORT, role_database.role_url)
    role = role_database.role
    refused = call("db", "upgrade", env=env)
    assert f"Role {role} may use no schema of its search_path." in refused.stderr
    assert follow_grants(role_database, "db", "upgrade", env=env) == [
        f"GRANT USAGE ON SCHEMA public TO {role}",
        f"GRANT CREATE ON SCHEMA public TO {role}",
    ]


@pytest.mark.usefixtures("owned_by_another")
def test_a_role_that_may_not_use_the_tables_is_told_one_grant(role_database: RoleDatabase) -> None:
    """For all tables, which belong to another role; then the sync is complete."""
    world = build_world(numbers=[A], chats_per_number=20)
    with Sandbox(world) as sandbox:
        env = environment(sandbox, role_database.role_url, A)
        granted = follow_grants(role_database, "sync", env=env)
    assert stored(role_database.owner_url) == held(world, [A])
    role = role_database.role
    assert granted == [
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}",
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}",
    ]


@pytest.mark.usefixtures("owned_by_another")
def test_only_the_owner_changes_the_schema(role_database: RoleDatabase) -> None:
    """A role that may use the tables is told whose right it is."""
    role_database.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    env = environment(CLOSED_PORT, role_database.role_url)
    refused = call("db", "downgrade", "base", "--yes", env=env)
    assert refused.code == 6
    assert (
        f"Role {role_database.role} may not change the schema, because it does not own table "
        "chat_name_hashes. Run the `linq-etl db` commands as the role that owns it."
    ) in refused.stderr


@pytest.mark.parametrize(
    ("name", "printed"), [("ux_etl", "ux_etl"), ("user", '"user"'), ('My "Role"', '"My ""Role"""')]
)
def test_a_role_is_quoted_only_if_sql_needs_it(name: str, printed: str) -> None:
    """The statement can be copied."""
    error = psycopg.errors.InsufficientPrivilege("permission denied for schema public")
    engine = create_engine(URL.create("postgresql", username=name))
    assert explain(error, engine) == (
        f"Role {printed} may not create tables. Run: GRANT CREATE ON SCHEMA public TO {printed};"
    )


def test_a_url_without_a_user_has_the_user_of_libpq(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the environment, else the account of the operating system."""
    error = psycopg.errors.InsufficientPrivilege("permission denied for table chats")
    engine = create_engine(URL.create("postgresql"))
    account = pwd.getpwuid(os.geteuid()).pw_name
    message = explain(error, engine) or ""
    assert message.startswith(f"Role {account} may not use table chats. Run: GRANT SELECT, ")
    monkeypatch.setenv("PGUSER", "Ada")
    message = explain(error, engine) or ""
    assert message.endswith(' SEQUENCES IN SCHEMA public TO "Ada";')


def test_only_a_standby_is_waited_for(
    role_database: RoleDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be promoted soon; a role that only reads ends the run at once."""
    engine = open_engine(role_database.owner_url)
    error = psycopg.errors.ReadOnlySqlTransaction(
        "cannot execute INSERT in a read-only transaction"
    )
    assert outage(error, engine) is None
    monkeypatch.setattr(postgresql_errors, "func", SimpleNamespace(pg_is_in_recovery=true))
    assert outage(error, engine) == "unavailable"
    engine.dispose()
    gone = open_engine(CLOSED_SERVER)
    assert outage(error, gone) == "unavailable"
    gone.dispose()


def test_a_read_only_role_is_explained(role_database: RoleDatabase) -> None:
    """It may be a replica too."""
    role_database.execute(MAY_CREATE, "ALTER ROLE {role} SET default_transaction_read_only = on")
    engine = open_engine(role_database.role_url)
    with pytest.raises(DatabaseError) as caught:
        schema.upgrade(engine)
    engine.dispose()
    assert "it is read-only: connect to the primary, or let the role write" in str(caught.value)

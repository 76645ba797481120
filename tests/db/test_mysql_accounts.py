"""Accounts of MariaDB and MySQL: which privileges the program needs, and how it asks for them."""

import uuid
from collections.abc import Iterator

import pytest
from sqlalchemy import make_url

from etl.db import schema
from etl.db.engine import open_engine
from etl.db.tables import VERSION_TABLE, metadata
from etl.sandbox import Sandbox, build_world
from tests.db.conftest import RoleDatabase, follow_grants, run_main_job
from tests.db.test_examine import findings, problems
from tests.support.builders import A
from tests.support.command import CLOSED_PORT, call, environment, execute, held, stored

TO_WRITE = "SELECT, INSERT, UPDATE, DELETE"
EVERYTHING = f"{TO_WRITE}, CREATE, ALTER, DROP, INDEX, REFERENCES, CREATE VIEW, SHOW VIEW"


@pytest.fixture
def upgraded(mysql_account: RoleDatabase) -> RoleDatabase:
    """Another account makes the tables."""
    engine = open_engine(mysql_account.owner_url)
    schema.upgrade(engine)
    engine.dispose()
    return mysql_account


@pytest.fixture
def mysql_role(mysql_server: str) -> Iterator[str]:
    """A role, in the server's sense: privileges that accounts can share."""
    name = f"linq_etl_test_{uuid.uuid4().hex[:16]}"
    execute(mysql_server, f"CREATE ROLE {name}")
    yield name
    execute(mysql_server, f"DROP ROLE {name}")


@pytest.mark.slow
def test_the_main_job_needs_no_other_privilege(mysql_account: RoleDatabase) -> None:
    """Upgrade, sync and verify, with those of the documentation."""
    mysql_account.execute(f"GRANT {EVERYTHING} ON {{database}}.* TO {{role}}")
    run_main_job(call, mysql_account.role_url, mysql_account.owner_url)


@pytest.mark.parametrize("first", [[], [f"GRANT {TO_WRITE} ON {{database}}.* TO {{role}}"]])
def test_an_account_is_told_the_grant_to_create_tables(
    mysql_account: RoleDatabase, first: list[str]
) -> None:
    """Exit code 6 and one statement, which names the account with its host; then it succeeds."""
    mysql_account.execute(*first)
    env = environment(CLOSED_PORT, mysql_account.role_url)
    database = make_url(mysql_account.owner_url).database
    assert follow_grants(mysql_account, "db", "upgrade", env=env) == [
        f"GRANT {EVERYTHING} ON `{database}`.* TO {mysql_account.role}"
    ]


def test_an_account_that_only_reads_is_told_the_grant(upgraded: RoleDatabase) -> None:
    """By `check` before the sync fails; with the statement, the sync is complete."""
    upgraded.execute("GRANT SELECT ON {database}.* TO {role}")
    (problem,) = problems(upgraded.role_url)
    database = make_url(upgraded.owner_url).database
    grant = f"GRANT {TO_WRITE} ON `{database}`.* TO {upgraded.role}"
    assert problem.endswith(f"lacks privileges on `{database}`. Run: {grant};")
    world = build_world(numbers=[A], chats_per_number=5)
    with Sandbox(world) as sandbox:
        env = environment(sandbox, upgraded.role_url, A)
        assert "lacks privileges on" in call("sync", env=env).stderr
        execute(upgraded.owner_url, grant)
        assert problems(upgraded.role_url) == []
        assert call("sync", env=env).code == 0
    assert stored(upgraded.owner_url) == held(world, [A])


@pytest.mark.parametrize(
    "target", ["*.*", "{database}.*", r"`linq\_etl\_test\_%`.*", "`linq_etl%`.*"]
)
def test_a_grant_of_any_scope_is_found(mysql_account: RoleDatabase, target: str) -> None:
    """For all databases, for this one, and for those whose names match a pattern."""
    mysql_account.execute("GRANT SELECT ON {database}.* TO {role}")
    assert len(problems(mysql_account.role_url)) == 1
    mysql_account.execute(f"GRANT {EVERYTHING} ON {target} TO {{role}}")
    assert problems(mysql_account.role_url) == []


def test_grants_on_tables_are_found(upgraded: RoleDatabase) -> None:
    """Each table needs them; without one of them, `check` fails."""
    tables = [*metadata.tables]
    for table in tables:
        upgraded.execute(f"GRANT {TO_WRITE} ON {{database}}.{table} TO {{role}}")
    upgraded.execute(f"GRANT SELECT ON {{database}}.{VERSION_TABLE} TO {{role}}")
    assert problems(upgraded.role_url) == []
    upgraded.execute("REVOKE UPDATE ON {database}.chats FROM {role}")
    assert len(problems(upgraded.role_url)) == 1


def test_the_privileges_of_a_role_are_not_examined(upgraded: RoleDatabase, mysql_role: str) -> None:
    """The catalog does not show them to an account; `check` says so."""
    upgraded.execute(
        f"GRANT {TO_WRITE} ON {{database}}.* TO {mysql_role}",
        f"GRANT {mysql_role} TO {{role}}",
        f"SET DEFAULT ROLE {mysql_role} FOR {{role}}",
    )
    assert problems(upgraded.role_url) == []
    note = f"did not examine the privileges of role {mysql_role}"
    assert findings(upgraded.role_url)[0].detail.endswith(note)

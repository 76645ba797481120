"""A PostgreSQL database whose owner grants little, and the main job to run there."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from sqlalchemy import make_url

from etl.sandbox import Sandbox, World, build_world
from tests.support import mysql, postgres
from tests.support.builders import A, B
from tests.support.command import Ended, call, environment, execute, held, select, snapshot, stored

Run = Callable[..., Ended]
SCHEMA_VARIABLE = "LINQ_ETL_DATABASE__SCHEMA"
ODD_SCHEMA = 'Ada\'s "chats" %s \\ :x'


@dataclass(frozen=True)
class RoleDatabase:
    """An empty database where a role may connect and nothing else, and both their URLs."""

    owner_url: str
    role_url: str
    role: str

    def execute(self, *statements: str) -> None:
        """Execute as the owner; `{role}` and `{database}` stand for the names."""
        names = {"role": self.role, "database": make_url(self.owner_url).database}
        for statement in statements:
            execute(self.owner_url, statement.format(**names))


@pytest.fixture
def role_database(postgres_server: str) -> Iterator[RoleDatabase]:
    with postgres.role(postgres_server) as role, postgres.database(postgres_server) as url:
        role_url = make_url(url).set(username=role, password=postgres.ROLE_PASSWORD)
        database = RoleDatabase(url, role_url.render_as_string(hide_password=False), role)
        database.execute(
            "REVOKE TEMPORARY, CREATE ON DATABASE {database} FROM PUBLIC",
            "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        )
        yield database


@pytest.fixture
def mysql_account(mysql_server: str) -> Iterator[RoleDatabase]:
    """As `role_database`, in MariaDB or MySQL."""
    with mysql.role(mysql_server) as account, mysql.database(mysql_server) as url:
        account_url = make_url(url).set(
            username=account.partition("@")[0].strip("'"), password=mysql.ROLE_PASSWORD
        )
        yield RoleDatabase(url, account_url.render_as_string(hide_password=False), account)


def follow_grants(database: RoleDatabase, *command: str, env: dict[str, str]) -> list[str]:
    """Run the command and the statements that it prints, until it ends with 0; return those."""
    granted: list[str] = []
    while (done := call(*command, env=env)).code:
        assert done.code == 6, done
        statements = done.stderr.rpartition("Run: ")[2].rpartition(";")[0].split("; ")
        assert not set(statements) & set(granted), done
        for statement in statements:
            execute(database.owner_url, statement)
        granted += statements
    return granted


def in_schema(name: str, run: Run = call) -> Run:
    """Runs commands with that schema configured."""

    def run_there(*command: str, env: dict[str, str]) -> Ended:
        return run(*command, env={**env, SCHEMA_VARIABLE: name})

    return run_there


def run_main_job(run: Run, database_url: str, owner_url: str) -> None:
    """Upgrade, load, sync changes, sync again, verify, remove; after each, look at the rows.

    `run` runs a command on `database_url`; the rows are read at `owner_url`.
    """
    world = build_world(chats_per_number=60)
    with Sandbox(world) as sandbox:
        env = environment(sandbox, database_url, LINQ_ETL_API__PER_PAGE="10")

        def succeed(*command: str) -> Ended:
            done = run(*command, env=env)
            assert done.code == 0, done
            return done

        succeed("db", "upgrade")
        succeed("db", "check")
        succeed("sync")
        assert stored(owner_url) == held(world)
        change(world)
        succeed("sync")
        assert stored(owner_url) == held(world)
        before = snapshot(owner_url)
        succeed("sync")
        assert snapshot(owner_url) == before
        verified = succeed("verify", "--json").data
        assert (verified["matches"], verified["findings"]) == (verified["sampled"], [])
        deleted = world.delete(world.listing(A)[0])
        succeed("sync")
        removed = select(owner_url, "SELECT id FROM chats WHERE removed_at IS NOT NULL")
        assert removed == [(deleted,)]


def change(world: World) -> None:
    """New and renamed chats, another service, participants who join and leave."""
    for number in (A, B):
        groups = [i for i in world.listing(number) if world.chat(i).get("chat_handles")]
        joined, left, renamed, converted = groups[:4]
        world.join(joined)
        world.leave(left)
        world.rename(renamed, "Opening night 🎭")
        world.change_service(converted)
        world.edit(world.create(number), pinned={"by": ["me", 1e16]})

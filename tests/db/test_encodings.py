"""Databases whose own encoding does not have every text: refused, or it does not matter."""

from collections.abc import Iterator

import pytest

from etl.sandbox import Sandbox, build_world
from tests.support import mysql, postgres
from tests.support.builders import A, B
from tests.support.command import CLOSED_PORT, call, environment, execute, held, select, stored


@pytest.fixture(params=["LATIN1", "SQL_ASCII"])
def encoded(request: pytest.FixtureRequest, postgres_server: str) -> Iterator[tuple[str, str]]:
    """An encoding, and an empty database in it."""
    with postgres.database(postgres_server, encoding=request.param) as url:
        yield request.param, url


@pytest.mark.parametrize("command", ["sync", "db upgrade", "check"])
def test_a_database_in_another_encoding_is_refused(encoded: tuple[str, str], command: str) -> None:
    """Exit code 6 and what to do, before a table is made or a chat is requested."""
    encoding, url = encoded
    with Sandbox(build_world(chats_per_number=1)) as sandbox:
        refused = call(*command.split(), env=environment(sandbox, url))
        assert "chats" not in "".join(request.path for request in sandbox.requests)
    assert refused.code == 6
    assert f"is encoded in {encoding}, which cannot hold every text" in (
        refused.stdout + refused.stderr
    )
    assert select(url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]


def test_the_statement_in_the_message_makes_a_usable_database(
    postgres_server: str,
) -> None:
    """As it is printed."""
    with postgres.database(postgres_server, encoding="LATIN1") as url:
        refused = call("db", "upgrade", env=environment(CLOSED_PORT, url))
        statement = refused.stderr.partition("Use another one: ")[2].partition(";")[0]
        execute(url, statement)
        name = statement.split()[2]
        world = build_world(numbers=[A], chats_per_number=20)
        try:
            usable = url.replace(name.removesuffix("_utf8"), name)
            with Sandbox(world) as sandbox:
                assert call("sync", env=environment(sandbox, usable, A)).code == 0
            assert stored(usable) == held(world, [A])
        finally:
            execute(url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("collation", ["latin1_swedish_ci", "utf8mb4_general_ci"])
def test_the_default_of_a_mysql_database_does_not_matter(mysql_server: str, collation: str) -> None:
    """The tables and the statements name their own: each text is stored as it is."""
    world = build_world(chats_per_number=60)
    with mysql.database(mysql_server, collation=collation) as url, Sandbox(world) as sandbox:
        for _ in range(2):
            assert call("sync", env=environment(sandbox, url)).code == 0
            assert stored(url) == held(world, [A, B])
            world.rename(world.listing(A)[0], "Ngọc 🌻")

"""What `check` finds in a database before a sync would fail on it; it changes nothing."""

import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, make_url

from etl.cli.check import Finding, check_database
from etl.config import Config, load_config
from etl.db import schema
from etl.db.backends import sqlite
from etl.db.engine import open_engine
from etl.db.tables import metadata
from tests.db.conftest import RoleDatabase
from tests.support.builders import A
from tests.support.command import execute, select
from tests.support.marks import only_sqlite

ALL_TABLES = ", ".join(sorted(metadata.tables))


def config_for(url: str, **others: str) -> Config:
    environ = {"LINQ_ETL_DATABASE__URL": url, "LINQ_ETL_SYNC__PHONE_NUMBERS": A, **others}
    return load_config(environ=environ, needs_token=False)


def findings(url: str, **others: str) -> list[Finding]:
    found: list[Finding] = []
    check_database(config_for(url, **others), found)
    return found


def problems(url: str, **others: str) -> list[str]:
    found = [finding for finding in findings(url, **others) if finding.exit_code]
    assert {finding.exit_code for finding in found} <= {6}
    return [finding.detail for finding in found]


@pytest.fixture
def current(engine: Engine, database_url: str) -> str:
    """The URL of a database with a current schema."""
    engine.dispose()
    return database_url


# Every database


def test_a_current_schema_has_no_problem(current: str) -> None:
    """Two findings, and none of them is a failure."""
    assert [finding.subject for finding in findings(current)] == ["database", "schema"]
    assert problems(current) == []


def test_a_database_without_tables_stays_like_that(database_url: str) -> None:
    """The next sync would create them."""
    open_engine(database_url).dispose()
    assert findings(database_url)[-1].detail.startswith("no tables yet; the next sync upgrades")
    assert problems(database_url) == []
    engine = open_engine(database_url)
    assert schema.current(engine) is None
    engine.dispose()


def test_tables_of_another_program_are_named(database_url: str) -> None:
    """A sync would have to replace them."""
    open_engine(database_url).dispose()
    for name in ("chats", "sync_runs", "unrelated"):
        execute(database_url, f"CREATE TABLE {name} (theirs INTEGER)")
    (problem,) = problems(database_url)
    named = re.split(r"[(), .]+", problem)
    assert {"chats", "sync_runs", "unrelated"}.intersection(named) == {"chats", "sync_runs"}


def test_what_was_dropped_by_hand_is_named(database_url: str) -> None:
    """Tables and columns, although the revision is current."""
    engine = open_engine(database_url)
    schema.upgrade(engine)
    engine.dispose()
    execute(database_url, "DROP TABLE run_fences")
    execute(database_url, "ALTER TABLE sync_runs DROP COLUMN throttled")
    assert problems(database_url) == ["It lacks run_fences, sync_runs.throttled. Restore a backup."]


# SQLite


def test_no_file_is_created(tmp_path: Path) -> None:
    """The next sync would create it."""
    database, schema_finding = findings("sqlite:///linq.db")
    assert database.detail == "linq.db does not exist yet; the first sync creates it"
    assert schema_finding.detail.startswith("no tables yet; the next sync upgrades to")
    assert list(tmp_path.glob("linq*")) == []


def test_an_empty_file_stays_empty(tmp_path: Path) -> None:
    """Its journal's mode is not changed either."""
    Path("linq.db").touch()
    assert problems("sqlite:///linq.db") == []
    assert Path("linq.db").stat().st_size == 0
    assert [path.name for path in tmp_path.glob("linq*")] == ["linq.db"]


def test_a_folder_that_does_not_exist() -> None:
    """No file can be created there."""
    assert problems("sqlite:///no/linq.db") == [
        "no/linq.db cannot be created: its folder does not exist; see database.url"
    ]


@pytest.fixture
def another_user() -> Iterator[None]:
    """This process is not root, who may write everywhere."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


def test_a_folder_that_may_not_be_written(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """No file can be created there."""
    Path("closed").mkdir(mode=0o555)
    tmp_path.chmod(0o755)
    request.getfixturevalue("another_user")
    assert problems("sqlite:///closed/linq.db") == [
        "closed/linq.db cannot be created: its folder may not be written; see database.url"
    ]


@only_sqlite
def test_damaged_pages_are_found(current: str, engine: Engine) -> None:
    """Before a sync stumbles over them."""
    engine.dispose()
    (page,) = select(current, "SELECT rootpage FROM sqlite_schema WHERE name = 'chats'")[0]
    with Path(make_url(current).database or "").open("r+b") as file:
        file.seek(4096 * (page - 1))
        file.write(b"\xff" * 4096)
    (problem,) = problems(current)
    assert "damaged" in problem


@only_sqlite
def test_a_long_check_of_the_pages_is_broken_off(
    current: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finding says so, and is no failure."""
    engine.dispose()
    with sqlite3.connect(make_url(current).database or "") as connection:
        connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000) "
            "INSERT INTO chats (id, first_seen_at, changed_at) "
            "SELECT i, '2025-01-01 00:00:00.000000', '2025-01-01 00:00:00.000000' FROM n"
        )
    connection.close()
    monkeypatch.setattr(sqlite, "EXAMINE_SECONDS", 0.0)
    assert findings(current)[0].detail.endswith("checked its pages for 0 s, not to the end")
    assert problems(current) == []


# PostgreSQL


def test_a_role_is_told_what_it_needs_to_create_tables(role_database: RoleDatabase) -> None:
    """Following the statements makes an upgrade possible."""
    role_database.execute("REVOKE USAGE ON SCHEMA public FROM PUBLIC")
    role = role_database.role
    for problem in (
        f"Role {role} may use no schema of its search_path. "
        f"Run: GRANT USAGE ON SCHEMA public TO {role};",
        f"Role {role} may not create tables. Run: GRANT CREATE ON SCHEMA public TO {role};",
    ):
        assert problems(role_database.role_url) == [problem]
        execute(role_database.owner_url, problem.partition("Run: ")[2])
    assert problems(role_database.role_url) == []
    engine = open_engine(role_database.role_url)
    schema.upgrade(engine)
    engine.dispose()


def test_a_role_is_told_which_tables_it_may_not_use(role_database: RoleDatabase) -> None:
    """It may read the revision; the tables belong to another role."""
    engine = open_engine(role_database.owner_url)
    schema.upgrade(engine)
    engine.dispose()
    role_database.execute("GRANT SELECT ON linq_etl_alembic_version TO {role}")
    (problem,) = problems(role_database.role_url)
    assert problem.startswith(f"Role {role_database.role} may not use {ALL_TABLES}. Run: GRANT ")
    for statement in problem.partition("Run: ")[2].split("; "):
        execute(role_database.owner_url, statement)
    assert problems(role_database.role_url) == []
    role_database.execute("REVOKE UPDATE ON chats FROM {role}")
    (problem,) = problems(role_database.role_url)
    assert problem.startswith(f"Role {role_database.role} may not use chats. ")


def test_only_the_owner_can_upgrade(role_database: RoleDatabase) -> None:
    """Another role is told to leave it to the owner."""
    engine = open_engine(role_database.owner_url)
    schema.upgrade(engine)
    schema.downgrade(engine, "-1")
    revision = schema.current(engine)
    engine.dispose()
    role_database.execute(
        "GRANT CREATE ON SCHEMA public TO {role}",
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}",
        "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}",
    )
    (problem,) = problems(role_database.role_url)
    assert "because it does not own api_pace, chat_events, chat_handles, " in problem
    assert problems(role_database.role_url, LINQ_ETL_DATABASE__AUTO_UPGRADE="false") == [
        f"revision {revision}; run `linq-etl db upgrade`"
    ]


def test_a_role_that_only_reads_is_told_the_setting(role_database: RoleDatabase) -> None:
    """Whether the role or the database has it."""
    role_database.execute(
        "GRANT CREATE ON SCHEMA public TO {role}",
        "ALTER DATABASE {database} SET default_transaction_read_only = on",
    )
    (problem,) = problems(role_database.role_url)
    assert problem.startswith(f"Role {role_database.role} may only read. Run: ALTER ROLE ")
    with_write = problem.partition("Run: ")[2]
    url = make_url(role_database.owner_url)
    writable = url.update_query_dict({"options": "-cdefault_transaction_read_only=off"})
    execute(writable.render_as_string(hide_password=False), with_write)
    assert problems(role_database.role_url) == []

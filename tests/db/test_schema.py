"""The schema: its migrations, its checks, its constraints and its comments."""

import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from itertools import count
from multiprocessing.synchronize import Barrier
from typing import Any, get_args

import pytest
from sqlalchemy import (
    BigInteger,
    Column,
    Date,
    Double,
    Engine,
    Integer,
    Table,
    event,
    insert,
    inspect,
    text,
)

from etl.db import run_log, schema, tables
from etl.db.engine import open_engine, writing
from etl.db.tables import REVISION, VERSION_TABLE, metadata
from etl.db.types import BigKey, UtcDateTime
from etl.errors import DatabaseError, SchemaError
from tests.support.builders import NOON, A
from tests.support.marks import only_servers

CONTRACT = {
    "chats": "id display_name service is_group message_count extra "
    "first_seen_at changed_at removed_at",
    "chat_handles": "chat_id id phone_number service joined_at extra "
    "first_seen_at changed_at removed_at",
    "chat_phone_numbers": "phone_number chat_id first_seen_at removed_at",
    "phone_numbers": "phone_number label first_seen_at",
    "sync_runs": "id command mode status started_at finished_at version host numbers_total "
    "numbers_failed requests retries throttled pages chats_seen chats_inserted chats_updated "
    "chats_unchanged chats_removed handles_inserted handles_updated handles_removed rejected "
    "error_kind error_detail",
    "sync_run_numbers": "run_id phone_number status completeness reason passes total_count "
    "requests retries throttled pages chats_seen chats_inserted chats_updated chats_unchanged "
    "chats_removed handles_inserted handles_updated handles_removed rejected",
    "rejected_records": "id run_id phone_number page reason payload",
    "chat_message_counts": "chat_id observed_at message_count run_id",
    "chat_events": "id run_id observed_at chat_id kind old_value new_value",
}
KEYS = {
    "chats": ["id"],
    "chat_handles": ["chat_id", "id"],
    "chat_phone_numbers": ["phone_number", "chat_id"],
    "phone_numbers": ["phone_number"],
    "sync_runs": ["id"],
    "sync_run_numbers": ["run_id", "phone_number"],
    "rejected_records": ["id"],
    "chat_message_counts": ["chat_id", "observed_at"],
    "chat_events": ["id"],
}


@pytest.fixture
def empty(database_url: str) -> Iterator[Engine]:
    """A new database without tables."""
    opened = open_engine(database_url)
    yield opened
    opened.dispose()


@pytest.fixture
def built(empty: Engine) -> Engine:
    """A new database with the schema, which the test may change."""
    schema.upgrade(empty)
    return empty


def is_mysql(engine: Engine) -> bool:
    return engine.dialect.name == "mysql"


def table_names(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names())


def add_a_row_to_every_table(engine: Engine) -> None:
    with writing(engine) as connection:
        for table in metadata.sorted_tables:
            row = {c.name: example(c) for c in table.columns if c.primary_key or not c.nullable}
            connection.execute(insert(table), row)


def example(column: Column[Any]) -> object:
    if isinstance(column.type, UtcDateTime):
        return NOON
    if isinstance(column.type, Date):
        return NOON.date()
    return 1 if isinstance(column.type, BigInteger | Integer | BigKey | Double) else A


def execute(engine: Engine, *statements: str) -> None:
    with writing(engine) as connection:
        for statement in statements:
            connection.execute(text(statement))


def values(engine: Engine, query: str) -> list[tuple[object, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


# Migrations


def test_an_empty_database_gets_the_tables_that_the_program_expects(empty: Engine) -> None:
    """The migrations create the schema that etl.db.tables describes."""
    assert schema.current(empty) is None
    assert schema.upgrade(empty) == REVISION == schema.current(empty)
    assert schema.differences(empty) is None
    assert table_names(empty) == {*metadata.tables, VERSION_TABLE}


@pytest.mark.parametrize("table", CONTRACT)
def test_the_contract_is_in_the_tables(table: str) -> None:
    """Every column and key that people's queries use exists."""
    assert set(CONTRACT[table].split()) <= set(metadata.tables[table].columns.keys())
    assert metadata.tables[table].primary_key.columns.keys() == KEYS[table]


def test_an_upgraded_database_is_not_touched_again(built: Engine) -> None:
    """Upgrading a current schema changes nothing."""
    before = values(built, f"SELECT * FROM {VERSION_TABLE}")
    assert schema.upgrade(built) == REVISION
    schema.ensure_current(built, upgrade_allowed=False)
    assert values(built, f"SELECT * FROM {VERSION_TABLE}") == before


def test_a_downgrade_to_base_drops_everything(built: Engine) -> None:
    """No table and no view is left, and an upgrade makes the schema whole again."""
    add_a_row_to_every_table(built)
    schema.downgrade(built, "base")
    assert schema.current(built) is None
    assert table_names(built) == {VERSION_TABLE}
    assert inspect(built).get_view_names() == []
    schema.upgrade(built)
    assert schema.differences(built) is None


def test_each_migration_can_be_undone_with_rows_in_every_table(built: Engine) -> None:
    """Down one revision at a time to an empty database, and up again."""
    add_a_row_to_every_table(built)
    while schema.current(built):
        schema.downgrade(built, "-1")
    schema.upgrade(built)
    assert schema.differences(built) is None


def test_every_later_migration_keeps_the_rows_of_the_baseline(built: Engine) -> None:
    """Down to the baseline and up again, no row is lost."""
    add_a_row_to_every_table(built)
    queries = [f"SELECT count(*) FROM {name}" for name in CONTRACT]
    for move in (lambda: schema.downgrade(built, "0006_baseline"), lambda: schema.upgrade(built)):
        move()
        assert [values(built, query) for query in queries] == [[(1,)]] * len(CONTRACT)
    assert schema.differences(built) is None


def test_runs_of_before_were_full(built: Engine) -> None:
    """They read what they were asked for and wrote it."""
    add_a_row_to_every_table(built)
    schema.downgrade(built, "0011_last_attempt")
    schema.upgrade(built)
    assert values(built, "SELECT mode FROM sync_runs") == [("full",)]


@pytest.mark.parametrize("revision", ["nowhere", "0001", "-99", "+1", "", "base:head"])
def test_a_downgrade_to_an_unknown_revision_is_refused(built: Engine, revision: str) -> None:
    """The error lists the revisions, and nothing changes."""
    with pytest.raises(SchemaError, match=r"the revisions are base, 0006_baseline") as caught:
        schema.downgrade(built, revision)
    assert str(caught.value).startswith(f"cannot downgrade to {revision!r}")
    assert schema.differences(built) is None


def test_a_failed_upgrade_leaves_nothing_behind(
    empty: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in the last migration rolls back the first, where the database can do that."""
    execute(empty, "CREATE TABLE chat_events (theirs TEXT)")
    monkeypatch.setattr(schema, "usable_revision", lambda _: None)
    with pytest.raises(DatabaseError) as caught:
        schema.upgrade(empty)
    assert caught.value.exit_code == 6
    assert schema.current(empty) is None
    if not is_mysql(empty):
        assert table_names(empty) == {"chat_events"}


@pytest.mark.slow
def test_an_upgrade_that_is_killed_anywhere_is_run_again(empty: Engine, database_url: str) -> None:
    """Each time it comes a little further, until it comes to its end."""
    spawn = multiprocessing.get_context("spawn")
    for limit in count(0, 7):
        process = spawn.Process(target=_upgrade_until, args=(database_url, limit))
        process.start()
        process.join(30)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert schema.upgrade(empty) == REVISION
    assert schema.differences(empty) is None
    assert values(empty, "SELECT run_id, fence FROM run_fences") == [(0, 0)]


@pytest.mark.parametrize(
    "statement",
    ["CREATE TABLE chats (theirs TEXT)", "CREATE VIEW current_participants AS SELECT 1 AS theirs"],
)
def test_tables_of_another_program_are_named(empty: Engine, statement: str) -> None:
    """A table or view of our names, in a database that this program has not set up."""
    execute(empty, "CREATE TABLE phone_numbers (theirs TEXT)", statement)
    before = table_names(empty)
    names = {"phone_numbers", statement.split()[2]}
    for command in (
        lambda: schema.ensure_usable(empty),
        lambda: schema.ensure_current(empty, upgrade_allowed=True),
        lambda: schema.upgrade(empty),
    ):
        with pytest.raises(SchemaError) as caught:
            command()
        message = str(caught.value)
        named = re.split(r"[(), .]+", message)
        assert {"chats", "current_participants", "phone_numbers"}.intersection(named) == names
        assert "of another program with the names that this one needs" in message
        assert message.endswith("use another database")
        assert caught.value.exit_code == 6
    assert table_names(empty) == before


def test_a_version_table_of_another_program_is_named(empty: Engine) -> None:
    """It has our name, but not its column; nothing is written there."""
    execute(empty, f"CREATE TABLE {VERSION_TABLE} (theirs TEXT)")
    for command in (schema.current, schema.upgrade):
        with pytest.raises(SchemaError, match=f"{VERSION_TABLE} is of another program") as caught:
            command(empty)
        assert caught.value.exit_code == 6
    assert table_names(empty) == {VERSION_TABLE}


def test_an_upgrade_makes_the_writers_lock(built: Engine) -> None:
    """Its row, and none for the runs of before: no fence, so they can be closed at once."""
    fences = "SELECT run_id, fence FROM run_fences"
    assert values(built, fences) == [(0, 0)]
    add_a_row_to_every_table(built)
    schema.downgrade(built, "0006_baseline")
    schema.upgrade(built)
    assert values(built, fences) == [(0, 0)]
    with writing(built) as connection:
        assert run_log.abandon(connection, 1, NOON)


# Checks


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("ALTER TABLE chats ADD COLUMN nickname TEXT", "nickname"),
        ("ALTER TABLE chats DROP COLUMN digest", "digest"),
        ("DROP INDEX ix_chats_changed_at{on_chats}", "ix_chats_changed_at"),
        ("CREATE INDEX ix_mine ON chats (message_count)", "ix_mine"),
        ("DROP TABLE rejected_records", "rejected_records"),
    ],
)
def test_a_changed_schema_is_noticed(built: Engine, change: str, named: str) -> None:
    """A column, table or index that was changed by hand is named."""
    execute(built, change.format(on_chats=" ON chats" if is_mysql(built) else ""))
    assert named in (schema.differences(built) or "")


def test_an_empty_database_differs(empty: Engine) -> None:
    """Before the first upgrade, the check names the command to run."""
    assert "linq-etl db upgrade" in (schema.differences(empty) or "")


@pytest.mark.parametrize("revision", ["0004", "0006", "9999"])
def test_an_unknown_revision_is_refused(built: Engine, revision: str) -> None:
    """A revision that is gone or still to come: exit code 6, and nothing changes."""
    execute(built, f"UPDATE {VERSION_TABLE} SET version_num = '{revision}'")
    commands: tuple[Callable[[], object], ...] = (
        lambda: schema.ensure_current(built, upgrade_allowed=True),
        lambda: schema.ensure_current(built, upgrade_allowed=False),
        lambda: schema.upgrade(built),
        lambda: schema.downgrade(built, "base"),
        lambda: schema.differences(built),
    )
    for command in commands:
        with pytest.raises(SchemaError) as caught:
            command()
        assert caught.value.exit_code == 6
        assert str(caught.value) == (
            f"the schema's revision {revision} is unknown to this program: the database is older "
            "than 0.1 or newer than this version. If older (a development database), start a new "
            "one; if newer, install the linq-etl version that upgraded it, or a later one"
        )
    assert schema.current(built) == revision
    assert table_names(built) == {*metadata.tables, VERSION_TABLE}


def test_an_empty_schema_is_upgraded_only_if_allowed(empty: Engine) -> None:
    """If not, the error names the command to run."""
    with pytest.raises(SchemaError, match=r"no tables yet; run `linq-etl db upgrade`") as caught:
        schema.ensure_current(empty, upgrade_allowed=False)
    assert caught.value.exit_code == 6
    assert table_names(empty) == set()
    schema.ensure_current(empty, upgrade_allowed=True)
    assert schema.differences(empty) is None


def test_an_older_schema_is_upgraded_only_if_allowed(built: Engine) -> None:
    """One revision back is older; it is empty as long as there is only the baseline."""
    schema.downgrade(built, "-1")
    behind = schema.current(built)
    with pytest.raises(SchemaError, match=r"older|no tables"):
        schema.ensure_current(built, upgrade_allowed=False)
    assert schema.current(built) == behind
    schema.ensure_current(built, upgrade_allowed=True)
    assert schema.differences(built) is None


# Concurrency and other projects


def test_threads_that_upgrade_at_once_all_succeed(empty: Engine) -> None:
    """They wait for each other."""
    start = threading.Barrier(3)
    ended: list[str] = []

    def upgrade() -> None:
        start.wait()
        ended.append(schema.upgrade(empty))

    threads = [threading.Thread(target=upgrade) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [REVISION] * 3
    assert schema.differences(empty) is None


def _upgrade_until(url: str, limit: int) -> None:
    """Upgrade, and be killed after so many statements."""
    engine = open_engine(url)
    statements = count()

    def kill(*_: Any) -> None:
        if next(statements) == limit:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(engine, "after_cursor_execute", kill)
    schema.upgrade(engine)


def _upgrade_in_process(url: str, ready: Barrier) -> None:
    engine = open_engine(url)
    ready.wait()
    schema.upgrade(engine)
    engine.dispose()


def test_processes_that_upgrade_at_once_all_succeed(empty: Engine, database_url: str) -> None:
    """Both start while a third holds the write lock."""
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Barrier(3)
    processes = [
        spawn.Process(target=_upgrade_in_process, args=(database_url, ready)) for _ in range(2)
    ]
    with writing(empty):
        for process in processes:
            process.start()
        ready.wait(30)
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert schema.differences(empty) is None


def test_tables_of_other_projects_are_left_alone(empty: Engine) -> None:
    """Another project's tables and its alembic_version survive each command."""
    execute(
        empty,
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)",
        "INSERT INTO alembic_version VALUES ('theirs')",
        "CREATE TABLE orders (id INTEGER)",
        "INSERT INTO orders VALUES (7)",
    )
    schema.upgrade(empty)
    assert schema.differences(empty) is None
    schema.downgrade(empty, "base")
    assert table_names(empty) == {"alembic_version", "orders", VERSION_TABLE}
    assert values(empty, "SELECT * FROM alembic_version") == [("theirs",)]
    assert values(empty, "SELECT * FROM orders") == [(7,)]


# The data dictionary, names and indexes


@pytest.mark.parametrize("table", metadata.sorted_tables, ids=str)
def test_every_table_and_column_has_a_comment(table: Table) -> None:
    """The data dictionary has no gap."""
    assert table.comment
    assert [column.name for column in table.columns if not column.comment] == []


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (tables.sync_runs.c.mode, tables.Mode),
        (tables.sync_runs.c.status, tables.Status),
        (tables.sync_run_numbers.c.completeness, tables.Completeness),
        (tables.chat_events.c.kind, tables.EventKind),
    ],
    ids=str,
)
def test_a_comment_names_every_value(column: Column[str], values: object) -> None:
    """The comment of a status column lists the values that the program writes."""
    assert [value for value in get_args(values) if value not in (column.comment or "")] == []


@only_servers
def test_the_comments_are_in_the_catalog(built: Engine) -> None:
    """A server stores the comments, so that an analyst's tool can show them."""
    catalog = inspect(built)
    for name, table in metadata.tables.items():
        assert catalog.get_table_comment(name)["text"] == table.comment
        found = {column["name"]: column["comment"] for column in catalog.get_columns(name)}
        assert found == {column.name: column.comment for column in table.columns}


def test_every_constraint_has_its_name(built: Engine) -> None:
    """A later migration can drop each of them, on SQLite too."""
    catalog = inspect(built)
    for table in metadata.tables:
        name = None if is_mysql(built) else f"pk_{table}"  # In MySQL it is always PRIMARY.
        assert catalog.get_pk_constraint(table)["name"] == name
        keys = catalog.get_foreign_keys(table)
        for key in keys:
            assert key["name"] == f"fk_{table}_{key['constrained_columns'][0]}"
        for index in catalog.get_indexes(table):
            # MySQL makes an index of its own for a foreign key that has none.
            kind = "fk" if index["name"] in {key["name"] for key in keys} else "ix"
            assert index["name"] == "_".join([kind, table, *map(str, index["column_names"])])


def test_common_queries_have_an_index(built: Engine) -> None:
    """Chats by number, participants by phone number, and recent changes."""
    catalog = inspect(built)
    leading = set()
    for table in metadata.tables:
        keys = [index["column_names"] for index in catalog.get_indexes(table)]
        keys.append(list(catalog.get_pk_constraint(table)["constrained_columns"]))
        leading |= {(table, columns[0]) for columns in keys}
    assert leading >= {
        ("chat_phone_numbers", "phone_number"),
        ("chat_phone_numbers", "chat_id"),
        ("chat_handles", "chat_id"),
        ("chat_handles", "phone_number"),
        ("chats", "changed_at"),
        ("chat_handles", "changed_at"),
        ("chat_events", "observed_at"),
        ("chat_events", "chat_id"),
    }

"""The schema: made, checked, taken back and refused, from the migrations alone."""

import multiprocessing
import threading
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier

import pytest
from sqlalchemy import Engine, inspect, text

from etl.db import schema
from etl.db.engine import open_database, writing
from etl.db.tables import REVISION, VERSION_TABLE, metadata
from etl.errors import DatabaseError, SchemaError

CONTRACT = {
    "chats": "id display_name service is_group message_count extra "
    "first_seen_at changed_at removed_at",
    "chat_handles": "chat_id id phone_number service joined_at extra "
    "first_seen_at changed_at removed_at",
    "chat_phone_numbers": "phone_number chat_id first_seen_at removed_at",
    "phone_numbers": "phone_number label first_seen_at",
    "sync_runs": "id command status started_at finished_at version host numbers_total "
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
    """A database without a schema."""
    opened = open_database(database_url)
    yield opened
    opened.dispose()


@pytest.fixture
def built(empty: Engine) -> Engine:
    """A database of the test's own, with the schema."""
    schema.upgrade(empty)
    return empty


def tables(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names())


def execute(engine: Engine, *statements: str) -> None:
    with writing(engine) as connection:
        for statement in statements:
            connection.execute(text(statement))


def values(engine: Engine, query: str) -> list[tuple[object, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


# Making it


def test_an_empty_database_gets_the_tables_that_the_program_expects(empty: Engine) -> None:
    """The migrations and the tables in the code are the same schema."""
    assert schema.current(empty) is None
    assert schema.upgrade(empty) == REVISION == schema.current(empty)
    assert schema.differences(empty) is None
    assert tables(empty) == {*metadata.tables, VERSION_TABLE}


@pytest.mark.parametrize("table", CONTRACT)
def test_the_contract_is_in_the_tables(table: str) -> None:
    """What people's queries name is there, under the key that they were promised."""
    assert set(CONTRACT[table].split()) <= set(metadata.tables[table].columns.keys())
    assert metadata.tables[table].primary_key.columns.keys() == KEYS[table]


def test_an_upgraded_database_is_not_touched_again(built: Engine) -> None:
    """To upgrade what is current changes nothing."""
    before = values(built, f"SELECT * FROM {VERSION_TABLE}")
    assert schema.upgrade(built) == REVISION
    schema.ensure_current(built, upgrade_allowed=False)
    assert values(built, f"SELECT * FROM {VERSION_TABLE}") == before


def test_a_downgrade_leaves_nothing_and_can_be_undone(built: Engine) -> None:
    """Down to base no table of ours is left; up again the schema is whole."""
    schema.downgrade(built, "base")
    assert schema.current(built) is None
    assert tables(built) == {VERSION_TABLE}
    schema.upgrade(built)
    assert schema.differences(built) is None


def test_each_migration_can_be_undone_and_redone(empty: Engine) -> None:
    """Down one revision at a time and up one at a time end where they began."""
    schema.upgrade(empty)
    while schema.current(empty):
        schema.downgrade(empty, "-1")
    schema.upgrade(empty)
    assert schema.differences(empty) is None


def test_migrations_keep_what_is_stored(built: Engine) -> None:
    """Rows of an older version are there after the upgrade, and again after the way back."""
    noon = "'2025-06-01 12:00:00.000000'"
    numbers, links, counts = "phone_numbers", "chat_phone_numbers", "chat_message_counts"
    queries = [f"SELECT * FROM {name}" for name in (numbers, links, counts, "chat_handles")]
    schema.downgrade(built, "0003")
    execute(
        built,
        f"INSERT INTO {numbers} (phone_number, first_seen_at) VALUES ('+1', {noon})",
        f"INSERT INTO chats (id, first_seen_at, changed_at) VALUES (1, {noon}, {noon})",
        "INSERT INTO chat_handles (chat_id, id, first_seen_at, changed_at) "
        f"VALUES (1, 2, {noon}, {noon})",
        f"INSERT INTO {links} (phone_number, chat_id, first_seen_at) VALUES ('+1', 1, {noon})",
        f"INSERT INTO {counts} VALUES (1, {noon}, 5, 1)",
    )
    before = [values(built, query) for query in queries]
    schema.upgrade(built)
    assert [values(built, query) for query in queries] == before
    assert values(built, "SELECT id, digest FROM chats") == [(1, None)]
    assert values(built, "SELECT phone_number, chat_id FROM current_participants") == [("+1", 1)]
    schema.downgrade(built, "0003")
    assert [values(built, query) for query in queries] == before
    with pytest.raises(DatabaseError):
        execute(built, f"INSERT INTO {counts} VALUES (2, {noon}, 5, 1)")


def test_a_downgrade_to_nowhere_is_refused(built: Engine) -> None:
    """A revision that nobody knows is named in the error, and nothing changes."""
    with pytest.raises(SchemaError, match="cannot downgrade to 'nowhere'"):
        schema.downgrade(built, "nowhere")
    assert schema.differences(built) is None


def test_a_failed_upgrade_leaves_nothing_behind(empty: Engine) -> None:
    """A table that is in the way stops the upgrade before its first change."""
    execute(empty, "CREATE TABLE chat_events (theirs TEXT)")
    with pytest.raises(DatabaseError) as caught:
        schema.upgrade(empty)
    assert caught.value.exit_code == 6
    assert tables(empty) == {"chat_events"}
    assert schema.current(empty) is None


# Whether it is right


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("ALTER TABLE chats ADD COLUMN nickname TEXT", "nickname"),
        ("ALTER TABLE chats DROP COLUMN message_count", "message_count"),
        ("DROP INDEX ix_chats_changed_at", "ix_chats_changed_at"),
        ("CREATE INDEX ix_mine ON chats (service)", "ix_mine"),
        ("DROP TABLE rejected_records", "rejected_records"),
    ],
)
def test_a_changed_schema_is_noticed(built: Engine, change: str, told: str) -> None:
    """What somebody altered by hand is named."""
    execute(built, change)
    assert told in (schema.differences(built) or "")


def test_an_empty_database_differs(empty: Engine) -> None:
    """Before the first upgrade the check says which command to run."""
    assert "linq-etl db upgrade" in (schema.differences(empty) or "")


def test_a_newer_schema_is_refused(built: Engine) -> None:
    """A revision that this program does not have is left alone, with exit code 6."""
    execute(built, f"UPDATE {VERSION_TABLE} SET version_num = 'f00d'")
    for refused in (
        lambda: schema.ensure_current(built, upgrade_allowed=True),
        lambda: schema.upgrade(built),
    ):
        with pytest.raises(SchemaError, match=r"f00d.* newer than this program") as caught:
            refused()
        assert caught.value.exit_code == 6
    assert schema.current(built) == "f00d"


def test_an_empty_schema_is_upgraded_only_if_allowed(empty: Engine) -> None:
    """Otherwise the error says which command to run."""
    with pytest.raises(SchemaError, match=r"no tables yet; run `linq-etl db upgrade`") as caught:
        schema.ensure_current(empty, upgrade_allowed=False)
    assert caught.value.exit_code == 6
    assert tables(empty) == set()
    schema.ensure_current(empty, upgrade_allowed=True)
    assert schema.differences(empty) is None


def test_an_older_schema_is_upgraded_only_if_allowed(built: Engine) -> None:
    """One revision behind is older, or empty where there was only one."""
    schema.downgrade(built, "-1")
    behind = schema.current(built)
    with pytest.raises(SchemaError, match=r"older|empty"):
        schema.ensure_current(built, upgrade_allowed=False)
    assert schema.current(built) == behind
    schema.ensure_current(built, upgrade_allowed=True)
    assert schema.differences(built) is None


# Together with others


def test_two_upgrades_at_once_both_succeed(empty: Engine) -> None:
    """Threads that start together wait for one another."""
    start, ended = threading.Barrier(3), []

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


def _upgrade_in_process(url: str, ready: Barrier) -> None:
    engine = open_database(url)
    ready.wait()
    schema.upgrade(engine)
    engine.dispose()


def test_two_processes_upgrade_at_once(empty: Engine, database_url: str) -> None:
    """Both come while a third has the database, and both succeed."""
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


def test_what_is_not_ours_is_left_alone(empty: Engine) -> None:
    """Another project's tables and its alembic_version survive each of our commands."""
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
    assert tables(empty) == {"alembic_version", "orders", VERSION_TABLE}
    assert values(empty, "SELECT * FROM alembic_version") == [("theirs",)]
    assert values(empty, "SELECT * FROM orders") == [(7,)]


# What it says of itself


@pytest.mark.parametrize("table", metadata.sorted_tables, ids=str)
def test_every_table_and_column_has_a_comment(table: object) -> None:
    """The data dictionary has no gap, and its entries are sentences or parts of one."""
    described = [table, *table.columns]  # type: ignore[attr-defined]
    assert [str(one) for one in described if not (one.comment or "").strip()] == []


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_the_comments_are_in_the_catalog(built: Engine) -> None:
    """Where the database keeps comments, an analyst's tool shows them all."""
    catalog = inspect(built)
    for name, table in metadata.tables.items():
        assert catalog.get_table_comment(name)["text"] == table.comment
        found = {column["name"]: column["comment"] for column in catalog.get_columns(name)}
        assert found == {column.name: column.comment for column in table.columns}


def test_every_constraint_has_its_name(built: Engine) -> None:
    """A later migration can find each of them, in SQLite too."""
    catalog = inspect(built)
    for table in metadata.tables:
        assert catalog.get_pk_constraint(table)["name"] == f"pk_{table}"
        for key in catalog.get_foreign_keys(table):
            assert key["name"] == f"fk_{table}_{key['constrained_columns'][0]}"
        for index in catalog.get_indexes(table):
            assert index["name"] == "_".join(["ix", table, *map(str, index["column_names"])])


def test_the_obvious_queries_have_an_index(built: Engine) -> None:
    """Chats by number, participants by phone number, and what changed of late."""
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

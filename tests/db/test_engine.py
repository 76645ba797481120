"""Files with private modes, transactions, and errors that name the cause and no data."""

import os
import re
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from psycopg.errors import IdleInTransactionSessionTimeout
from sqlalchemy import Engine, event, insert, make_url, select, text

from etl.db import schema
from etl.db.backends import backend, postgresql
from etl.db.engine import database_clock, describe, open_engine, reading, writing
from etl.db.tables import chat_handles, chats, phone_numbers
from etl.errors import DatabaseConflictError, DatabaseError, DatabaseUnavailableError
from tests.support.builders import NOON
from tests.support.marks import only_mysql, only_postgres, only_servers, only_sqlite
from tests.support.outages import conflict, do_not_wait_for_locks

SECRET = "what-people-wrote"


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def new_chat(**fields: Any) -> dict[str, Any]:
    return {"id": 1, "first_seen_at": NOON, "changed_at": NOON, **fields}


def error_of(url: str) -> str:
    """The message of the error when that database is used."""
    engine = open_engine(url)
    with pytest.raises(DatabaseError) as caught:
        schema.current(engine)
    engine.dispose()
    return str(caught.value)


@pytest.fixture
def read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The current folder holds a database, and this process may only read, even as root."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    monkeypatch.chdir(folder)
    engine = open_engine("sqlite:///old.db")
    schema.upgrade(engine)
    engine.dispose()
    Path("old.db").chmod(0o444)
    folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)
    folder.chmod(0o755)


# Files


def test_a_new_file_belongs_to_its_owner_alone(tmp_path: Path) -> None:
    """With SQLite's files beside it, and whatever the umask allows."""
    engine = open_engine("sqlite:///linq.db")
    schema.upgrade(engine)
    modes = {path.name: mode(path) for path in tmp_path.glob("linq.db*")}
    engine.dispose()
    assert modes == {"linq.db": 0o600, "linq.db-wal": 0o600, "linq.db-shm": 0o600}


def test_an_existing_file_keeps_its_mode(tmp_path: Path) -> None:
    """It may be shared with a group on purpose."""
    Path("linq.db").touch(mode=0o640)
    Path("linq.db").chmod(0o640)
    open_engine("sqlite:///linq.db").dispose()
    assert mode(tmp_path / "linq.db") == 0o640


def test_a_missing_folder_is_named() -> None:
    """With the reason, and the key to look at."""
    with pytest.raises(DatabaseError) as caught:
        open_engine("sqlite:///nowhere/linq.db")
    assert str(caught.value) == (
        "cannot create the database file nowhere/linq.db: No such file or directory; "
        "see database.url"
    )


@pytest.mark.usefixtures("read_only_folder")
def test_no_file_is_created_in_a_read_only_folder() -> None:
    """The error comes before anything is read from the API."""
    with pytest.raises(DatabaseError, match=r"file new\.db: Permission denied; see database\.url"):
        open_engine("sqlite:///new.db")


@pytest.mark.usefixtures("read_only_folder")
def test_a_read_only_file_is_refused() -> None:
    """The message says what to look at."""
    assert "check the permissions of the file and its folder" in error_of("sqlite:///old.db")


def test_a_file_of_another_format_is_refused() -> None:
    """It stays as it is."""
    Path("notes.txt").write_text(SECRET * 100)
    message = error_of("sqlite:///notes.txt")
    assert "database.url names a file that is something else, or damaged" in message
    assert SECRET not in message
    assert Path("notes.txt").read_text() == SECRET * 100


@pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
@only_sqlite
def test_a_file_that_is_gone_is_noticed(engine: Engine, tmp_path: Path, replaced: bool) -> None:
    """SQLite itself goes on writing to a file that has no name any more."""
    path = tmp_path / "linq.db"
    with writing(engine) as connection:
        connection.execute(insert(chats), new_chat())
    path.rename(tmp_path / "old.db")
    if replaced:
        shutil.copy(tmp_path / "old.db", path)
    for transaction in (writing, reading):
        with pytest.raises(DatabaseError) as caught, transaction(engine) as connection:
            connection.execute(select(chats))
        assert str(caught.value) == (
            f"the database file {path} was deleted or replaced while it was in use: run again"
        )
    assert path.exists() == replaced


# Transactions


@only_sqlite
def test_sqlite_is_set_up_on_every_connection(engine: Engine) -> None:
    """Foreign keys, write-ahead log, and how long to wait for a lock."""
    for _ in range(2):
        with reading(engine) as connection:
            settings = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                for name in ("foreign_keys", "journal_mode", "busy_timeout")
            }
        assert settings == {"foreign_keys": 1, "journal_mode": "wal", "busy_timeout": 30_000}
        engine.dispose()


@only_postgres
def test_postgresql_is_set_up_for_one_transaction(engine: Engine) -> None:
    """A pooler hands the connection to other programs, which must not find our settings."""
    query = "SELECT name, setting FROM pg_settings WHERE source = 'session' ORDER BY name"
    with writing(engine) as connection:
        names = [row.name for row in connection.exec_driver_sql(query)]
    assert names == sorted([*postgresql._SETTINGS, "application_name"])
    with reading(engine) as connection:
        assert connection.exec_driver_sql(query).all() == []
        assert (
            connection.exec_driver_sql("SELECT count(*) FROM pg_prepared_statements").scalar() == 0
        )


@only_mysql
def test_the_settings_of_a_mysql_server_do_not_matter(engine: Engine) -> None:
    """Each connection is strict, in UTC, and reads what is committed."""
    query = "SELECT @@sql_mode, @@time_zone, @@tx_isolation, @@autocommit, @@character_set_client"
    with reading(engine) as connection:
        found = connection.exec_driver_sql(query).one()
    assert {"STRICT_ALL_TABLES", "NO_BACKSLASH_ESCAPES"} < {*found[0].split(",")}
    assert found[1:] == ("+00:00", "READ-COMMITTED", 0, "utf8mb4")


@only_mysql
def test_a_silent_network_is_noticed_within_a_minute_by_this_end(engine: Engine) -> None:
    """A server of MySQL has no such settings for one session."""
    with writing(engine) as connection:
        driver: Any = connection.connection.driver_connection
        if driver.unix_socket:
            return
        found = driver._sock.getsockopt
        assert found(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle, interval, count, timeout = (
            found(socket.IPPROTO_TCP, getattr(socket, f"TCP_{name}"))
            for name in ("KEEPIDLE", "KEEPINTVL", "KEEPCNT", "USER_TIMEOUT")
        )
    assert idle + interval * count <= 60
    assert timeout <= 60_000


@only_postgres
def test_a_silent_network_is_noticed_within_a_minute(engine: Engine) -> None:
    """By either end: after a power failure or in a firewall, nothing closes a connection."""
    with writing(engine) as connection:
        driver: Any = connection.connection.driver_connection
        ours = driver.info.get_parameters()
        names = text("SELECT name, reset_val, setting FROM pg_settings WHERE name LIKE 'tcp_%'")
        theirs = {name.removeprefix("tcp_"): name for name, *_ in connection.execute(names)}
    for settings in (ours, {name: postgresql._SETTINGS[theirs[name]] for name in theirs}):
        idle, interval, count = (
            int(settings[f"keepalives_{name}"]) for name in ("idle", "interval", "count")
        )
        assert idle + interval * count <= 60
    assert int(ours["tcp_user_timeout"]) <= 60_000
    assert ours["keepalives"] == "1"


def test_a_participant_needs_its_chat(engine: Engine) -> None:
    """The foreign key is checked on both databases."""
    orphan = {"chat_id": 404, "id": 1, "first_seen_at": NOON, "changed_at": NOON}
    with pytest.raises(DatabaseError), writing(engine) as connection:
        connection.execute(insert(chat_handles), orphan)


def test_a_failed_transaction_leaves_nothing(engine: Engine) -> None:
    """Everything is rolled back, and the exception goes on."""

    def fail_late() -> None:
        with writing(engine) as connection:
            connection.execute(insert(chats), new_chat())
            raise KeyError

    with pytest.raises(KeyError):
        fail_late()
    with reading(engine) as connection:
        assert connection.execute(select(chats)).all() == []


def test_readers_do_not_wait_for_a_writer(engine: Engine) -> None:
    """Until it commits, they see the rows from before."""
    with writing(engine) as connection:
        connection.execute(insert(chats), new_chat())
        with reading(engine) as reader:
            assert reader.execute(select(chats)).all() == []
    with reading(engine) as reader:
        assert len(reader.execute(select(chats)).all()) == 1


@pytest.mark.parametrize(
    "instant",
    [
        datetime(2025, 5, 21, 15, 30, 0, 1, tzinfo=UTC),
        datetime(2025, 5, 21, 15, 30, tzinfo=UTC).astimezone(),
        datetime(1969, 7, 20, 20, 17, 40, 999999, tzinfo=UTC),
    ],
)
def test_an_instant_is_read_in_utc(engine: Engine, instant: datetime) -> None:
    """To the microsecond, and aware."""
    with writing(engine) as connection:
        connection.execute(insert(chats), new_chat(removed_at=instant))
    with reading(engine) as connection:
        stored = connection.execute(select(chats.c.removed_at)).scalar_one()
    assert (stored, stored.tzinfo) == (instant, UTC)


def test_the_clock_follows_the_database(engine: Engine) -> None:
    """In UTC; here both run on one machine, so they are close."""
    now = database_clock(engine)()
    assert now.tzinfo is UTC
    assert abs(now - datetime.now(UTC)) < timedelta(seconds=5)


# Errors


def test_an_unreachable_server_is_named_without_the_password() -> None:
    """With its address, and what to check."""
    message = error_of("postgresql://ada:pass-word@127.0.0.1:1/linq")
    assert "pass-word" not in message
    assert message.startswith("the database is unavailable: connection failed: ")
    assert message.endswith(
        "; check that it runs and that database.url is right "
        "(postgresql+psycopg://ada:***@127.0.0.1:1/linq)"
    )


@only_servers
def test_a_missing_database_is_named(database_url: str) -> None:
    """In the server's words, or with the statement that creates it."""
    elsewhere = make_url(database_url).set(database="nowhere_to_be_found")
    message = error_of(elsewhere.render_as_string(hide_password=False))
    if elsewhere.get_backend_name() == "postgresql":
        assert 'database "nowhere_to_be_found" does not exist' in message
        assert "check that it runs and that database.url is right" in message
    else:
        statement = "CREATE DATABASE `nowhere_to_be_found` CHARACTER SET utf8mb4;"
        assert f"There is no database `nowhere_to_be_found`. Run: {statement}" in message


def test_a_description_hides_the_password() -> None:
    """In the URL's query too."""
    engine = open_engine("postgresql://ada:pass-word@db.example/linq?password=pass-word")
    assert describe(engine) == "postgresql+psycopg://ada:***@db.example/linq"


@only_sqlite
def test_a_locked_file_is_explained(engine: Engine, tmp_path: Path) -> None:
    """Another program holds the lock for longer than a writer waits."""
    engine.dispose()
    event.listen(engine, "connect", lambda c, _: c.execute("PRAGMA busy_timeout = 0"))
    other = sqlite3.connect(tmp_path / "linq.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseError) as caught:
        schema.upgrade(engine)
    other.close()
    assert str(caught.value).startswith(
        "the database is unavailable: database is locked; another program has locked it for more "
        "than 30 s: wait, or end it (sqlite:///"
    )


@only_servers
def test_a_held_lock_is_explained(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program holds a lock for longer than a writer waits."""
    do_not_wait_for_locks(engine, monkeypatch)
    with writing(engine) as connection:
        connection.execute(insert(chats), new_chat())
        with pytest.raises(DatabaseUnavailableError) as caught, writing(engine) as other:
            other.execute(insert(chats), new_chat())
    message = {
        "postgresql": "canceling statement due to lock timeout",
        "mysql": "Lock wait timeout exceeded; try restarting transaction",
    }[engine.dialect.name]
    assert str(caught.value).startswith(
        f"the database is unavailable: {message}; another program has locked it for too long: "
        f"wait, or end that program ({engine.dialect.name}"
    )


@only_postgres
def test_a_suspension_within_a_transaction_is_explained(engine: Engine) -> None:
    """The server ended the session, because it must not block others for ever."""
    look_anew = text("SELECT pg_stat_clear_snapshot()")  # Kept until the transaction ends.
    alive = text("SELECT count(*) FROM pg_stat_get_activity(:pid)")

    def pause_between_two_statements() -> None:
        with writing(engine) as connection, reading(engine) as monitor:
            process = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            connection.exec_driver_sql("SET idle_in_transaction_session_timeout = '1ms'")
            while monitor.execute(alive, {"pid": process}).scalar_one():
                monitor.execute(look_anew)
            connection.execute(select(chats))

    with pytest.raises(DatabaseUnavailableError) as caught:
        pause_between_two_statements()
    # libpq does not always read what the server said before it closed the connection.
    assert re.match(
        "the database is unavailable: (terminating connection due to idle-in-transaction timeout|"
        "consuming input failed: server closed the connection)",
        str(caught.value),
    )
    said = IdleInTransactionSessionTimeout("terminating connection")
    assert backend(engine.dialect).explain(said, engine) == (
        "the database is unavailable: terminating connection; "
        "this process was suspended for more than 30 s within a transaction: run again"
    )


@only_servers
@pytest.mark.parametrize("kind", ["another's change", "deadlock"])
def test_a_conflict_is_explained(engine: Engine, kind: str) -> None:
    """It is not the URL that is wrong."""
    with pytest.raises(DatabaseConflictError) as caught, writing(engine):
        raise conflict(engine, kind)
    assert str(caught.value).startswith(
        "the database is unavailable: in the server's words; other transactions won several times "
        f"in a row: run again ({engine.dialect.name}"
    )


def test_a_violated_constraint_shows_no_data(engine: Engine) -> None:
    """Neither the row's values nor the database's own message, which quotes them."""
    number = {"phone_number": SECRET, "label": SECRET, "first_seen_at": NOON}
    with writing(engine) as connection:
        connection.execute(insert(phone_numbers), number)
    with pytest.raises(DatabaseError) as caught, writing(engine) as connection:
        connection.execute(insert(phone_numbers), number)
    assert str(caught.value).startswith("the database refused a statement: ")
    assert SECRET not in str(caught.value)


@only_servers
@pytest.mark.parametrize("value", [SECRET, f"{SECRET}\0", 2**70], ids=["text", "nul", "large"])
def test_a_value_of_another_type_is_not_shown(engine: Engine, value: Any) -> None:
    """A text for a number, a text with NUL, a number beyond 64 bits."""
    statement = {
        "postgresql": text("SELECT CAST(:value AS bigint)"),
        "mysql": text("UPDATE chats SET message_count = :value"),
    }[engine.dialect.name]
    with writing(engine) as connection:
        connection.execute(insert(chats), new_chat())
    with pytest.raises(DatabaseError) as caught, writing(engine) as connection:
        connection.execute(statement, {"value": value})
    assert SECRET not in str(caught.value)
    assert str(2**70) not in str(caught.value)


@only_sqlite
def test_a_text_that_is_too_large_is_not_shown(engine: Engine) -> None:
    """SQLite's limit, made small."""
    engine.dispose()
    event.listen(engine, "connect", lambda c, _: c.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 10_000))
    with pytest.raises(DatabaseError) as caught, writing(engine) as connection:
        connection.execute(insert(chats), new_chat(display_name=SECRET * 1000))
    assert SECRET not in str(caught.value)

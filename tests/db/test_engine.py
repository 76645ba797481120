"""Connections: private files, kept promises, and errors that help without telling data."""

import os
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, event, insert, make_url, select, text

from etl.db import schema
from etl.db.engine import database_clock, describe, open_engine, reading, writing
from etl.db.tables import chat_handles, chats, phone_numbers
from etl.errors import DatabaseError

NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)
SECRET = "what-people-wrote"

only_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
only_postgres = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def chat(**fields: Any) -> dict[str, Any]:
    return {"id": 1, "first_seen_at": NOON, "changed_at": NOON, **fields}


def complaint(url: str) -> str:
    """What is said when that database is used."""
    engine = open_engine(url)
    with pytest.raises(DatabaseError) as caught:
        schema.current(engine)
    engine.dispose()
    return str(caught.value)


@pytest.fixture
def shut_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a database in it, where this process may only read, root or not."""
    folder = tmp_path / "shut"
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
    yield folder
    os.seteuid(user)
    folder.chmod(0o755)


# Files


def test_a_new_file_is_its_owners_alone(tmp_path: Path) -> None:
    """Also what SQLite keeps beside it, whatever the umask allows."""
    engine = open_engine("sqlite:///linq.db")
    schema.upgrade(engine)
    kept = {path.name: mode(path) for path in tmp_path.glob("linq.db*")}
    engine.dispose()
    assert kept == {"linq.db": 0o600, "linq.db-wal": 0o600, "linq.db-shm": 0o600}


def test_a_file_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    """Whoever opened it to a group meant it."""
    Path("linq.db").touch(mode=0o640)
    Path("linq.db").chmod(0o640)
    open_engine("sqlite:///linq.db").dispose()
    assert mode(tmp_path / "linq.db") == 0o640


def test_a_folder_that_is_not_there_is_named() -> None:
    """The path, the reason, and the key to look at."""
    with pytest.raises(DatabaseError) as caught:
        open_engine("sqlite:///nowhere/linq.db")
    assert str(caught.value) == (
        "cannot create the database file nowhere/linq.db: No such file or directory; "
        "see database.url"
    )


def test_a_file_cannot_be_made_in_a_shut_folder(shut_folder: Path) -> None:
    """It is refused before anything is read from the API."""
    with pytest.raises(DatabaseError, match=r"file new\.db: Permission denied; see database\.url"):
        open_engine("sqlite:///new.db")


def test_a_file_in_a_shut_folder_names_permissions(shut_folder: Path) -> None:
    """A database that can only be read is of no use, and the message says what to look at."""
    assert "see the permissions of the file and its folder" in complaint("sqlite:///old.db")


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    """It stays as it is."""
    Path("notes.txt").write_text(SECRET * 100)
    assert SECRET not in complaint("sqlite:///notes.txt")
    assert Path("notes.txt").read_text() == SECRET * 100


# What a connection promises


@only_sqlite
def test_sqlite_is_set_up_on_every_connection(engine: Engine) -> None:
    """Foreign keys, write-ahead log and patience."""
    for _ in range(2):
        with reading(engine) as connection:
            settings = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                for name in ("foreign_keys", "journal_mode", "busy_timeout")
            }
        assert settings == {"foreign_keys": 1, "journal_mode": "wal", "busy_timeout": 30_000}
        engine.dispose()


def test_parents_come_before_children(engine: Engine) -> None:
    """A participant of no chat is refused."""
    orphan = {"chat_id": 404, "id": 1, "first_seen_at": NOON, "changed_at": NOON}
    with pytest.raises(DatabaseError), writing(engine) as connection:
        connection.execute(insert(chat_handles), orphan)


def test_a_failed_transaction_leaves_nothing(engine: Engine) -> None:
    """All of it or none of it."""

    def fail_late() -> None:
        with writing(engine) as connection:
            connection.execute(insert(chats), chat())
            raise KeyError

    with pytest.raises(KeyError):
        fail_late()
    with reading(engine) as connection:
        assert connection.execute(select(chats)).all() == []


def test_readers_wait_for_no_writer(engine: Engine) -> None:
    """In the midst of a write they see what was before."""
    with writing(engine) as connection:
        connection.execute(insert(chats), chat())
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
def test_an_instant_comes_back_in_utc(engine: Engine, instant: datetime) -> None:
    """To the microsecond, and aware."""
    with writing(engine) as connection:
        connection.execute(insert(chats), chat(removed_at=instant))
    with reading(engine) as connection:
        stored = connection.execute(select(chats.c.removed_at)).scalar_one()
    assert (stored, stored.tzinfo) == (instant, UTC)


def test_the_clock_is_the_databases(engine: Engine) -> None:
    """In UTC; here both are on one machine, so close to this one's."""
    now = database_clock(engine)()
    assert now.tzinfo is UTC
    assert abs(now - datetime.now(UTC)) < timedelta(seconds=5)


# What goes wrong


def test_an_unreachable_server_is_named_without_the_password() -> None:
    """Where it is, and what to do."""
    said = complaint("postgresql://ada:pass-word@127.0.0.1:1/linq")
    assert "pass-word" not in said
    assert "127.0.0.1:1/linq" in said
    assert "see that it runs and that database.url is right" in said


@only_postgres
def test_a_database_that_is_not_there_is_named(database_url: str) -> None:
    """As the server says it."""
    elsewhere = make_url(database_url).set(database="nowhere_to_be_found")
    said = complaint(elsewhere.render_as_string(hide_password=False))
    assert "nowhere_to_be_found" in said
    assert "see that it runs" in said


def test_a_description_hides_the_password() -> None:
    """Everything else is shown."""
    engine = open_engine("postgresql://ada:pass-word@db.example/linq")
    assert describe(engine) == "postgresql+psycopg://ada:***@db.example/linq"


@only_sqlite
def test_a_locked_file_says_so(engine: Engine, tmp_path: Path) -> None:
    """Another program holds it for longer than the patience lasts."""
    engine.dispose()
    event.listen(engine, "connect", lambda c, _: c.execute("PRAGMA busy_timeout = 0"))
    other = sqlite3.connect(tmp_path / "linq.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseError, match=r"database is locked; another program has held it"):
        schema.upgrade(engine)
    other.close()


@only_postgres
def test_a_held_writers_lock_says_so(engine: Engine) -> None:
    """Another writer holds it for longer than the patience lasts."""
    engine.dispose()

    @event.listens_for(engine, "checkout")
    def lose_patience(connection: psycopg.Connection[Any], *_: Any) -> None:
        connection.execute("SET lock_timeout = '10ms'")
        connection.commit()

    with (
        writing(engine),
        pytest.raises(DatabaseError, match=r"lock timeout; another program has held it"),
    ):
        schema.upgrade(engine)


def test_a_violated_constraint_tells_no_data(engine: Engine) -> None:
    """Neither the row's values nor the database's own message, which quotes them."""
    people = {"phone_number": SECRET, "label": SECRET, "first_seen_at": NOON}
    with writing(engine) as connection:
        connection.execute(insert(phone_numbers), people)
    with pytest.raises(DatabaseError) as caught, writing(engine) as connection:
        connection.execute(insert(phone_numbers), people)
    assert str(caught.value).startswith("the database refused a statement: ")
    assert SECRET not in str(caught.value)


@only_postgres
@pytest.mark.parametrize("value", [SECRET, f"{SECRET}\0", 2**70], ids=["text", "nul", "large"])
def test_a_value_that_does_not_fit_is_not_told(engine: Engine, value: Any) -> None:
    """A text for a number, a text with NUL, a number beyond 64 bits."""
    with pytest.raises(DatabaseError) as caught, writing(engine) as connection:
        connection.execute(text("SELECT CAST(:value AS bigint)"), {"value": value})
    assert SECRET not in str(caught.value)
    assert str(2**70) not in str(caught.value)


@only_sqlite
def test_a_text_that_is_too_large_is_not_told(engine: Engine) -> None:
    """A limit of SQLite's, made small."""
    engine.dispose()
    event.listen(engine, "connect", lambda c, _: c.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 10_000))
    with pytest.raises(DatabaseError) as caught, writing(engine) as connection:
        connection.execute(insert(chats), chat(display_name=SECRET * 1000))
    assert SECRET not in str(caught.value)

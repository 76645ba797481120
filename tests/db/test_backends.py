"""Many rows at once: inserted, updated, and read by id."""

import subprocess
import sys
from typing import Any

import pytest
from sqlalchemy import Engine, select

from etl.db.backends import backend
from etl.db.engine import reading, writing
from etl.db.tables import chats
from tests.support.builders import NOON, A, Rows, minute, row_of
from tests.support.marks import only_mysql

NAMES = ("id", "display_name", "extra", "first_seen_at", "changed_at")


def insert_chats(engine: Engine, ids: range) -> None:
    database = backend(engine.dialect)
    with writing(engine) as connection:
        time, _, json = database.encoders()
        extra = json('{"a":[1,"é"]}')
        rows = ((i, f"'{i}'\t\\", extra if i % 2 else None, time(NOON), time(NOON)) for i in ids)
        database.insert_rows(connection, chats, NAMES, rows)


@pytest.mark.parametrize("count", [0, 1, 3, 19, 999, 1_000, 1_001, 3_777])
def test_any_number_of_rows_is_inserted(engine: Engine, rows: Rows, count: int) -> None:
    """Each of them once, with its text and JSON; the other columns are null."""
    insert_chats(engine, range(count))
    assert rows(chats) == [
        row_of(
            chats,
            id=number,
            display_name=f"'{number}'\t\\",
            extra={"a": [1, "é"]} if number % 2 else None,
            first_seen_at=NOON,
            changed_at=NOON,
        )
        for number in range(count)
    ]


def test_stored_rows_are_found_by_id(engine: Engine) -> None:
    """Only those of the given ids, each once, with Python's values."""
    insert_chats(engine, range(10))
    database = backend(engine.dialect)
    names = ("id", "display_name", "is_group", "extra", "changed_at", "removed_at")
    with reading(engine) as connection:

        def find(*ids: int) -> list[Any]:
            given = database.id_table(ids)
            columns = (chats.c[name] for name in names)
            query = select(*columns).select_from(given.join(chats, chats.c.id == given.c.id))
            return sorted(database.fetch_rows(connection, query.where(chats.c.id != 8)))

        assert find(3, 99, -(2**63), 2**63 - 1, 8, 2) == [
            (2, "'2'\t\\", None, None, NOON, None),
            (3, "'3'\t\\", None, {"a": [1, "é"]}, NOON, None),
        ]
        assert find() == []


@only_mysql
def test_rows_that_the_server_cuts_off_are_read_one_by_one(engine: Engine) -> None:
    """Wherever it cuts the text of a column, which can leave a shorter list or another number."""
    insert_chats(engine, range(7, 10_007, 1_000))
    database = backend(engine.dialect)
    columns = select(chats.c.id, chats.c.changed_at)
    with reading(engine) as connection:
        for longest in range(4, 400, 5):  # Beyond that, the whole text fits.
            connection.exec_driver_sql(f"SET SESSION group_concat_max_len = {longest}")
            found = database.fetch_rows(connection, columns)
            assert sorted(found) == [(number, NOON) for number in range(7, 10_007, 1_000)]
    engine.dispose()


@pytest.mark.parametrize("count", [0, 1, 1_001])
def test_an_upsert_updates_and_inserts(engine: Engine, rows: Rows, count: int) -> None:
    """A row whose key exists is updated, except for the columns that are kept."""
    insert_chats(engine, range(0, count, 2))
    database = backend(engine.dialect)
    with writing(engine) as connection:
        time, _, json = database.encoders()
        later = time(minute(1))
        given = [(i, "new", json("[]"), later, later) for i in range(count)]
        database.upsert_rows(connection, chats, NAMES, given, kept=("first_seen_at",))
    assert [tuple(row[name] for name in NAMES) for row in rows(chats)] == [
        (i, "new", [], minute(1) if i % 2 else NOON, minute(1)) for i in range(count)
    ]


@pytest.mark.parametrize(("url", "driver"), [("mysql://u@127.0.0.1/db", "pymysql")])
def test_a_driver_that_is_not_installed(url: str, driver: str) -> None:
    """Exit code 2, and how to install it."""
    program = (
        "import sys\n"
        f"sys.modules[{driver!r}] = None\n"  # As if it were not there.
        "from etl.cli import main\n"
        "sys.argv = ['linq-etl', 'status']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"LINQ_ETL_DATABASE__URL": url, "LINQ_ETL_SYNC__PHONE_NUMBERS": A},
        capture_output=True,
        check=False,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        f"The driver {driver} is not installed. Run: pip install 'linq-etl[mysql]'" in done.stderr
    )
    assert "Traceback" not in done.stderr

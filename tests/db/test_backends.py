"""Many rows at once: inserted, updated, and read by id."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, Table, select

from etl.db.backends import backend
from etl.db.engine import reading, writing
from etl.db.tables import chats

Rows = Callable[[Table], list[dict[str, Any]]]

NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)
NAMES = ("id", "display_name", "extra", "first_seen_at", "changed_at")


def insert_chats(engine: Engine, ids: range) -> None:
    database = backend(engine.dialect)
    with writing(engine) as connection:
        time, json = database.encoders()
        extra = json('{"a":[1,"é"]}')
        rows = ((i, f"'{i}'\t\\", extra if i % 2 else None, time(NOON), time(NOON)) for i in ids)
        database.insert_rows(connection, chats, NAMES, rows)


@pytest.mark.parametrize("count", [0, 1, 3, 19, 999, 1_000, 1_001, 3_777])
def test_any_number_of_rows(engine: Engine, rows: Rows, count: int) -> None:
    """Each is there once, its text and JSON as they were given, the other columns null."""
    insert_chats(engine, range(count))
    blank = dict.fromkeys(name for name, _ in chats.columns.items() if name != "digest")
    assert rows(chats) == [
        {
            **blank,
            "id": number,
            "display_name": f"'{number}'\t\\",
            "extra": {"a": [1, "é"]} if number % 2 else None,
            "first_seen_at": NOON,
            "changed_at": NOON,
        }
        for number in range(count)
    ]


def test_stored_rows_are_found_by_id(engine: Engine) -> None:
    """Those of the ids that are stored, with Python's values, none twice, and no others."""
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


@pytest.mark.parametrize("count", [0, 1, 1_001])
def test_an_upsert_updates_and_inserts(engine: Engine, rows: Rows, count: int) -> None:
    """Rows whose key exists are updated, except for the columns that are kept."""
    insert_chats(engine, range(0, count, 2))
    database = backend(engine.dialect)
    later = NOON + timedelta(hours=1)
    with writing(engine) as connection:
        time, json = database.encoders()
        given = [(i, "new", json("[]"), time(later), time(later)) for i in range(count)]
        database.upsert_rows(connection, chats, NAMES, given, kept=("first_seen_at",))
    shown = ("id", "display_name", "extra", "first_seen_at", "changed_at")
    assert [tuple(row[name] for name in shown) for row in rows(chats)] == [
        (i, "new", [], later if i % 2 else NOON, later) for i in range(count)
    ]

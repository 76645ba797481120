"""Many rows at once, whatever their number, into a table and looked up in one."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Engine, Table, literal

from etl.db.bulk import encoders, insert_rows, lookup_by_id
from etl.db.engine import reading, writing
from etl.db.tables import chats

Rows = Callable[[Table], list[dict[str, Any]]]

NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)
NAMES = ("id", "display_name", "extra", "first_seen_at", "changed_at")


def insert_chats(engine: Engine, ids: range) -> None:
    with writing(engine) as connection:
        time, json = encoders(connection)
        extra = json('{"a":[1,"é"]}')
        rows = ((i, f"'{i}'\t\\", extra if i % 2 else None, time(NOON), time(NOON)) for i in ids)
        insert_rows(connection, chats, NAMES, rows)


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


def test_what_is_stored_of_some_ids(engine: Engine) -> None:
    """Those that are there, with their values, none of them twice, and none that was not asked."""
    insert_chats(engine, range(10))
    wanted = [3, 99, -(2**63), 2**63 - 1, 8, 3]
    with reading(engine) as connection:
        found = lookup_by_id(connection, wanted, chats.c.id, chats.c.id * 2, chats.c.id != 8)
        nothing = lookup_by_id(connection, [], chats.c.id, literal(1))
    assert (found, nothing) == ({3: 6}, {})

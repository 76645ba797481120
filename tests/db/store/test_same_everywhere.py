"""The same history leaves the same rows in each database, in every table and view."""

import random
import shutil
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select

from etl.api.models import ApiUsage
from etl.db import run_log
from etl.db.engine import open_engine, reading, writing
from etl.db.run_log import NumberOutcome
from etl.db.store.pages import store_pages
from etl.db.tables import data_dictionary, metadata, views
from tests.support.builders import (
    NOON,
    A,
    B,
    C,
    Row,
    chat,
    handle,
    load_numbers,
    observed_page,
    start_run,
)
from tests.support.marks import only_servers

DAY = timedelta(days=1)
# What differs between two databases by its nature: ids that are counted, times, the process.
UNEQUAL = {"owner", "started_at", "finished_at", "lease_expires_at"}
TEXTS = [
    None,
    "",
    *("ada", "Ada", "ada ", " ada", "adá", "ada\u0301", "\uff41da", "ß", "ss", "İ", "\u0131"),
    *("%s %(x)s %%", ":name :1", "\\", "\\'", "''", '"', "`", "-- x", "NULL", "true", "0001"),
    *("\x01\x02\x1b\x7f\x9f", "\t\r\n", "\ufeff", "\u2028", "\U0010fffe", "a\0b", "\ud83d"),
    *("👨\u200d👩\u200d👧", "😀" * 255, "\u202e中文", "{}", '{"a":1}', "x" * 5000),
]
VALUES: list[Any] = [
    *(None, True, 0, -1, 2**63, -(2**70), 1e16, 0.1, 5e-324, "", [], {}, [[]]),
    {"": "", "a": 1, "A": 2, "a ": 3, "b": [None, "\0", {"c": "\\"}]},
]
TIMES = [
    None,
    "0001-01-01T00:00:00Z",
    "1582-10-10T00:00:00.000001Z",
    "1969-12-31T23:59:59.999999Z",
    "2025-03-30T02:30:00+01:00",
    "9999-12-31T23:59:59.999999Z",
]


def records(choose: random.Random) -> list[Row]:
    """A page's chats, each as it may be at that moment."""
    ids = choose.sample([-(2**63), 2**63 - 1, *range(40)], 15)
    return [
        chat(
            chat_id,
            display_name=choose.choice(TEXTS),
            service=choose.choice(["SMS", "iMessage", None]),
            group=choose.choice([True, False, None]),
            message_count=choose.choice([None, 0, 2**50, choose.randrange(100)]),
            chat_handles=[
                handle(
                    handle_id,
                    phone_number=(choose.choice([*TEXTS, A, B]) or "")[:255] or None,
                    joined_at=choose.choice(TIMES),
                    mood=choose.choice(VALUES),
                )
                for handle_id in choose.sample(range(6), choose.randrange(4))
            ],
            **({"extra": choose.choice(VALUES)} if choose.random() < 0.5 else {}),
        )
        for chat_id in ids
    ]


def live_through(engine: Engine, seed: int) -> None:
    """Twelve runs in as many days; each reads pages of three numbers, and some end badly."""
    choose = random.Random(seed)
    for number in range(12):
        now = NOON + number * DAY
        run_id, _ = start_run(engine, A, B, C, now=now)
        for batch in range(3):
            at = now + timedelta(hours=batch)
            pages = [
                observed_page(*records(choose), phone_number=each, at=at)
                for each in choose.sample([A, B, C], 2)
            ]
            with writing(engine) as connection:
                store_pages(connection, pages, run_id=run_id, now=at)
        close(engine, run_id, now + timedelta(hours=5), choose)
        load_numbers(engine, A, B, at=NOON)


def close(engine: Engine, run_id: int, now: datetime, choose: random.Random) -> None:
    """Each number ends as it may: complete, failed, or busy."""
    for number in (A, B, C):
        outcome = NumberOutcome(
            number, "succeeded", ApiUsage(requests=3), choose.choice(["proved", "consistent"])
        )
        if choose.random() < 0.4:
            kind = choose.choice(["busy", "unavailable"])
            outcome = NumberOutcome(number, "failed", error_kind=kind, error_detail="100% \\'\"")
        with writing(engine) as connection:
            run_log.close_number(connection, run_id, outcome, now)
    with writing(engine) as connection:
        run_log.finish(connection, run_id, run_log.RunOutcome("succeeded"), now)


def everything(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table and view; numbers of one kind, and the order by their text."""
    found = {}
    for table in (*metadata.tables.values(), *views.tables.values()):
        if table is not data_dictionary:
            columns = [each for each in table.columns if each.name not in UNEQUAL]
            if table.name in {"chat_events", "rejected_records"}:
                columns.remove(table.c.id)
            with reading(engine) as connection:
                rows = [tuple(map(plain, row)) for row in connection.execute(select(*columns))]
            found[table.name] = sorted(rows, key=repr)
    return found


def plain(value: Any) -> Any:
    """A sum as an integer, and a float that a database may write in other words."""
    if isinstance(value, Decimal):
        return int(value)
    return int(value) if isinstance(value, bool) else value


@only_servers
def test_a_history_leaves_the_same_rows_as_in_sqlite(
    engine: Engine, migrated_file: Path, tmp_path: Path
) -> None:
    """Odd texts, values and times, runs that fail: all rows of all tables and views."""
    shutil.copy(migrated_file, tmp_path / "other.db")
    other = open_engine(f"sqlite:///{tmp_path / 'other.db'}")
    for each in (engine, other):
        live_through(each, seed=1)
    expected, found = everything(other), everything(engine)
    other.dispose()
    assert found.keys() == expected.keys()
    for name, rows in expected.items():
        assert found[name] == rows, name
    assert all(expected[name] for name in views.tables)

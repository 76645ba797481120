"""What many tests need: numbers, times, records as the API sends them, pages, table rows, runs.

Each builder makes a complete value; a test names only the fields it is about.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, Table, update

from etl.api.decode import decode_page
from etl.config import Config, PhoneNumber, load_config
from etl.db import leases, run_log
from etl.db.engine import writing
from etl.db.run_log import Claim
from etl.db.store.batch import ObservedPage
from etl.db.tables import (
    chat_events,
    chat_handles,
    chat_message_counts,
    chat_phone_numbers,
    chats,
    phone_numbers,
)

Row = dict[str, Any]
Rows = Callable[[Table], list[Row]]

A, B, C = "+13343284472", "+13125550100", "+13125550199"
NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)
JOINED = datetime(2025, 5, 21, 20, 30, tzinfo=UTC)


def second(number: int) -> datetime:
    """So many seconds past noon."""
    return NOON + timedelta(seconds=number)


def minute(number: int) -> datetime:
    """So many minutes past noon."""
    return NOON + timedelta(minutes=number)


# Records as the API sends them


def handle(handle_id: int = 11, /, **fields: Any) -> Row:
    return {
        "id": handle_id,
        "phone_number": f"+1312555{handle_id:04}",
        "service": "iMessage",
        "joined_at": "2025-05-21T15:30:00.000-05:00",
        **fields,
    }


def chat(chat_id: int = 1, /, **fields: Any) -> Row:
    """A chat with one participant."""
    return {
        "id": chat_id,
        "display_name": "Ada",
        "service": "iMessage",
        "group": False,
        "message_count": 1,
        "chat_handles": [handle()],
        **fields,
    }


def without(item: Row, *names: str) -> Row:
    return {name: value for name, value in item.items() if name not in names}


def observed_page(
    *records: Any,
    phone_number: str = A,
    at: datetime = NOON,
    page_number: int = 1,
    listed: bool = True,
) -> ObservedPage:
    """The last page of a number's list, with these records."""
    meta = {
        "page": page_number,
        "total_pages": page_number,
        "total_count": len(records),
        "per_page": 100,
    }
    body = json.dumps({"data": records, "meta": meta}).encode()
    return ObservedPage(phone_number, decode_page(body, page_number, at), listed)


# Rows as the `rows` fixture reads them


def row_of(table: Table, /, **fields: Any) -> Row:
    """A whole row; a column that is not named is null, or 0 where that is its default."""
    blank = {
        column.name: 0 if column.server_default else None
        for column in table.columns
        if column.name != "digest"
    }
    return {**blank, **fields}


def chat_row(chat_id: int = 1, /, **fields: Any) -> Row:
    """What `chat` leaves in an empty table at noon."""
    said = {"display_name": "Ada", "service": "iMessage", "is_group": False, "message_count": 1}
    times = {"first_seen_at": NOON, "changed_at": NOON}
    return row_of(chats, **{"id": chat_id, **said, **times, **fields})


def handle_row(chat_id: int = 1, handle_id: int = 11, /, **fields: Any) -> Row:
    """What `handle` leaves in an empty table at noon."""
    said = {
        "phone_number": f"+1312555{fields.get('id', handle_id):04}",
        "service": "iMessage",
        "joined_at": JOINED,
    }
    key = {"chat_id": chat_id, "id": handle_id}
    times = {"first_seen_at": NOON, "changed_at": NOON}
    return row_of(chat_handles, **{**key, **said, **times, **fields})


def link_row(phone_number: str = A, chat_id: int = 1, /, **fields: Any) -> Row:
    """A number that has listed a chat since noon."""
    key = {"phone_number": phone_number, "chat_id": chat_id}
    return row_of(chat_phone_numbers, **{**key, "first_seen_at": NOON, **fields})


def count_row(
    chat_id: int = 1,
    observed_at: datetime = NOON,
    message_count: int | None = 1,
    *,
    run_id: int = 1,
    gained: int | None = None,
    since: datetime | None = None,
) -> Row:
    """A count; with `since`, `gained` messages since then."""
    days = since and (observed_at.astimezone(UTC).date() - since.astimezone(UTC).date()).days + 1
    return row_of(
        chat_message_counts,
        chat_id=chat_id,
        observed_at=observed_at,
        message_count=message_count,
        run_id=run_id,
        gained=gained,
        gained_since=since,
        observed_on=observed_at.astimezone(UTC).date(),
        spread_days=days,
    )


def event_row(kind: str, old: str | None = None, new: str | None = None, /, **fields: Any) -> Row:
    """An event of chat 1, a minute past noon, without its id unless that is given."""
    happened = {"run_id": 1, "observed_at": minute(1), "chat_id": 1, "kind": kind}
    row = row_of(chat_events, **{**happened, "old_value": old, "new_value": new, **fields})
    return row if "id" in fields else without(row, "id")


# Configuration and runs


def config_with(**variables: object) -> Config:
    """A configuration without numbers; `variables` are LINQ_ETL_… ones, e.g. SYNC__MAX_PASSES=1."""
    environ = {f"LINQ_ETL_{name}": str(value) for name, value in variables.items()}
    environ["LINQ_INTEGRATION_TOKEN"] = "t"
    return load_config(environ=environ, needs_numbers=False)


def start_run(
    engine: Engine, *phone_numbers: str, command: str = "sync", now: datetime = NOON
) -> tuple[int, Claim]:
    """A run of this process that claims the numbers, with a lease of 60 seconds.

    The second run of a test needs another time: the same one is taken for a repetition.
    """
    with writing(engine) as connection:
        run_id = run_log.start(connection, command, now=now, lease_seconds=60)
        numbers = [PhoneNumber(number) for number in phone_numbers]
        return run_id, run_log.claim(connection, run_id, numbers, now)


def close_dead_runs(engine: Engine, now: datetime) -> list[int]:
    """Close the runs that are dead by then; return those that could be closed."""
    with writing(engine) as connection:
        dead = leases.dead_runs(connection, now)
        return [run_id for run_id in dead if run_log.abandon(connection, run_id, now)]


def load_numbers(engine: Engine, *numbers: str, at: datetime | None = NOON) -> None:
    """Let these numbers be loaded since then, so that changes of their chats are recorded."""
    loaded = update(phone_numbers).where(phone_numbers.c.phone_number.in_(numbers))
    with writing(engine) as connection:
        connection.execute(loaded.values(first_loaded_at=at))

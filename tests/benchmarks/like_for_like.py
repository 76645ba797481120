"""The program's work without the program: `URL PAGES` fetches, with a `DATABASE` it writes.

Fetching keeps as many requests in flight as the program. Writing puts the rows of a first load into
the program's own tables, in transactions of its size; the values are made before. Each runs in its
own process and prints the seconds, without the start of Python.
"""

import asyncio
import gc
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Final
from urllib.parse import urlencode

import httpx
import msgspec
from sqlalchemy import Engine

from etl.config import Api
from etl.db import schema
from etl.db.engine import open_engine
from etl.db.tables import metadata
from etl.sync.writer import BATCH
from tests.benchmarks.server import PER_PAGE, phone_number

_NUMBER: Final = phone_number(0)
# Longer lists of values gain nothing.
_SQLITE_ROWS: Final = 1000
_MYSQL_ROWS: Final = 500
# The columns that a first load fills.
_COLUMNS: Final = {
    "chats": (
        *("id", "display_name", "service", "is_group", "message_count"),
        *("first_seen_at", "changed_at", "digest"),
    ),
    "chat_handles": (
        *("chat_id", "id", "phone_number", "service", "joined_at"),
        *("first_seen_at", "changed_at"),
    ),
    "chat_message_counts": ("chat_id", "observed_at", "message_count", "run_id", "observed_on"),
    "chat_phone_numbers": ("phone_number", "chat_id", "first_seen_at"),
}
Row = tuple[Any, ...]
Rows = dict[str, list[Row]]  # one transaction's, by table


class Handle(msgspec.Struct, gc=False):
    id: int
    phone_number: str
    service: str
    joined_at: datetime


class Chat(msgspec.Struct, gc=False):
    id: int
    display_name: str
    service: str
    group: bool
    message_count: int
    chat_handles: tuple[Handle, ...]


class Page(msgspec.Struct):
    data: tuple[Chat, ...]


async def fetch(url: str, pages: int, take: Callable[[Page], None]) -> None:
    """Read every page of the first number's list."""
    decoder, remaining = msgspec.json.Decoder(Page), iter(range(1, pages + 1))
    endpoint = httpx.URL(f"{url}/api/partner/v2/chats")
    timeout = httpx.Timeout(Api().timeout_seconds).as_dict()

    async def read_in_turn() -> None:
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncHTTPTransport(verify=False, limits=limits) as transport:
            for page in remaining:
                query = {"phone_number": _NUMBER.strip("+"), "page": page, "per_page": PER_PAGE}
                target = endpoint.raw_path + f"?{urlencode(query)}".encode()
                request = httpx.Request(
                    "GET", endpoint.copy_with(raw_path=target), extensions={"timeout": timeout}
                )
                response = await transport.handle_async_request(request)
                take(decoder.decode(await response.aread()))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(Api().max_concurrency):
            tasks.create_task(read_in_turn())


def _transactions(pages: list[Page], time_value: Callable[[datetime], Any]) -> Iterator[Rows]:
    for start in range(0, len(pages), BATCH):
        rows: Rows = {table: [] for table in _COLUMNS}
        for page in pages[start : start + BATCH]:
            _add_rows(rows, page, time_value)
        yield rows


def _add_rows(rows: Rows, page: Page, time_value: Callable[[datetime], Any]) -> None:
    now = datetime.now(UTC)
    at, today = time_value(now), now.date() if time_value is not _time_text else str(now.date())
    for chat in page.data:
        texts, digest = (chat.display_name, chat.service), hash(chat.display_name)
        rows["chats"].append((chat.id, *texts, chat.group, chat.message_count, at, at, digest))
        rows["chat_handles"].extend(
            (chat.id, each.id, each.phone_number, each.service, time_value(each.joined_at), at, at)
            for each in chat.chat_handles
        )
        rows["chat_message_counts"].append((chat.id, at, chat.message_count, 1, today))
        rows["chat_phone_numbers"].append((_NUMBER, chat.id, at))


def _time_text(time: datetime) -> str:
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


def write_sqlite(engine: Engine, transactions: Iterable[Rows]) -> None:
    """Insert by lists of values, twice as fast as row by row."""
    with _connected(engine) as connection:
        for tables in transactions:
            connection.execute("BEGIN IMMEDIATE")
            for table, rows in tables.items():
                for start in range(0, len(rows), _SQLITE_ROWS):
                    some = rows[start : start + _SQLITE_ROWS]
                    connection.execute(_insert(table, len(some), "?"), [*chain.from_iterable(some)])
            connection.execute("COMMIT")


def write_mysql(engine: Engine, transactions: Iterable[Rows]) -> None:
    """Insert by lists of values, which PyMySQL writes into the statement."""
    with _connected(engine) as connection, connection.cursor() as cursor:
        for tables in transactions:
            for table, rows in tables.items():
                for start in range(0, len(rows), _MYSQL_ROWS):
                    some = rows[start : start + _MYSQL_ROWS]
                    cursor.execute(_insert(table, len(some), "%s"), [*chain.from_iterable(some)])
            connection.commit()


def _insert(table: str, rows: int, placeholder: str) -> str:
    columns = _COLUMNS[table]
    row = f"({', '.join([placeholder] * len(columns))})"
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([row] * rows)}"


def write_postgres(engine: Engine, transactions: Iterable[Rows]) -> None:
    """Insert by COPY in its binary format, the faster one."""
    types = {table: _types(engine, table) for table in _COLUMNS}
    with _connected(engine) as connection:
        for tables in transactions:
            with connection.transaction(), connection.cursor() as cursor:
                for table, rows in tables.items():
                    with cursor.copy(_copy(table)) as copy:
                        copy.set_types(types[table])
                        for row in rows:
                            copy.write_row(row)


@contextmanager
def _connected(engine: Engine) -> Iterator[Any]:
    """The driver's own connection, with the program's settings."""
    with closing(engine.raw_connection()) as connection:
        yield connection.driver_connection


def _copy(table: str) -> bytes:
    return f"COPY {table} ({', '.join(_COLUMNS[table])}) FROM STDIN (FORMAT BINARY)".encode()


def _types(engine: Engine, table: str) -> list[str]:
    columns = metadata.tables[table].c
    return [columns[name].type.compile(engine.dialect).lower() for name in _COLUMNS[table]]


_WRITERS: Final = {"mysql": write_mysql, "postgresql": write_postgres, "sqlite": write_sqlite}


def main(url: str, pages: int, database_url: str) -> float:
    """Return the seconds for fetching or, with a database, for writing what was fetched."""
    if not database_url:
        began = time.perf_counter()
        asyncio.run(fetch(url, pages, lambda _: None))
        return time.perf_counter() - began
    fetched: list[Page] = []
    asyncio.run(fetch(url, pages, fetched.append))
    engine = open_engine(database_url)
    schema.upgrade(engine)
    name = engine.dialect.name
    is_text = name != "postgresql"
    transactions = [*_transactions(fetched, _time_text if is_text else lambda time: time)]
    gc.freeze()  # otherwise each collection looks at all those values
    began = time.perf_counter()
    _WRITERS[name](engine, transactions)
    return time.perf_counter() - began


if __name__ == "__main__":
    print(main(sys.argv[1], int(sys.argv[2]), "".join(sys.argv[3:])))

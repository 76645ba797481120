"""The least possible time: `URL PAGES` measures fetching, with a `DATABASE` it measures writing.

Each runs in its own process and prints the seconds, without the start of Python.
"""

import sqlite3
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import msgspec
import psycopg

from tests.benchmarks.server import phone_number
from tests.support import mysql

# The columns of the program's tables that come from the API, their keys and the foreign key.
_TABLES = (
    "CREATE TABLE chats (id BIGINT PRIMARY KEY, display_name TEXT, service TEXT, "
    "is_group BOOLEAN, message_count BIGINT)",
    "CREATE TABLE chat_handles (chat_id BIGINT REFERENCES chats, id BIGINT, phone_number TEXT, "
    "service TEXT, joined_at {time}, PRIMARY KEY (chat_id, id)) {options}",
)
_PRAGMAS = ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON")


class Handle(msgspec.Struct):
    id: int
    phone_number: str
    service: str
    joined_at: str


class Chat(msgspec.Struct):
    id: int
    display_name: str
    service: str
    group: bool
    message_count: int
    chat_handles: list[Handle]


class Page(msgspec.Struct):
    data: list[Chat]


def fetch(url: str, pages: int) -> Iterator[Page]:
    """Read every page, one after another: without latency, concurrent requests gain nothing."""
    decoder = msgspec.json.Decoder(Page)
    params: dict[str, str | int] = {"phone_number": phone_number(0).strip("+"), "per_page": 100}
    with httpx.Client(base_url=f"{url}/api/partner/v2", trust_env=False) as client:
        for page in range(1, pages + 1):
            answer = client.get("/chats", params=params | {"page": page})
            yield decoder.decode(answer.content)


def _rows(pages: Iterator[Page]) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    chats = [chat for page in pages for chat in page.data]
    return (
        [(c.id, c.display_name, c.service, c.group, c.message_count) for c in chats],
        [
            (chat.id, handle.id, handle.phone_number, handle.service, handle.joined_at)
            for chat in chats
            for handle in chat.chat_handles
        ],
    )


def write_sqlite(path: str, chats: list[tuple[Any, ...]], handles: list[tuple[Any, ...]]) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        for pragma in _PRAGMAS:
            database.execute(f"PRAGMA {pragma}")
        for table in _TABLES:
            database.execute(table.format(time="TEXT", options="WITHOUT ROWID"))
        database.execute("BEGIN")
        database.executemany("INSERT INTO chats VALUES (?, ?, ?, ?, ?)", chats)
        database.executemany("INSERT INTO chat_handles VALUES (?, ?, ?, ?, ?)", handles)
        database.execute("COMMIT")


def write_postgres(url: str, chats: list[tuple[Any, ...]], handles: list[tuple[Any, ...]]) -> None:
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        for table in _TABLES:
            cursor.execute(table.format(time="TIMESTAMPTZ", options="").encode())
        for name, rows in ((b"chats", chats), (b"chat_handles", handles)):
            with cursor.copy(b"COPY %b FROM STDIN" % name) as copy:
                for row in rows:
                    copy.write_row(row)


def write_mysql(url: str, chats: list[tuple[Any, ...]], handles: list[tuple[Any, ...]]) -> None:
    with closing(mysql.connect(url)) as connection, connection.cursor() as cursor:
        for table in _TABLES:
            text = table.format(time="DATETIME(6)", options="").replace("TEXT", "VARCHAR(255)")
            cursor.execute(text.replace("REFERENCES chats", "REFERENCES chats (id)"))
        connection.begin()
        cursor.executemany("INSERT INTO chats VALUES (%s, %s, %s, %s, %s)", chats)
        cursor.executemany("INSERT INTO chat_handles VALUES (%s, %s, %s, %s, %s)", handles)
        connection.commit()


def main(url: str, pages: int, database_url: str) -> float:
    """Return the seconds for fetching or, with a database, for writing what was fetched."""
    began = time.perf_counter()
    if not database_url:
        deque(fetch(url, pages), maxlen=0)
        return time.perf_counter() - began
    rows = _rows(fetch(url, pages))
    began = time.perf_counter()
    if database_url.startswith("sqlite"):
        write_sqlite(database_url.removeprefix("sqlite:///"), *rows)
    elif database_url.startswith("mysql"):
        write_mysql(database_url, *rows)
    else:
        write_postgres(database_url, *rows)
    return time.perf_counter() - began


if __name__ == "__main__":
    print(main(sys.argv[1], int(sys.argv[2]), "".join(sys.argv[3:])))

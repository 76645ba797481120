"""One process from start to end, and what it did to the database."""

import os
import sqlite3
import subprocess
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psycopg

TIMEOUT = 1200.0  # seconds for one process
_DATA_TABLES = (
    "phone_numbers",
    "chats",
    "chat_handles",
    "chat_phone_numbers",
    "chat_message_counts",
    "chat_events",
)
_DATA_PAGES = (
    "SELECT pageno FROM dbstat JOIN sqlite_master USING (name) "
    f"WHERE tbl_name IN ({','.join('?' * len(_DATA_TABLES))})"
)


@dataclass(frozen=True, slots=True)
class Spent:
    """Wall-clock seconds and the process's largest resident set."""

    seconds: float
    peak_bytes: int
    stdout: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment in a PostgreSQL server: its WAL's end, and the next transaction's id."""

    lsn: str
    xid: int


class Failed(Exception):
    """A process that was measured did not do its work."""


def run(command: Sequence[str | Path], *, env: Mapping[str, str], folder: Path) -> Spent:
    """Run the command in `folder`, where its output goes too. Raises Failed."""
    output, errors = folder / "stdout", folder / "stderr"
    with output.open("w") as stdout, errors.open("w") as stderr:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, env=env, cwd=folder, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
        )
        timer = threading.Timer(TIMEOUT, process.kill)
        timer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            timer.cancel()
        seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise Failed(f"{command} ended with {process.returncode}: {errors.read_text()[-2000:]}")
    return Spent(seconds, usage.ru_maxrss * 1024, output.read_text())


# PostgreSQL


def settle(url: str) -> Mark:
    """Do now what autovacuum would do at some time during the next run, and mark the moment."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM (ANALYZE)")
        row = connection.execute(
            "SELECT pg_current_wal_insert_lsn()::text, "
            "pg_snapshot_xmax(pg_current_snapshot())::text::bigint & 4294967295"
        ).fetchone()
    assert row
    return Mark(*row)


def wal_since(url: str, mark: Mark) -> int:
    """Bytes of WAL that the whole server wrote; it should be idle otherwise."""
    with psycopg.connect(url, autocommit=True) as connection:
        query = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)::bigint"
        return int((connection.execute(query, [mark.lsn]).fetchone() or [0])[0])


def versions_since(url: str, mark: Mark) -> int:
    """Rows of the data tables that were written."""
    counts = "+".join(
        f"(SELECT count(*) FROM {table} WHERE xmin::text::bigint >= {mark.xid})"
        for table in _DATA_TABLES
    )
    with psycopg.connect(url, autocommit=True) as connection:
        return int((connection.execute(f"SELECT {counts}".encode()).fetchone() or [0])[0])


# SQLite


def data_pages(path: Path) -> dict[int, int] | None:
    """A checksum of each of the file's pages that hold data tables; None if SQLite cannot tell."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (size,) = database.execute("PRAGMA page_size").fetchone()
        try:
            numbers = sorted(number for (number,) in database.execute(_DATA_PAGES, _DATA_TABLES))
        except sqlite3.OperationalError:
            return None  # built without dbstat
    with path.open("rb") as file:
        return {number: _checksum(file.fileno(), number, size) for number in numbers}


def _checksum(file: int, number: int, size: int) -> int:
    return zlib.crc32(os.pread(file, size, (number - 1) * size))

"""Run one process and measure it, and what it wrote to the database."""

import os
import sqlite3
import subprocess
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

TIMEOUT = 1200.0  # seconds for one process
_DATA_TABLES = (
    *("phone_numbers", "chats", "chat_handles", "chat_phone_numbers"),
    *("chat_message_counts", "chat_events"),
)


class Spent(NamedTuple):
    """Wall-clock seconds, the largest resident set, and what was printed."""

    seconds: float
    peak_bytes: int
    stdout: str


class ProcessFailedError(Exception):
    """A measured process ended with an error."""


def run(command: Sequence[str | Path], *, env: Mapping[str, str], folder: Path) -> Spent:
    """Run the command in `folder`, where its output goes too. Raises ProcessFailedError."""
    output, errors = folder / "stdout", folder / "stderr"
    with output.open("w") as stdout, errors.open("w") as stderr:
        began = time.perf_counter()
        process = subprocess.Popen(command, env=env, cwd=folder, stdout=stdout, stderr=stderr)
        timer = threading.Timer(TIMEOUT, process.kill)
        timer.start()
        try:
            # Unlike Popen.wait, this reports the memory of this one process.
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()
        seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ProcessFailedError(
            f"{command} ended with {process.returncode}: {errors.read_text()[-2000:]}"
        )
    return Spent(seconds, usage.ru_maxrss * 1024, output.read_text())


# PostgreSQL


def settle(url: str) -> str:
    """Vacuum now, so that autovacuum does not during the next run; return the WAL's end."""
    _query(url, "VACUUM (ANALYZE)")
    return str(_query(url, "SELECT pg_current_wal_insert_lsn()"))


def wal_since(url: str, lsn: str) -> int:
    """Bytes of WAL that the whole server wrote since; it should be idle otherwise."""
    return int(_query(url, f"SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '{lsn}')"))


def next_transaction(url: str) -> int:
    """The next transaction's id in 32 bits, as xmin has it."""
    return int(_query(url, "SELECT pg_snapshot_xmax(pg_current_snapshot())")) & 0xFFFFFFFF


def versions_since(url: str, transaction: int) -> int:
    """Rows of the data tables that this transaction or a later one wrote."""
    since = f"WHERE xmin::text::bigint >= {transaction}"
    counts = (f"(SELECT count(*) FROM {table} {since})" for table in _DATA_TABLES)
    return int(_query(url, f"SELECT {'+'.join(counts)}"))


def _query(url: str, query: str) -> Any:
    """The first value of the first row, if there is one."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query.encode())
        return (cursor.fetchone() or [None])[0] if cursor.description else None


# SQLite


def data_pages(path: Path) -> dict[int, int] | None:
    """A checksum per page of the data tables and their indexes; None without SQLite's dbstat."""
    pages = (
        "SELECT pageno FROM dbstat JOIN sqlite_master USING (name) "
        f"WHERE tbl_name IN {_DATA_TABLES}"
    )
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (size,) = database.execute("PRAGMA page_size").fetchone()
        try:
            numbers = [number for (number,) in database.execute(pages)]
        except sqlite3.OperationalError:
            return None  # built without dbstat
    with path.open("rb") as file:
        offsets = ((number, (number - 1) * size) for number in numbers)
        return {n: zlib.crc32(os.pread(file.fileno(), size, offset)) for n, offset in offsets}

"""Which chats a walk has seen and which were known before it, for lists of any length.

Millions of Python integers would fill the memory, so they are kept in a private temporary SQLite
database, which spills to a file that nobody else can open and that is gone with the process.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing

_SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA cache_size = -4096;
CREATE TABLE seen (id INTEGER PRIMARY KEY, first_pass INTEGER, last_pass INTEGER);
CREATE TABLE known (id INTEGER PRIMARY KEY, missing INTEGER);
"""
_ADD = """
INSERT INTO seen SELECT value, :pass, :pass FROM json_each(:ids) WHERE true
ON CONFLICT (id) DO UPDATE SET last_pass = :pass WHERE last_pass < :pass
"""
_MISSING = """
SELECT id FROM known WHERE id NOT IN (SELECT id FROM seen) ORDER BY missing DESC, id LIMIT :limit
"""


class ChatIds:
    """Ids by the pass in which they were seen, passes counted from 1, and those known before."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.executescript(_SCHEMA)
        self.passes = 0

    def __enter__(self) -> "ChatIds":
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def begin_pass(self) -> None:
        """What is added from now on is seen in a new pass."""
        self.passes += 1

    def add(self, ids: Iterable[int]) -> int:
        """Mark as seen; return how many of them are seen for the first time in this pass."""
        given = {"pass": self.passes, "ids": json.dumps(list(ids))}
        return self._database.execute(_ADD, given).rowcount

    def know(self, ids: Iterable[int], *, missing: bool) -> None:
        """Note what was known before; `missing` are those that the walk before did not see."""
        self._database.execute(
            "INSERT OR IGNORE INTO known SELECT value, ? FROM json_each(?)",
            (missing, json.dumps(list(ids))),
        )

    def known_count(self) -> int:
        """How many were known before."""
        return self._count("SELECT count(*) FROM known")

    def missing_count(self) -> int:
        """How many were known before and not seen in any pass."""
        return self._count("SELECT count(*) FROM known WHERE id NOT IN (SELECT id FROM seen)")

    def missing_before(self) -> Iterator[int]:
        """Those that are missing now and were missing already."""
        query = "SELECT id FROM known WHERE missing AND id NOT IN (SELECT id FROM seen)"
        with closing(self._database.execute(query)) as rows:
            for (chat_id,) in rows:
                yield chat_id

    def settle(self, ids: Iterable[int]) -> None:
        """Forget known ids: what became of them has been found out."""
        self._database.execute(
            "DELETE FROM known WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps(list(ids)),),
        )

    def missing(self, limit: int = -1) -> Iterator[int]:
        """Those known before and not seen, first those that were missing already."""
        with closing(self._database.execute(_MISSING, {"limit": limit})) as rows:
            for (chat_id,) in rows:
                yield chat_id

    def seen_before_and_since(self, first_pass: int) -> int:
        """How many were seen both before that pass and in it or later."""
        return self._count(
            "SELECT count(*) FROM seen WHERE first_pass < ? AND last_pass >= ?",
            first_pass,
            first_pass,
        )

    def seen_last_time_and_now(self) -> int:
        """How many the walk before had seen, as far as is known, and this one has seen too."""
        return self._count("SELECT count(*) FROM known JOIN seen USING (id) WHERE NOT missing")

    def _count(self, query: str, *parameters: int) -> int:
        count: int = self._database.execute(query, parameters).fetchone()[0]
        return count

"""The ids of chats that a walk has seen or that were known before it, for lists of any length.

Millions of Python integers take too much memory. A private temporary SQLite database holds the ids
instead: it spills to a file that no other process can open and that is deleted with this one.
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
_ADD_SEEN = """
INSERT INTO seen SELECT value, :pass, :pass FROM json_each(:ids) WHERE true
ON CONFLICT (id) DO UPDATE SET last_pass = :pass WHERE last_pass < :pass
"""
_MISSING = """
SELECT id FROM known WHERE id NOT IN (SELECT id FROM seen) ORDER BY missing DESC, id LIMIT :limit
"""


class ChatIds:
    """Chat ids known before a walk, and chat ids seen in each of its passes, counted from 1."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.executescript(_SCHEMA)
        self.passes = 0

    def __enter__(self) -> "ChatIds":
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def begin_pass(self) -> None:
        """Start the next pass: ids added from now on count as seen in it."""
        self.passes += 1

    def add_seen(self, ids: Iterable[int]) -> int:
        """Mark ids as seen; return how many are seen for the first time in this pass."""
        given = {"pass": self.passes, "ids": json.dumps(list(ids))}
        return self._database.execute(_ADD_SEEN, given).rowcount

    def add_known(self, ids: Iterable[int], *, missing: bool) -> None:
        """Add ids known before the walk; `missing` if the previous walk did not see them."""
        self._database.execute(
            "INSERT OR IGNORE INTO known SELECT value, ? FROM json_each(?)",
            (missing, json.dumps(list(ids))),
        )

    def forget(self, ids: Iterable[int]) -> None:
        """Drop known ids that have been dealt with."""
        self._database.execute(
            "DELETE FROM known WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps(list(ids)),),
        )

    def missing(self, limit: int = -1) -> Iterator[int]:
        """Ids known and not seen in any pass; those also missing in the previous walk first."""
        with closing(self._database.execute(_MISSING, {"limit": limit})) as rows:
            for (chat_id,) in rows:
                yield chat_id

    def missing_twice(self) -> Iterator[int]:
        """Ids missing in this walk and in the previous one."""
        query = "SELECT id FROM known WHERE missing AND id NOT IN (SELECT id FROM seen)"
        with closing(self._database.execute(query)) as rows:
            for (chat_id,) in rows:
                yield chat_id

    def count_known(self) -> int:
        return self._count("SELECT count(*) FROM known")

    def count_missing(self) -> int:
        """Count the ids known and not seen in any pass."""
        return self._count("SELECT count(*) FROM known WHERE id NOT IN (SELECT id FROM seen)")

    def count_seen_before_and_since(self, first_pass: int) -> int:
        """Count the ids seen both before that pass and in it or a later one."""
        return self._count(
            "SELECT count(*) FROM seen WHERE first_pass < ? AND last_pass >= ?",
            first_pass,
            first_pass,
        )

    def count_seen_in_both_walks(self) -> int:
        """Count the ids seen in the previous walk, as far as is known, and in this one."""
        return self._count("SELECT count(*) FROM known JOIN seen USING (id) WHERE NOT missing")

    def _count(self, query: str, *parameters: int) -> int:
        count: int = self._database.execute(query, parameters).fetchone()[0]
        return count

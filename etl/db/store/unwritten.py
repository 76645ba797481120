"""What a dry run would have written so far, for lists of any length.

As in the walk's `ChatIds`, a private temporary SQLite database spills it to a file of its own.
"""

import json
import sqlite3
from collections.abc import Iterable

from etl.db.store.batch import ObservedPage

_SCHEMA = """
PRAGMA cache_size = -4096;
CREATE TABLE changed (chat_id INTEGER PRIMARY KEY);
CREATE TABLE removed (chat_id INTEGER PRIMARY KEY);
CREATE TABLE memberships (
    chat_id INTEGER, phone_number TEXT, is_listed INTEGER, PRIMARY KEY (chat_id, phone_number)
) WITHOUT ROWID;
CREATE TABLE rejected (
    digest INTEGER, phone_number TEXT, PRIMARY KEY (digest, phone_number)
) WITHOUT ROWID;
"""
_SET_LISTED = """
INSERT INTO memberships SELECT value, ?, ? FROM json_each(?) WHERE true
ON CONFLICT DO UPDATE SET is_listed = excluded.is_listed
"""


class Unwritten:
    """Chats that are counted as changed or removed, memberships gained or lost, rejected records.

    What a batch adds is kept by `keep`, or dropped by `discard` if the batch is read again.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", check_same_thread=False)
        self._database.executescript(_SCHEMA)

    def __enter__(self) -> "Unwritten":
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def keep(self) -> None:
        """Keep what was added since the last `keep`."""
        self._database.commit()

    def discard(self) -> None:
        """Drop what was added since the last `keep`."""
        self._database.rollback()

    def add_changed(self, chat_ids: Iterable[int]) -> None:
        """Note chats that are counted as new or changed."""
        query = "INSERT OR IGNORE INTO changed SELECT value FROM json_each(?)"
        self._database.execute(query, (_json(chat_ids),))

    def changed(self, chat_ids: Iterable[int]) -> set[int]:
        """Those of the chats that are counted as new or changed."""
        query = "SELECT chat_id FROM changed JOIN json_each(?) ON chat_id = value"
        return {row[0] for row in self._database.execute(query, (_json(chat_ids),))}

    def add_removed(self, chat_ids: Iterable[int]) -> int:
        """Note chats that are removed; return how many are counted for the first time."""
        query = "INSERT OR IGNORE INTO removed SELECT value FROM json_each(?)"
        return self._database.execute(query, (_json(chat_ids),)).rowcount

    def set_listed(self, phone_number: str, chat_ids: Iterable[int], *, is_listed: bool) -> None:
        """Note that the number would list the chats from now on, or would not."""
        self._database.execute(_SET_LISTED, (phone_number, is_listed, _json(chat_ids)))

    def memberships(self, chat_ids: Iterable[int]) -> dict[tuple[str, int], bool]:
        """By number and chat, for what would be other than it is: whether the number lists it."""
        query = (
            "SELECT phone_number, chat_id, is_listed "
            "FROM memberships JOIN json_each(?) ON chat_id = value"
        )
        rows = self._database.execute(query, (_json(chat_ids),))
        return {(row[0], row[1]): bool(row[2]) for row in rows}

    def add_rejected(self, page: ObservedPage) -> int:
        """Note the page's rejected records; return how many are new for its number."""
        digests = _json(each.digest for each in page.page.rejected)
        query = "INSERT OR IGNORE INTO rejected SELECT value, ? FROM json_each(?)"
        return self._database.execute(query, (page.phone_number, digests)).rowcount


def _json(values: Iterable[int]) -> str:
    return json.dumps([*values])

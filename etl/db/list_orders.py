"""What is known of the order of each number's list: one row a number, and one a full walk.

Written by the run that holds the number, in the transaction that closes it. Only an alarm is noted
before: it has to outlive a run that does not get so far.
"""

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, delete, insert, select, update

from etl.db.chunks import chunks
from etl.db.tables import (
    CHANGE_KINDS,
    ChangeKind,
    ListOrder,
    chat_message_counts,
    chat_phone_numbers,
    list_orders,
    list_walks,
    quick_recall,
)

_CHUNK: Final = 500  # numbers that one statement names


@dataclass(frozen=True, slots=True)
class Found:
    """Changed chats: those that the rule of quick readings finds, and the others."""

    hits: int = 0
    misses: int = 0

    def __add__(self, other: "Found") -> "Found":
        return Found(self.hits + other.hits, self.misses + other.misses)


FoundByKind = Mapping[ChangeKind, Found]


@dataclass(frozen=True, slots=True)
class Reading:
    """How a list was read: in full, or by a quick reading, which a budget may have ended.

    Of the `pairs` of neighbours, `ascending` have the higher id second. `page_reads` are seconds
    since 1970 by page, where only some pages were read.
    """

    is_full: bool
    began_at: datetime
    ended_at: datetime
    head_read_at: datetime
    pages: int
    per_page: int
    total_count: int | None
    pairs: int
    ascending: int
    page_reads: Mapping[int, int] | None = None


@dataclass(frozen=True, slots=True)
class KnownList:
    """A row of `list_orders`. `page_reads` has seconds since 1970, None for a page not read."""

    phone_number: str
    list_order: ListOrder
    quick_off: str | None
    fresh_as_of: datetime | None
    walk_run_id: int
    walked_at: datetime
    total_count: int | None
    per_page: int
    head_read_at: datetime
    quick_run_id: int | None = None
    quick_runs: int = 0
    partial_runs: int = 0
    caught: FoundByKind = field(default_factory=dict)
    page_reads: Sequence[int | None] = ()

    @property
    def pages(self) -> int:
        """Pages of the list, at least one."""
        return max(math.ceil((self.total_count or 0) / self.per_page), 1)


@dataclass(frozen=True, slots=True)
class Walk:
    """A row of `list_walks`."""

    run_id: int
    pages: int
    total_count: int | None
    pairs: int
    ascending: int
    changed: int
    deepest_changed: int | None
    deepest_new: int | None
    shares: Sequence[int]
    found: FoundByKind


@dataclass(frozen=True, slots=True)
class Recall:
    """A row of `quick_recall`, without its key."""

    found: Found
    lower_bound: float


def known_lists(connection: Connection, numbers: Collection[str]) -> dict[str, KnownList]:
    """By number; one without a full walk is missing."""
    found = {}
    for some in chunks(sorted(numbers), _CHUNK):
        rows = connection.execute(select(list_orders).where(list_orders.c.phone_number.in_(some)))
        for row in rows.mappings():
            values: dict[str, Any] = dict(row)
            caught = {kind: Found(*counts) for kind, counts in values.pop("caught").items()}
            found[values["phone_number"]] = KnownList(caught=caught, **values)
    return found


def write_list(connection: Connection, known: KnownList) -> None:
    """Store the row in the place of the one before."""
    values = {name: getattr(known, name) for name in KnownList.__dataclass_fields__} | {
        "caught": json.dumps({kind: (f.hits, f.misses) for kind, f in known.caught.items()}),
        "page_reads": json.dumps([*known.page_reads]),
    }
    mine = list_orders.c.phone_number == known.phone_number
    if not connection.execute(update(list_orders).where(mine).values(values)).rowcount:
        connection.execute(insert(list_orders), values)


def turn_off(connection: Connection, phone_number: str, why: str) -> None:
    """Turn quick readings of the number off until its next full walk."""
    mine = list_orders.c.phone_number == phone_number
    connection.execute(update(list_orders).where(mine).values(quick_off=why))


def last_walks(connection: Connection, phone_number: str) -> list[Walk]:
    """The number's walks, the newest first."""
    mine = select(list_walks).where(list_walks.c.phone_number == phone_number)
    rows = connection.execute(mine.order_by(list_walks.c.run_id.desc())).mappings()
    return [_walk_of(dict(row)) for row in rows]


def _walk_of(row: Mapping[str, Any]) -> Walk:
    names = [name for name in Walk.__dataclass_fields__ if name != "found"]
    found = {kind: Found(row[f"{kind}_hits"], row[f"{kind}_misses"]) for kind in CHANGE_KINDS}
    return Walk(**{name: row[name] for name in names}, found=found)


def add_walk(connection: Connection, phone_number: str, walk: Walk) -> None:
    """Store the walk of a run."""
    row = {name: getattr(walk, name) for name in Walk.__dataclass_fields__ if name != "found"}
    for kind in CHANGE_KINDS:
        counts = walk.found.get(kind, Found())
        row |= {f"{kind}_hits": counts.hits, f"{kind}_misses": counts.misses}
    row |= {"phone_number": phone_number, "shares": json.dumps([*walk.shares])}
    connection.execute(insert(list_walks), row)


def drop_walks_before(connection: Connection, phone_number: str, run_id: int) -> None:
    """Delete the number's walks in runs before that one."""
    mine = list_walks.c.phone_number == phone_number
    connection.execute(delete(list_walks).where(mine, list_walks.c.run_id < run_id))


def publish(
    connection: Connection, run_id: int, phone_number: str, recalls: Mapping[ChangeKind, Recall]
) -> None:
    """Enter in the run log how much quick readings find of the number's changes."""
    key = {"run_id": run_id, "phone_number": phone_number}
    rows = [
        {
            **key,
            "kind": kind,
            "hits": recall.found.hits,
            "misses": recall.found.misses,
            "lower_bound": recall.lower_bound,
        }
        for kind, recall in recalls.items()
    ]
    connection.execute(insert(quick_recall), rows)


def listed_ids(connection: Connection, phone_number: str) -> list[int]:
    """The chats that the number lists, ascending."""
    links = chat_phone_numbers.c
    mine = select(links.chat_id).where(
        links.phone_number == phone_number, links.removed_at.is_(None)
    )
    return sorted(connection.execute(mine).scalars())


def gains_since(
    connection: Connection, phone_number: str, since: datetime
) -> Iterator[tuple[int, datetime, int]]:
    """The messages that the number's chats gained since then: chat, time, how many."""
    links, counts = chat_phone_numbers.c, chat_message_counts.c
    changes = (
        select(counts.chat_id, counts.observed_at, counts.gained)
        .join(chat_phone_numbers, links.chat_id == counts.chat_id)
        .where(links.phone_number == phone_number, links.removed_at.is_(None))
        .where(counts.observed_on >= since.date(), counts.observed_at >= since)
        .where(counts.gained > 0)
    )
    for row in connection.execute(changes):
        yield row.chat_id, row.observed_at, row.gained

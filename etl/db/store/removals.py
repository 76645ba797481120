"""Which chats a number's list should hold, and what became of those that a walk did not see."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, exists, select, update

from etl.db.store.history import record_removals
from etl.db.tables import chat_phone_numbers, chats

CHUNK = 5000  # ids in one statement


@dataclass(frozen=True, slots=True)
class Removals:
    """What became of the chats that a walk of the number's list did not see.

    `gone`: the API says that there is no such chat. `left`: it exists and is not in this list any
    more. `missing`: neither is known.
    """

    phone_number: str
    gone: tuple[int, ...]
    left: tuple[int, ...]
    missing: tuple[int, ...]
    observed_at: datetime


def known_chats(connection: Connection, phone_number: str) -> Iterator[tuple[bool, list[int]]]:
    """The chats of the number's list, in lots: whether the last walk missed them, and their ids."""
    links = chat_phone_numbers
    for missing in (False, True):
        ids = select(links.c.chat_id).where(
            links.c.phone_number == phone_number,
            links.c.removed_at.is_(None),
            links.c.missing_since.is_not(None) if missing else links.c.missing_since.is_(None),
        )
        for lot in (
            connection.execution_options(yield_per=CHUNK).execute(ids).scalars().partitions()
        ):
            yield missing, list(lot)


def store_removals(connection: Connection, absence: Removals, *, run_id: int) -> int:
    """Mark what is gone from the number's list; return how many chats are gone altogether.

    A chat that another number still lists is not: there the same question will be asked.
    """
    links, at = chat_phone_numbers, absence.observed_at
    removed = 0
    for chat_ids in _chunks(absence.missing):
        unmarked = links.c.missing_since.is_(None)
        _mark(connection, absence, chat_ids, unmarked, {"missing_since": at})
    for chat_ids in _chunks((*absence.left, *absence.gone)):
        present = links.c.removed_at.is_(None)
        _mark(connection, absence, chat_ids, present, {"removed_at": at, "missing_since": None})
    for chat_ids in _chunks(absence.gone):
        listed = exists().where(links.c.chat_id == chats.c.id, links.c.removed_at.is_(None))
        gone = update(chats).where(chats.c.id.in_(chat_ids), chats.c.removed_at.is_(None), ~listed)
        ids = connection.execute(gone.values(removed_at=at, changed_at=at).returning(chats.c.id))
        if dead := sorted(ids.scalars()):
            record_removals(connection, dead, run_id, at)
            removed += len(dead)
    return removed


def _mark(
    connection: Connection,
    absence: Removals,
    chat_ids: Sequence[int],
    condition: ColumnElement[bool],
    values: dict[str, datetime | None],
) -> None:
    links = chat_phone_numbers
    mine = and_(links.c.phone_number == absence.phone_number, links.c.chat_id.in_(chat_ids))
    connection.execute(update(links).where(mine, condition).values(values))


def _chunks(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK))

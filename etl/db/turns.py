"""Whose turn it is if the requests of a run do not suffice for all of its phone numbers."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, ScalarSelect, and_, func, not_, or_, select

from etl.db.chunks import chunks
from etl.db.run_log import BUDGET_REASON, TOO_LONG_REASON
from etl.db.tables import phone_numbers, sync_run_numbers

_CHUNK: Final = 500  # numbers that one statement names
_entry = sync_run_numbers.c


@dataclass(frozen=True, slots=True)
class Turn:
    """The last run in which the number had its turn, 0 if none, and the last count of its list."""

    run_id: int = 0
    total_count: int | None = None


def last_turns(connection: Connection, numbers: Collection[str]) -> dict[str, Turn]:
    """By number; one that was never read is missing.

    A number had its turn if requests were made for it and the budget did not end the reading, or if
    no budget of that size could suffice. Two probes of an index for each number.
    """
    found: dict[str, Turn] = {}
    total = _newest(_entry.total_count, _entry.total_count.is_not(None))
    for some in chunks(sorted(numbers), _CHUNK):
        named = phone_numbers.c.phone_number.in_(some)
        turns = select(phone_numbers.c.phone_number, _newest(_entry.run_id, _had_turn()), total)
        for phone_number, run_id, count in connection.execute(turns.where(named)):
            found[phone_number] = Turn(run_id or 0, count)
    return found


def _had_turn() -> ColumnElement[bool]:
    reason = func.coalesce(_entry.reason, "")
    is_cut = and_(
        _entry.completeness.is_(None),
        reason.like(f"{BUDGET_REASON}%"),
        reason.not_like(f"{TOO_LONG_REASON}%"),
    )
    return and_(_entry.requests > 0, or_(_entry.status == "failed", not_(is_cut)))


def _newest(column: ColumnElement[Any], condition: ColumnElement[bool]) -> ScalarSelect[Any]:
    """The column in the number's newest entry of that kind."""
    mine = _entry.phone_number == phone_numbers.c.phone_number
    newest = select(column).where(mine, condition).order_by(_entry.run_id.desc()).limit(1)
    return newest.correlate(phone_numbers).scalar_subquery()

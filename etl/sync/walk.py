"""Read one number's list, which may change while it is read, and judge whether it is complete.

No HTTP and no database. The list is paged by number, in an unknown order, and may change between
any two requests. A pass reads the first page and the last, all others in order, then the last and
the first again: whatever the list is sorted by, chats that were added or moved meanwhile appear at
one of its ends. A pass is consistent if that brought no new id, every response reported the same
total, and that many distinct ids were seen. A change then goes unnoticed only if one chat was
deleted and another created between the same two requests. Otherwise the head is read again until
no unseen chat can be left there, and the list is walked once more, a few times at most.

The first pass keeps several pages in flight. The last pass, or an earlier one if the list changed
a lot, reads one page at a time, which allows a finer repair. It tracks the frontier: how many rows,
counted from the head, have been read for certain. If the total shrinks by n, up to n unread rows
may have slid across the frontier; it moves back by n, and the page it now lies in is read next.

The API's counts are evidence, not orders: `BoundedFetch` limits the requests, and a list that only
repeats itself, stays empty or grows beyond reason is not read on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from etl.sync.budget import BoundedFetch, BudgetSpentError, StopReadingError
from etl.sync.passes import Deliver, Pass
from etl.sync.seen import ChatIds


@dataclass(frozen=True, slots=True)
class Verdict:
    """How completely the list was read, and the evidence.

    `completeness` is None if the run's budget ended the walk before the list did. `stopped` says
    what did so; None if a pass reached the list's end. `reason` says why it is unproved. The totals
    are the first and the last that the API reported, None if it reported none. `distinct` counts
    the ids of the last whole pass; `duplicates` and `shrinkages` (responses with a smaller total
    than the one before) add up over all passes.
    """

    completeness: Literal["consistent", "unproved"] | None
    reason: str | None
    passes: int
    first_total: int | None
    total_count: int | None
    distinct: int
    duplicates: int
    shrinkages: int
    stopped: Literal["budget", "endless"] | None = None


@dataclass(frozen=True, slots=True)
class RangeRead:
    """The last page read of a range, 0 if there is none, and what ended it before its end."""

    last_page: int
    total_count: int | None
    stopped: str | None


async def walk(fetch: BoundedFetch, deliver: Deliver, ids: ChatIds, *, width: int) -> Verdict:
    """Read the list until a pass is consistent, at most `fetch.max_passes` times.

    `deliver` gets every page read, and may slow the walk down. `ids` collects the ids of all
    passes. `width` bounds the pages in flight. Raises ApiUnavailableError if every page is the
    first one again.
    """
    passes: list[Pass] = []
    stop: StopReadingError | None = None
    while not stop and (not passes or _is_worth_another(passes, fetch)):
        concurrent = not passes or (passes[-1].is_stable and len(passes) + 1 < fetch.max_passes)
        passes.append(Pass(fetch, deliver, ids))
        try:
            await passes[-1].run(width if concurrent else 1)
        except StopReadingError as error:
            stop = error
        fetch.count_pages(passes[-1].last_page)
    return _verdict(passes, stop)


def _is_worth_another(passes: Sequence[Pass], fetch: BoundedFetch) -> bool:
    last = passes[-1]
    return len(passes) < fetch.max_passes and not last.consistent and fetch.left > last.last_page


def _verdict(passes: Sequence[Pass], stop: StopReadingError | None) -> Verdict:
    whole = [each for each in passes if each.read_to_end]
    last = (whole or passes)[-1]
    spent = isinstance(stop, BudgetSpentError)
    unproved: Literal["unproved"] | None = "unproved" if whole or not spent else None
    reason = str(stop) if stop and (spent or not whole) else last.reason
    return Verdict(
        completeness="consistent" if last.consistent else unproved,
        reason=None if last.consistent else reason,
        passes=len(passes),
        first_total=passes[0].first_total,
        total_count=passes[-1].total,
        distinct=last.distinct,
        duplicates=sum(each.duplicates for each in passes),
        shrinkages=sum(each.shrinkages for each in passes),
        stopped="budget" if spent else None if whole else "endless",
    )


async def read_range(
    fetch: BoundedFetch, deliver: Deliver, *, first: int, last: int | None, width: int
) -> RangeRead:
    """Read a range of pages, to the list's end if `last` is None.

    This proves nothing about completeness: the list may have moved.
    """
    with ChatIds() as ids:
        reading, stopped = Pass(fetch, deliver, ids), None
        try:
            await reading.run_range(first, last, width)
        except StopReadingError as stop:
            stopped = str(stop)
    return RangeRead(reading.page_number, reading.total, stopped)

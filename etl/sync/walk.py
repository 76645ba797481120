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
"""

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

from etl.api.models import Page
from etl.errors import ApiUnavailableError
from etl.sync.seen import ChatIds

Fetch = Callable[[int], Awaitable[Page]]
Deliver = Callable[[Page], Awaitable[None]]

# More pages in a row without a new id mean a broken API, not a moving list.
MAX_PAGES_WITHOUT_NEW_IDS = 100
# Bounds how often one page behind a gap is read again while the list keeps shrinking there.
MAX_REREADS = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """How completely the list was read, and the evidence.

    `reason` says why it is unproved. The totals are the first and the last that the API reported,
    None if it reported none. `distinct` counts the ids of the last pass; `duplicates` and
    `shrinkages` (responses with a smaller total than the one before) add up over all passes.
    """

    completeness: Literal["consistent", "unproved"]
    reason: str | None
    passes: int
    first_total: int | None
    total_count: int | None
    distinct: int
    duplicates: int
    shrinkages: int


async def walk(
    fetch: Fetch, deliver: Deliver, ids: ChatIds, *, width: int, max_passes: int
) -> Verdict:
    """Read the list until a pass is consistent, at most `max_passes` times.

    `fetch` reads one page, counted from 1. `deliver` gets every page read, and may slow the walk
    down. `ids` collects the ids of all passes. `width` bounds the pages in flight.
    """
    passes: list[_Pass] = []
    while not passes or (len(passes) < max_passes and not passes[-1].consistent):
        concurrent = not passes or (passes[-1].is_stable and len(passes) + 1 < max_passes)
        passes.append(_Pass(fetch, deliver, ids))
        await passes[-1].run(width if concurrent else 1)
    first, last = passes[0], passes[-1]
    return Verdict(
        completeness="consistent" if last.consistent else "unproved",
        reason=None if last.consistent else last.reason,
        passes=len(passes),
        first_total=first.first_total,
        total_count=last.total,
        distinct=last.distinct,
        duplicates=sum(each.duplicates for each in passes),
        shrinkages=sum(each.shrinkages for each in passes),
    )


async def read_range(
    fetch: Fetch, deliver: Deliver, *, first: int, last: int | None, width: int
) -> Page:
    """Read a range of pages, to the list's end if `last` is None; return the last page read.

    This proves nothing about completeness: the list may have moved.
    """
    page = await fetch(first)
    await deliver(page)

    def end() -> int:
        known = page.last_page or page.page_number + bool(page.ids)
        return known if last is None else min(known, last)

    async with aclosing(_prefetch(fetch, first + 1, end, width)) as pages:
        async for page in pages:  # `end` reads this variable: the newest page knows the last one
            await deliver(page)
    return page


class _Pass:
    """One reading of the whole list, and the evidence gathered so far."""

    def __init__(self, fetch: Fetch, deliver: Deliver, ids: ChatIds) -> None:
        self._fetch = fetch
        self._deliver = deliver
        self._ids = ids
        self.consistent = False
        self.distinct = 0
        self.first_total: int | None = None
        self.total: int | None = None
        self.duplicates = 0
        self.shrinkages = 0
        self._moves = 0  # signs of a moving list: new ids at its ends, and shrinkages
        self._can_be_consistent = True
        self._per_page = 0
        self._reported_per_page = 0
        self._last_page = 1
        self._requests = 0
        self._page_ids: list[int] = []  # of the page read last
        self._new_ids = 0  # on that page
        self._shrunk_by = 0  # with that page's total
        self._furthest_page = 0
        self._pages_without_new_ids = 0  # in a row, on the way there

    @property
    def is_stable(self) -> bool:
        return 20 * self._moves <= self._requests

    @property
    def reason(self) -> str:
        """Why the pass is not consistent."""
        if self.total is None:
            return "the API did not report how long the list is"
        if self.first_total != self.total:
            return f"the list went from {self.first_total} to {self.total} while it was read"
        if self.distinct == self.total:
            return "the list moved while it was read"
        return f"{self.distinct} distinct chats were seen, but the API reports {self.total}"

    async def run(self, width: int) -> None:
        self._ids.begin_pass()
        await self._read(1)
        if self._last_page == 1:
            # One response held the whole list, so nothing can have changed between two.
            self.consistent = self._all_seen()
            return
        await self._read_pages(width)
        await self._read(1)
        self._moves += self._new_ids
        # If pages are read one after another, chats that moved meanwhile are found at the head.
        # With several in flight that is not certain: a later page may be answered first.
        unmoved = self._moves == 0 or (
            width == 1 and self._moves == self._new_ids and await self._head_is_unchanged()
        )
        self.consistent = unmoved and self._all_seen()
        if not self.consistent:
            await self._read_head_again()

    def _all_seen(self) -> bool:
        return self._can_be_consistent and self.total is not None and self.distinct == self.total

    async def _read_pages(self, width: int) -> None:
        """Read the second page to the last, and the last also before the others."""
        read_tail_twice = self._last_page > 2
        # Only in a list longer than `width` is the first reading of the tail sure to be over before
        # the second one starts, so only there may it be in flight with the other pages.
        prefetch_tail = self._last_page > width > 1
        if read_tail_twice and not prefetch_tail:
            await self._read(self._last_page)
        if width > 1:
            await self._read_concurrently(width, tail_first=prefetch_tail)
        else:
            await self._read_from(self._per_page, max_requests=lambda: 6 * self._last_page + 16)
        # In a list of two pages, whatever moves goes to the first page, which is read again anyway.
        self._moves += self._new_ids if read_tail_twice else 0

    async def _head_is_unchanged(self) -> bool:
        """Read the head once more and compare it with the reading just before."""
        before = self._page_ids
        await self._read(1)
        return self._page_ids == before

    async def _read_concurrently(self, width: int, *, tail_first: bool) -> None:
        leading = (self._last_page,) if tail_first else ()
        pages = _prefetch(self._fetch, 2, lambda: self._last_page, width, leading=leading)
        async with aclosing(pages):
            async for page in pages:
                await self._process(page)

    async def _read_from(
        self, first_row: int, *, max_requests: Callable[[], int], min_pages: int | None = None
    ) -> None:
        """Read in order from the page that holds this row, counted from 0, to the list's end.

        Gives up once the pass has made `max_requests`. With `min_pages` it stops after so many
        pages, or later at the first page without a new id.
        """
        frontier = _Frontier(first_row, self._per_page)
        while self._requests < max_requests():
            number = frontier.next_page
            deep_enough = min_pages is not None and number > min_pages and not self._new_ids
            if number > self._last_page or deep_enough:
                return
            await self._read(number)
            frontier.advance(number, shrunk_by=self._shrunk_by, new_ids=self._new_ids)
        self._can_be_consistent = False

    async def _read_head_again(self) -> None:
        """Read the head until no unseen chat can be left there, or the request limit is reached.

        With one change per request, chats that moved to the head since the previous sweep began lie
        within as many rows as there were requests since. A sweep goes deeper while it finds new
        ids. All sweeps together take less than twice the depth of the first.
        """
        previous_start = 0
        limit = self._requests + 2 * math.ceil(self._requests / self._per_page) + 8
        while self._requests < limit:
            start, distinct = self._requests, self.distinct
            depth = math.ceil((start - previous_start) / self._per_page)
            await self._read(1)
            await self._read_from(self._per_page, max_requests=lambda: limit, min_pages=depth)
            if depth == 1 and self.distinct == distinct:
                return
            previous_start = start

    async def _read(self, page_number: int) -> None:
        await self._process(await self._fetch(page_number))

    async def _process(self, page: Page) -> None:
        """Update the evidence with a page, then deliver it."""
        self._requests += 1
        self._count_ids(page)
        self._compare_totals(page)
        await self._deliver(page)

    def _count_ids(self, page: Page) -> None:
        self._page_ids = page.ids
        self._new_ids = self._ids.add_seen(self._page_ids)
        self.distinct += self._new_ids
        self.duplicates += len(self._page_ids) - self._new_ids
        if page.page_number > self._furthest_page:
            self._furthest_page = page.page_number
            self._pages_without_new_ids = 0 if self._new_ids else self._pages_without_new_ids + 1
        if self._pages_without_new_ids > MAX_PAGES_WITHOUT_NEW_IDS and self._page_ids:
            raise ApiUnavailableError(
                f"the list repeats itself: {self._pages_without_new_ids} pages in a row, up to "
                f"page {page.page_number}, held no new chat; report it to Linq"
            )

    def _compare_totals(self, page: Page) -> None:
        self._shrunk_by = 0
        if self._requests == 1:
            self.first_total, self._reported_per_page = page.total_count, page.per_page
            # A server may report longer pages than it sends.
            is_short = (page.last_page or 0) > 1 and 0 < len(self._page_ids) < page.per_page
            self._per_page = max(len(self._page_ids) if is_short else page.per_page, 1)
        elif page.total_count != self.total or page.per_page != self._reported_per_page:
            self._can_be_consistent = False
            if page.total_count is not None and self.total is not None:
                self._shrunk_by = max(self.total - page.total_count, 0)
            self.shrinkages += self._shrunk_by > 0
            self._moves += self._shrunk_by > 0
        self.total = page.total_count
        if page.last_page is not None:
            rows = page.total_count or 0
            self._last_page = max(page.last_page, math.ceil(rows / self._per_page))
        else:
            # The API did not report the last page: the list ends with the first empty one.
            self._last_page = max(self._last_page, page.page_number + bool(self._page_ids))


class _Frontier:
    """How many rows, counted from the list's head, have been read for certain.

    A page read behind a gap counts once the gap is filled: when the gap has brought as many new ids
    as there were rows in it, or when rows kept sliding towards it meanwhile. Otherwise something
    may have pushed rows from the gap into that page, and it is read again, up to MAX_REREADS times.
    """

    def __init__(self, rows: int, per_page: int) -> None:
        self._rows = rows
        self._per_page = per_page
        self._ahead = range(0)  # rows read behind a gap
        self._expected_new_ids = 0  # in the gap
        self._rereads = 0  # of the page behind the gap

    @property
    def next_page(self) -> int:
        return self._rows // self._per_page + 1

    def advance(self, page_number: int, *, shrunk_by: int, new_ids: int) -> None:
        """Record that a page with `new_ids` was read, and by how much the total had shrunk."""
        rows = range((page_number - 1) * self._per_page, page_number * self._per_page)
        self._rows = max(self._rows - shrunk_by, 0)
        if rows.start > self._rows:
            self._rereads = self._rereads + 1 if rows.start == self._ahead.start else 0
            self._ahead, self._expected_new_ids = rows, rows.start - self._rows
            return
        self._rows = max(self._rows, rows.stop)
        self._expected_new_ids -= new_ids
        if self._rows >= self._ahead.start and self._ahead.stop > 0:
            if self._expected_new_ids <= 0 or shrunk_by or self._rereads >= MAX_REREADS:
                self._rows = max(self._rows, self._ahead.stop - shrunk_by)
            self._ahead = range(self._ahead.start, 0)


async def _prefetch(
    fetch: Fetch,
    first: int,
    last: Callable[[], int],
    width: int,
    *,
    leading: Iterable[int] = (),
) -> AsyncGenerator[Page, None]:
    """Yield the `leading` pages, then those from `first` to `last()`, in order, `width` in flight.

    `last` is called before each request, as the list may grow or shrink.
    """
    in_flight = deque(asyncio.ensure_future(fetch(number)) for number in leading)
    try:
        while True:
            while len(in_flight) < width and first <= last():
                in_flight.append(asyncio.ensure_future(fetch(first)))
                first += 1
            if not in_flight:
                return
            yield await in_flight.popleft()
    finally:
        for task in in_flight:
            task.cancel()
        await asyncio.gather(*in_flight, return_exceptions=True)

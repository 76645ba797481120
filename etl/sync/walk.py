"""One number's list, walked to a verdict; no database and no HTTP in here.

The list is paged by number and may change between any two requests, in an order nobody knows. A
pass reads the first page and the last, all the others in order, and at the end the last and the
first again: whatever the order is by, that is where chats appear that came or moved meanwhile. If
neither brings anything new, if every answer told the same total, and if that many different chats
were seen, the pass is consistent: then chats can have come and gone unnoticed only in pairs, one
for one, between the same two requests. Otherwise the head is read again until nothing can hide in
it, and the list is walked once more, a few times at most.

The first pass reads pages side by side. In the last, or sooner if the list was seen to move a lot,
it is read one page at a time, which allows a finer repair: what has been read for certain is the
list's front, up to a frontier. Where the total shrank, so many rows may have slid over the frontier
unread; it is drawn back by as many, and the page in which it now lies is read next.
"""

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass

from etl.api.decode import Page
from etl.errors import ApiUnavailableError
from etl.sync.seen import ChatIds

Fetch = Callable[[int], Awaitable[Page]]
Deliver = Callable[[Page], Awaitable[None]]

# So many pages in a row with nothing new are no moving list but a broken one.
MAX_PAGES_WITHOUT_NEWS = 100
# So often a page behind a gap is read again, if a list keeps shrinking there.
MAX_TIMES_AGAIN = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far the list is known to have been read, and the evidence.

    `completeness` is `consistent`, or `unproved` with a reason. The totals are what the API said
    first and last; None if it did not say. `distinct` counts the ids of the last pass, `duplicates`
    and `shrinkages` add up over all passes.
    """

    completeness: str
    reason: str | None
    passes: int
    first_total: int | None
    total_count: int | None
    distinct: int
    duplicates: int
    shrinkages: int


async def walk(
    fetch: Fetch, deliver: Deliver, seen: ChatIds, *, width: int, max_passes: int
) -> Verdict:
    """Read the list until a pass is consistent, `max_passes` times at most.

    `fetch` reads one page, counted from 1; `deliver` gets every page that was read, and may make
    the walk wait; `seen` collects the ids of all passes. `width` is how many pages are in flight
    where they are read side by side.
    """
    passes: list[_Pass] = []
    while not passes or (len(passes) < max_passes and not passes[-1].consistent):
        calm = not passes or (passes[-1].calm and len(passes) + 1 < max_passes)
        passes.append(_Pass(fetch, deliver, seen))
        await passes[-1].run(width if calm else 1)
    first, last = passes[0], passes[-1]
    return Verdict(
        completeness="consistent" if last.consistent else "unproved",
        reason=None if last.consistent else last.doubt,
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
    """Read some pages, to the list's end if `last` is None; return the last of them.

    That is no walk: of a list that may have moved it proves nothing.
    """
    page = await fetch(first)
    await deliver(page)

    def end() -> int:
        known = page.last_page or page.page_number + bool(page.ids)
        return known if last is None else min(known, last)

    async with aclosing(_prefetch(fetch, first + 1, end, width)) as pages:
        async for page in pages:  # the end is where the last page says
            await deliver(page)
    return page


class _Pass:
    """One reading of the whole list, and what is known of it so far."""

    def __init__(self, fetch: Fetch, deliver: Deliver, seen: ChatIds) -> None:
        self._fetch = fetch
        self._deliver = deliver
        self._seen = seen
        self.consistent = False
        self.distinct = 0
        self.first_total: int | None = None
        self.total: int | None = None
        self.duplicates = 0
        self.shrinkages = 0
        self._moves = 0  # signs that the list moved: news at its tail and head, and shrinkages
        self._steady = True
        self._per_page = 0
        self._said_per_page = 0
        self._last_page = 1
        self._requests = 0
        self._ids: list[int] = []  # of the page read last
        self._new_ids = 0  # how many of them were new
        self._lost = 0  # by how much the total shrank with it
        self._furthest = 0  # page
        self._without_news = 0  # pages in a row, on the way there

    @property
    def calm(self) -> bool:
        return 20 * self._moves <= self._requests

    @property
    def doubt(self) -> str:
        if self.total is None:
            return "the API did not say how long the list is"
        if self.first_total != self.total:
            return f"the list went from {self.first_total} to {self.total} while it was read"
        if self.distinct == self.total:
            return "the list moved while it was read"
        return f"{self.distinct} different chats were seen where the API counts {self.total}"

    async def run(self, width: int) -> None:
        self._seen.begin_pass()
        await self._read(1)
        if self._last_page == 1:
            # One answer held the whole list: there was no moment in between.
            self.consistent = self._all_seen()
            return
        await self._read_pages(width)
        await self._read(1)
        self._moves += self._new_ids
        # What moved between pages that are read one after the other is found at the head; of those
        # that were under way at once, a later one may have been answered first.
        quiet = self._moves == 0 or (
            width == 1 and self._moves == self._new_ids and await self._rests()
        )
        self.consistent = quiet and self._all_seen()
        if not self.consistent:
            await self._read_head_again()

    def _all_seen(self) -> bool:
        return self._steady and self.total is not None and self.distinct == self.total

    async def _read_pages(self, width: int) -> None:
        """Read the second page to the last, the last one also before the others."""
        tail_known = self._last_page > 2
        # In a list this long the last page is not read again while its early reading is under way.
        together = self._last_page > width > 1
        if tail_known and not together:
            await self._read(self._last_page)
        if width > 1:
            await self._read_side_by_side(width, tail_first=together)
        else:
            await self._read_front(self._per_page, end=lambda: 6 * self._last_page + 16)
        # In a list of two pages, what a change hides has moved to the first, which is read again.
        self._moves += self._new_ids if tail_known else 0

    async def _rests(self) -> bool:
        """Whether the head, read once more, is as it was just now."""
        before = self._ids
        await self._read(1)
        return self._ids == before

    async def _read_side_by_side(self, width: int, *, tail_first: bool) -> None:
        before = (self._last_page,) if tail_first else ()
        pages = _prefetch(self._fetch, 2, lambda: self._last_page, width, before=before)
        async with aclosing(pages):
            async for page in pages:
                await self._take(page)

    async def _read_front(
        self, frontier: int, *, end: Callable[[], int], at_least: int | None = None
    ) -> None:
        """Read on from the frontier, in rows, in order, to the list's end.

        Gives up when the pass has taken as many requests as `end` then says. With `at_least` it
        reads only so many pages, and further while they bring something new.
        """
        front = _Front(frontier, self._per_page)
        while self._requests < end():
            number = front.next_page
            enough = at_least is not None and number > at_least and not self._new_ids
            if number > self._last_page or enough:
                return
            await self._read(number)
            front.advance(number, lost=self._lost, new_ids=self._new_ids)
        self._steady = False

    async def _read_head_again(self) -> None:
        """Read the head until nothing can hide in it, or until it does not come to rest.

        What moved to the head since the previous sweep began lies within as many rows as there
        were requests since, if there was one change to a request; the sweep goes deeper while it
        finds something new. All sweeps together then take less than twice the first one's depth.
        """
        previous = 0
        end = self._requests + 2 * math.ceil(self._requests / self._per_page) + 8
        while self._requests < end:
            began, distinct = self._requests, self.distinct
            depth = math.ceil((began - previous) / self._per_page)
            await self._read(1)
            await self._read_front(self._per_page, end=lambda: end, at_least=depth)
            if depth == 1 and self.distinct == distinct:
                return
            previous = began

    async def _read(self, number: int) -> None:
        await self._take(await self._fetch(number))

    async def _take(self, page: Page) -> None:
        """Keep the books on a page, and hand it on."""
        self._requests += 1
        self._count_ids(page)
        self._compare_extent(page)
        await self._deliver(page)

    def _count_ids(self, page: Page) -> None:
        self._ids = page.ids
        self._new_ids = self._seen.add(self._ids)
        self.distinct += self._new_ids
        self.duplicates += len(self._ids) - self._new_ids
        if page.page_number > self._furthest:
            self._furthest = page.page_number
            self._without_news = 0 if self._new_ids else self._without_news + 1
        if self._without_news > MAX_PAGES_WITHOUT_NEWS and self._ids:
            raise ApiUnavailableError(
                f"the list repeats itself: {self._without_news} pages in a row, up to page "
                f"{page.page_number}, brought no new chat; report it to Linq"
            )

    def _compare_extent(self, page: Page) -> None:
        self._lost = 0
        if self._requests == 1:
            self.first_total, self._said_per_page = page.total_count, page.per_page
            # A server may say that its pages are longer than they are.
            short = (page.last_page or 0) > 1 and 0 < len(self._ids) < page.per_page
            self._per_page = max(len(self._ids) if short else page.per_page, 1)
        elif page.total_count != self.total or page.per_page != self._said_per_page:
            self._steady = False
            if page.total_count is not None and self.total is not None:
                self._lost = max(self.total - page.total_count, 0)
            self.shrinkages += self._lost > 0
            self._moves += self._lost > 0
        self.total = page.total_count
        if page.last_page is not None:
            rows = page.total_count or 0
            self._last_page = max(page.last_page, math.ceil(rows / self._per_page))
        else:
            # The API did not say, so the first empty page is the end.
            self._last_page = max(self._last_page, page.page_number + bool(self._ids))


class _Front:
    """How many of the list's first rows have been read for certain.

    A page that is read behind a gap counts as soon as the gap is filled: when as many new ids were
    found in it as rows had slid into it, or when rows were sliding towards it all the while. If
    not, something may have pushed them on into that page, which is then read again, up to a bound.
    """

    def __init__(self, frontier: int, per_page: int) -> None:
        self._frontier = frontier
        self._per_page = per_page
        self._ahead = range(0)  # rows that were read behind a gap
        self._owed = 0  # new ids that the gap should hold
        self._again = 0  # times that the page behind it was read again

    @property
    def next_page(self) -> int:
        return self._frontier // self._per_page + 1

    def advance(self, number: int, *, lost: int, new_ids: int) -> None:
        """Note that the page was read: the total had shrunk by `lost`, and `news` ids were new."""
        rows = range((number - 1) * self._per_page, number * self._per_page)
        self._frontier = max(self._frontier - lost, 0)
        if rows.start > self._frontier:
            self._again = self._again + 1 if rows.start == self._ahead.start else 0
            self._ahead, self._owed = rows, rows.start - self._frontier
            return
        self._frontier = max(self._frontier, rows.stop)
        self._owed -= new_ids
        if self._frontier >= self._ahead.start and self._ahead.stop > 0:
            if self._owed <= 0 or lost or self._again >= MAX_TIMES_AGAIN:
                self._frontier = max(self._frontier, self._ahead.stop - lost)
            self._ahead = range(self._ahead.start, 0)


async def _prefetch(
    fetch: Fetch,
    first: int,
    last: Callable[[], int],
    width: int,
    *,
    before: Iterable[int] = (),
) -> AsyncGenerator[Page, None]:
    """The pages `before`, then from `first` to what `last` says by then, in that order.

    So many as `width` are in flight.
    """
    in_flight = deque(asyncio.ensure_future(fetch(number)) for number in before)
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

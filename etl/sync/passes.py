"""One reading of a number's list from its first page to its last, and the evidence it gathers."""

import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable

from etl.api.models import Page
from etl.errors import ApiUnavailableError
from etl.sync.budget import BoundedFetch, EndlessListError
from etl.sync.frontier import Frontier
from etl.sync.room import Reading
from etl.sync.seen import ChatIds

Deliver = Callable[[Page], Awaitable[None]]

# More pages in a row without a new id mean a broken API, not a moving list. If the API does not
# count the list, nothing else ends it.
MAX_PAGES_WITHOUT_NEW_IDS = 100
MAX_UNCOUNTED_PAGES_WITHOUT_NEW_IDS = 25


class Pass:
    """One reading of the whole list, and the evidence gathered so far."""

    def __init__(self, fetch: BoundedFetch, deliver: Deliver, ids: ChatIds) -> None:
        self._fetch = fetch
        self._deliver = deliver
        self._ids = ids
        self.read_to_end = False
        self.consistent = False
        self.distinct = 0
        self.first_total: int | None = None
        self.total: int | None = None
        self.duplicates = 0
        self.shrinkages = 0
        self.last_page = 1
        self.page_number = 0  # of the page read last
        self._page_ids: list[int] = []  # on that page
        self._new_ids = 0  # on that page
        self._shrunk_by = 0  # with that page's total
        self._moves = 0  # signs of a moving list: new ids at its ends, and shrinkages
        self._can_be_consistent = True
        self._per_page = 0
        self._reported_per_page = 0
        self._requests = 0
        self._first_page_ids = 0
        self._pages_without_new_ids = 0  # in a row
        self._gap: int | None = None  # an empty page before the list's end
        self._largest = 0  # bytes of a page

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
        if self._gap:
            return f"page {self._gap} of {self.last_page} stayed empty"
        if self.distinct == self.total:
            return "the list moved while it was read"
        return f"{self.distinct} distinct chats were seen, but the API reports {self.total}"

    async def run(self, width: int) -> None:
        self._ids.begin_pass()
        await self._read(1)
        if self.last_page == 1:
            # One response held the whole list, so nothing can have changed between two.
            self.read_to_end = True
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

    async def run_range(self, first: int, last: int | None, width: int) -> None:
        """Read only these pages."""
        self._ids.begin_pass()
        await self._read(first)
        await self._read_concurrently(first + 1, width, last=last)

    def _all_seen(self) -> bool:
        return self._can_be_consistent and self.total is not None and self.distinct == self.total

    async def _read_pages(self, width: int) -> None:
        """Read the second page to the last, and the last also before the others."""
        read_tail_twice = self.last_page > 2
        # Only in a list longer than `width` is the first reading of the tail sure to be over before
        # the second one starts, so only there may it be in flight with the other pages.
        prefetch_tail = self.last_page > width > 1
        if read_tail_twice and not prefetch_tail:
            await self._read(self.last_page)
        if width > 1:
            leading = (self.last_page,) if prefetch_tail else ()
            await self._read_concurrently(2, width, leading=leading)
        else:
            self.read_to_end = await self._read_from(
                self._per_page, max_requests=lambda: 6 * self.last_page + 16
            )
        # In a list of two pages, whatever moves goes to the first page, which is read again anyway.
        self._moves += self._new_ids if read_tail_twice else 0

    async def _head_is_unchanged(self) -> bool:
        """Read the head once more and compare it with the reading just before."""
        before = self._page_ids
        await self._read(1)
        return self._page_ids == before

    async def _read_concurrently(
        self, first: int, width: int, *, last: int | None = None, leading: Iterable[int] = ()
    ) -> None:
        """Read the `leading` pages, then from this page to the list's end, or to `last`.

        They are processed in order, `width` in flight as far as there is room for them. The end is
        looked at before each request, as the list may grow or shrink.
        """
        in_flight = deque((number, self._start(number)) for number in leading)
        ahead = 2
        try:
            while True:
                end = self.last_page if last is None else min(self.last_page, last)
                while len(in_flight) < min(width, ahead) and first <= end:
                    reading = self._start(first)
                    if in_flight and not reading:
                        break
                    in_flight.append((first, reading))
                    first += 1
                if not in_flight:
                    break
                await self._process_in_turn(*in_flight.popleft())
                self._check_progress()
                ahead += 2
        finally:
            for _, reading in in_flight:
                if reading:
                    await reading.close()
        self.read_to_end = True

    async def _read_from(
        self, first_row: int, *, max_requests: Callable[[], int], min_pages: int | None = None
    ) -> bool:
        """Read in order from the page that holds this row, counted from 0, to the list's end.

        Gives up once the pass has made `max_requests`, and returns False. With `min_pages` it stops
        after so many pages, or later at the first page without a new id.
        """
        frontier = Frontier(first_row, self._per_page)
        while self._requests < max_requests():
            number = frontier.next_page
            deep_enough = min_pages is not None and number > min_pages and not self._new_ids
            if number > self.last_page or deep_enough:
                return True
            await self._read(number)
            if min_pages is None:
                self._check_progress()
            frontier.advance(number, shrunk_by=self._shrunk_by, new_ids=self._new_ids)
        self._can_be_consistent = False
        return False

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
        await self._process_in_turn(page_number, self._start(page_number))

    def _start(self, page_number: int) -> Reading | None:
        return self._fetch.ahead(page_number, self._largest)

    async def _process_in_turn(self, page_number: int, reading: Reading | None) -> None:
        """Process the page, which is read alone if there was no room for it."""
        await self._fetch.room.use(
            reading,
            self._process,
            read=lambda: self._fetch(page_number),
            again=lambda: self._fetch.again(page_number),
        )

    async def _process(self, page: Page) -> None:
        """Update the evidence with a page, then deliver it."""
        self._requests += 1
        self._largest = max(self._largest, page.size)
        self._count_ids(page)
        self._compare_totals(page)
        self._find_end(page)
        await self._deliver(page)
        self._fetch.check(page, self.distinct)

    def _count_ids(self, page: Page) -> None:
        self.page_number, self._page_ids = page.page_number, page.ids
        self._new_ids = self._ids.add_seen(self._page_ids)
        self.distinct += self._new_ids
        self.duplicates += len(self._page_ids) - self._new_ids
        self._pages_without_new_ids = 0 if self._new_ids else self._pages_without_new_ids + 1

    def _check_progress(self) -> None:
        """Stop if too many pages in a row, empty ones too, held no new chat."""
        counted, pages = self._fetch.is_counted, self._pages_without_new_ids
        if pages <= (MAX_PAGES_WITHOUT_NEW_IDS if counted else MAX_UNCOUNTED_PAGES_WITHOUT_NEW_IDS):
            return
        text = f"{pages} pages in a row, up to page {self.page_number}, held no new chat"
        if self._ids.passes == 1 and self._page_ids and self.distinct == self._first_page_ids:
            raise ApiUnavailableError(f"the list repeats itself: {text}; report it to Linq")
        raise EndlessListError(text)

    def _compare_totals(self, page: Page) -> None:
        self._shrunk_by = 0
        if self._requests == 1:
            self.first_total, self._reported_per_page = page.total_count, page.per_page
            self._first_page_ids, rows = self._new_ids, len(self._page_ids)
            # A server may report longer or shorter pages than it sends. A page with less than half
            # of the list is not the only one, whatever else is reported.
            is_last = page.last_page in (None, 1) and 2 * rows > (page.total_count or 0)
            is_short = page.page_number == 1 and not is_last and 0 < rows < page.per_page
            self._per_page = rows if is_short else max(page.per_page, rows, 1)
        elif page.total_count != self.total or page.per_page != self._reported_per_page:
            self._can_be_consistent = False
            if page.total_count is not None and self.total is not None:
                self._shrunk_by = max(self.total - page.total_count, 0)
            self.shrinkages += self._shrunk_by > 0
            self._moves += self._shrunk_by > 0
        self.total = page.total_count

    def _find_end(self, page: Page) -> None:
        """Set the list's last page."""
        if page.last_page is None:
            # The API did not report the last page: the list ends with the first empty one.
            self.last_page = max(self.last_page, page.page_number + bool(self._page_ids))
            return
        by_rows = math.ceil((page.total_count or 0) / self._per_page)
        self.last_page = max(page.last_page, by_rows)
        # More pages may be reported than the total fills: there the list ends with the first page
        # that is empty or brings no new id.
        if not self._new_ids and 0 < by_rows < page.page_number:
            self.last_page = min(self.last_page, page.page_number)
        elif page.is_gap:
            self._gap, self._can_be_consistent = page.page_number, False
        elif not self._page_ids:
            self.last_page = min(self.last_page, page.page_number)

"""How many requests a run may make, and how many one walk, whatever the API answers."""

import math
from collections.abc import Awaitable, Callable, Mapping

from etl.api.models import ApiUsage, Page
from etl.sync.room import Reading, Room

Fetch = Callable[[int], Awaitable[Page]]

# Beyond (max_passes + 1) * the pages: repairs of a short list, and List Phone Numbers.
SPARE_REQUESTS = 28
# A list that has grown by more than both has no end worth waiting for.
MAX_GROWTH_FACTOR = 10
MAX_GROWTH = 10_000
# Pages of a list that the API does not count, unless the operator sets sync.max_requests.
MAX_UNCOUNTED_PAGES = 200


class StopReadingError(Exception):
    """Ends a walk before its list does; the text is the `reason` in the run log."""


class EndlessListError(StopReadingError):
    """The list has no end that a reasonable number of requests reaches."""


class BudgetSpentError(StopReadingError):
    """The operator can allow more requests; the text begins with `budget`."""


class Budget:
    """The requests that a run may make, shared by its numbers; no limit if `limit` is None.

    What is promised to one number is kept from the others.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._spent = 0
        self._retries = 0
        self._promised: dict[str, int] = {}
        self._spenders: set[str] = set()

    @property
    def is_spent(self) -> bool:
        return self.limit is not None and self._spent >= self.limit

    @property
    def left(self) -> int:
        """How many requests are neither spent nor promised; of use only with a limit."""
        return (self.limit or 0) - self._spent - sum(self._promised.values())

    def is_spent_by(self, phone_number: str) -> bool:
        """Whether no other number has made a request."""
        return self._spenders <= {phone_number}

    def promise(self, phone_number: str, requests: int) -> None:
        """Keep so many requests for the number; 0 frees what is still promised to it."""
        self._promised.pop(phone_number, None)
        if requests > 0:
            self._promised[phone_number] = requests

    def take(self, phone_number: str | None = None, *, retries: int = 0) -> None:
        """Spend one request, and the retries of earlier ones. Raises BudgetSpentError."""
        self._spent += retries
        promised = self._promised.get(phone_number, 0) if phone_number else 0
        if self.limit is not None and (self.is_spent or (not promised and self.left <= 0)):
            raise BudgetSpentError(
                f"budget: the run has spent its {self.limit} requests (--max-requests or "
                "sync.max_requests)"
            )
        self._spent += 1
        if phone_number:
            self._spenders.add(phone_number)
            self.promise(phone_number, promised - 1)

    def new_retries(self, usage: Mapping[str | None, ApiUsage]) -> int:
        """The retries of a whole run since the last call."""
        before, self._retries = self._retries, sum(each.retries for each in usage.values())
        return self._retries - before

    def give_back(self) -> None:
        """Undo `take` for a request that was not made."""
        self._spent -= 1


class BoundedFetch:
    """Reads pages of one list: in all, at most (max_passes + 1) * the pages first counted + 28.

    `max_uncounted` bounds the pages of a list that the API does not count; None if nothing does.
    `fetch_again` repeats a request, which does not count. The numbers of a run share the `room`.
    """

    def __init__(
        self,
        fetch: Fetch,
        *,
        max_passes: int,
        max_uncounted: int | None = MAX_UNCOUNTED_PAGES,
        fetch_again: Fetch | None = None,
        room: Room | None = None,
    ) -> None:
        self.max_passes = max_passes
        self.again = fetch_again or fetch
        self.room = room or Room()
        self._fetch = fetch
        self._max_uncounted = math.inf if max_uncounted is None else max_uncounted
        self._first_pages: int | None = None  # pages first counted
        self._first_total: int | None = None  # chats counted with them
        self._longest_page = 1
        self._requests = 0

    async def __call__(self, page_number: int) -> Page:
        """Read a page. Raises StopReadingError if no request is left."""
        if self.left <= 0:
            raise self._exhausted()
        self._requests += 1
        return await self._fetch(page_number)

    def ahead(self, page_number: int, expected: int) -> Reading | None:
        """Start to read a page of the expected size; None if there is no room for it."""
        return self.room.ahead(expected, lambda: self(page_number))

    @property
    def is_counted(self) -> bool:
        return self._first_pages is not None

    @property
    def left(self) -> float:
        """How many requests may still be made."""
        if not self.is_counted:
            return self._max_uncounted - self._requests
        return (self.max_passes + 1) * self._pages + SPARE_REQUESTS - self._requests

    @property
    def _pages(self) -> int:
        # The API may count with longer pages than it sends.
        by_rows = math.ceil((self._first_total or 0) / self._longest_page)
        return max(self._first_pages or 0, by_rows)

    def count_pages(self, pages: int, total_count: int | None = None) -> None:
        """Set the length of the list, unless it is set."""
        if self._first_pages is None:
            self._first_pages, self._first_total = pages, total_count

    def check(self, page: Page, distinct: int) -> None:
        """Raise EndlessListError if the list has grown too much; `distinct` chats were seen."""
        self._longest_page = max(self._longest_page, len(page.ids))
        if page.last_page is not None:
            self.count_pages(page.last_page, page.total_count)
        first, now = self._first_total, max(page.total_count or 0, distinct)
        if first is not None and now > max(MAX_GROWTH_FACTOR * first, first + MAX_GROWTH):
            raise EndlessListError(f"the list went from {first} to {now} while it was read")

    def _exhausted(self) -> StopReadingError:
        if self.is_counted:
            return EndlessListError(
                f"the list had no end after {self._requests} requests; it was first counted as "
                f"{self._pages} pages"
            )
        return BudgetSpentError(
            f"budget: the API does not count the list, which had no end after {self._requests} "
            "pages; set sync.max_requests to read on"
        )

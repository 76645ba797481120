"""A quick reading of a list whose changed chats come first. No HTTP and no database.

It reads from the first page until one page brings no change, and one page of the rest as an audit:
each in its turn, in a random order, so that every page is read within as many quick readings as the
list has pages, whatever its order really is. An alarm ends it, and the list is read in full: the
audit finds a chat with another message count, a page comes without chats, or the API's count of
chats has changed by another number than that of the new chats.
"""

import math
from collections.abc import Awaitable, Callable
from typing import Final

from etl.api.models import hash64
from etl.db.list_orders import KnownList
from etl.db.store.batch import ObservedPage, Part
from etl.db.store.compare import Comparison
from etl.sync.budget import BoundedFetch

Compare = Callable[[ObservedPage], Awaitable[Comparison]]
Deliver = Callable[[ObservedPage], Awaitable[None]]

MAX_AUDITED: Final = 100_000  # pages


class HeadReading:
    """One quick reading; `known` is what the reading before left."""

    def __init__(
        self,
        fetch: BoundedFetch,
        compare: Compare,
        deliver: Deliver,
        note_alarm: Callable[[str], Awaitable[None]],
        known: KnownList,
    ) -> None:
        self._fetch = fetch
        self._compare = compare
        self._deliver = deliver
        self._note_alarm = note_alarm
        self._known = known
        self._digests: dict[int, int] = {}  # of the chats read so far
        self._listed: set[int] = set()  # new in the list
        self._total: int | None = None
        self._last_page = 1
        self._alarm: str | None = None

    async def run(self) -> str | None:
        """Read. Returns why the list has to be read in full, if so; raises StopReadingError.

        A full walk takes several pages at a time, so it is sooner done if many have changed.
        """
        page_number = 1
        while (await self._read(page_number, "rule")).changed:
            if page_number >= min(self._last_page / 2, 10 + self._last_page / 4):
                return "most of its pages have changed"
            page_number += 1
        if audited := self._audited(page_number):
            await self._read(audited, "audit")
        if self._unexpected():
            await self._read(1, "rule")  # A chat may have come meanwhile.
        return self._alarm or self._unexpected()

    async def _read(self, page_number: int, part: Part) -> Comparison:
        page = await self._fetch(page_number)
        self._fetch.check(page, len(self._digests))
        # Hashed once: the comparison and the store read the same observations.
        observed = ObservedPage(self._known.phone_number, page, part=part)
        found = self._without_known(observed, await self._compare(observed))
        self._total = page.total_count
        # The API may count with longer pages than it sends.
        by_rows = math.ceil((page.total_count or 0) / self._known.per_page)
        self._last_page = max(page.last_page or 1, by_rows)
        self._listed |= found.new_in_list
        if not page.ids:
            self._alarm = f"page {page_number} came without chats"
        elif part == "audit" and found.moved:
            self._alarm = f"page {page_number} had changed chats, though none was expected there"
            # Before they are stored: then they would not be found changed again.
            await self._note_alarm(self._alarm)
        await self._deliver(observed)
        return found

    def _without_known(self, page: ObservedPage, found: Comparison) -> Comparison:
        """Leave out what this reading has found before: it may not be stored yet."""
        digests = {each.chat.id: each.digest for each in page.observations}
        known = {each for each, digest in digests.items() if self._digests.get(each) == digest}
        new_in_list = found.new_in_list - self._digests.keys()
        self._digests |= digests
        return Comparison(found.changed - known, found.moved - known, new_in_list)

    def _audited(self, read: int) -> int | None:
        """The page that is next in the random order and that is not among the first ones."""
        # Whatever the API says: with many more pages its count of chats has changed too.
        pages = min(self._last_page, self._known.pages + 1, MAX_AUDITED)
        seed = f"{self._known.phone_number} {self._known.walk_run_id}"
        # By hash, so that a page more or less leaves the others in their order.
        order = sorted(range(1, pages + 1), key=lambda page: hash64(f"{seed} {page}".encode()))
        turn = self._known.quick_runs % pages
        return next((page for page in order[turn:] + order[:turn] if page > read), None)

    def _unexpected(self) -> str | None:
        before, new = self._known.total_count, len(self._listed)
        if before is None or self._total is None:
            return "the API did not count the list"
        if self._total == before + new:
            return None
        return (
            f"the API's count went from {before} to {self._total} chats, and {new} new ones were "
            "found where quick readings look"
        )

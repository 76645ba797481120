"""One number in a quick run: whether it is read quickly, by which rule, and what came of it."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime

from etl.api.models import Page
from etl.db.list_orders import KnownList, Reading, known_lists, turn_off
from etl.db.store.batch import ObservedPage
from etl.db.store.compare import Comparison, compare_page
from etl.sync.budget import BoundedFetch, BudgetSpentError, EndlessListError
from etl.sync.context import RunContext
from etl.sync.quick.gain import pages_by_gain, read_pages
from etl.sync.quick.head import HeadReading
from etl.sync.quick.learning import Notes
from etl.sync.quick.plan import IS_OLD, why_in_full


class QuickReading:
    """Reads a list only where changes are likely, if that is known to be good.

    After `read`, `in_full` says why the whole list has to be read, if so, and `limit` why the
    run's budget can never suffice for that.
    """

    def __init__(
        self,
        context: RunContext,
        phone_number: str,
        fetch: Callable[[], BoundedFetch],
        put: Callable[[ObservedPage], Awaitable[None]],
    ) -> None:
        self.in_full: str | None = None
        self.limit: str | None = None
        self._context = context
        self._phone_number = phone_number
        self._fetch = fetch
        self._put = put
        self._notes = Notes()

    async def read(self) -> Reading | None:
        """Read; None if the whole list has to be read. Raises BudgetSpentError."""
        context, number, now = self._context, self._phone_number, self._context.clock()
        found = await context.transactions.read(lambda c: known_lists(c, [number]))
        known = found.get(number)
        self.in_full = why_in_full(known, now, context.config.sync.full_every_span)
        if known is None:
            return None
        limit = context.turns.why_too_long(number, known.pages)
        self.limit = limit if self.in_full else None
        if not self.in_full or (limit and self.in_full == IS_OLD):
            await self._read_head(known)
        if not self.in_full:
            return self._notes.reading(is_full=False)
        self.limit = limit
        if not limit:
            return None
        await self._read_by_gain(known, now)
        return self._notes.reading(is_full=False, is_partial=True)

    async def _read_head(self, known: KnownList) -> None:
        def compare(page: ObservedPage) -> Awaitable[Comparison]:
            return self._compare(page, known.head_read_at)

        reading = HeadReading(self._fetch(), compare, self._deliver, self._note_alarm, known)
        try:
            self.in_full = await reading.run()
        except EndlessListError as error:
            self.in_full = str(error)
        if self.in_full:
            await self._note_alarm(self.in_full)

    async def _note_alarm(self, why: str) -> None:
        """Quick readings stay off until a full walk has ended, even if this run does not."""
        context, number = self._context, self._phone_number
        await context.transactions.write(lambda c: turn_off(c, number, why))

    async def _read_by_gain(self, known: KnownList, now: datetime) -> None:
        """Read the pages that are worth most, until the run's requests are spent."""
        context, number = self._context, self._phone_number
        pages = await context.transactions.read(lambda c: pages_by_gain(c, number, known, now))
        with suppress(BudgetSpentError):
            width = 2 * context.config.api.max_concurrency
            await read_pages(self._fetch(), self._deliver_gain, pages, width=width)

    async def _compare(self, page: ObservedPage, since: datetime) -> Comparison:
        hashes = self._context.writer.privacy.hashes_of_names
        return await self._context.transactions.read(lambda c: compare_page(c, page, since, hashes))

    async def _deliver_gain(self, page: Page) -> None:
        await self._deliver(ObservedPage(self._phone_number, page, part="gain"))

    async def _deliver(self, page: ObservedPage) -> None:
        self._notes.add(page.page)
        await self._put(page)

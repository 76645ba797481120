"""Sync one phone number: read its list, store it, settle the chats that are missing."""

from datetime import datetime

from sqlalchemy import Connection

from etl.api.client import RequestContext
from etl.api.models import ApiUsage, Chat, Page, Rejected, Withheld
from etl.config import Config
from etl.db import run_log
from etl.db.chunks import chunks
from etl.db.run_log import LastWalk, NumberOutcome
from etl.db.store.batch import ObservedPage
from etl.db.store.removals import CHUNK, Removals, known_chats
from etl.errors import ApiUnavailableError, RequestRefusedError, TokenRefusedError
from etl.sync.budget import (
    MAX_UNCOUNTED_PAGES,
    BoundedFetch,
    BudgetSpentError,
)
from etl.sync.confirm import Confirmations, confirm_missing, suspicious
from etl.sync.context import RunContext, RunOptions
from etl.sync.quick.learning import Notes
from etl.sync.quick.number import QuickReading
from etl.sync.reach import UNREACHED
from etl.sync.seen import ChatIds
from etl.sync.walk import Verdict, read_range, walk


class NumberSync:
    """One number in a run."""

    def __init__(self, context: RunContext, options: RunOptions, request: RequestContext) -> None:
        assert request.phone_number  # noqa: S101  # only the run itself has requests without one
        self._context = context
        self._options = options
        self._request = request
        self._phone_number = request.phone_number
        self._width = _width(context.config)
        self._notes = Notes()  # of the walk
        self._in_full: str | None = None  # why a quick run reads the whole list
        self._has_read = False
        self._largest_chat = 0  # bytes of an answer to Get Chat
        self._rejected = 0
        self._retries_charged = 0
        self._spent: str | None = None  # why no request is left

    async def run(self) -> NumberOutcome:
        """Read the list and settle what is missing. Raises the error that stopped the reading."""
        if self._options.command == "backfill":
            first_page = await self._context.transactions.write(self._begin_backfill)
            if first_page > 1 or self._options.last_page:
                return await self._read_range(first_page)
        if self._options.mode == "quick" and (outcome := await self._read_quickly()):
            return outcome
        with ChatIds() as ids:
            last_walk = await self._context.transactions.read(lambda c: self._recall(c, ids))
            return await self._read_all(ids, last_walk)

    # A whole list

    def _recall(self, connection: Connection, ids: ChatIds) -> LastWalk | None:
        """Fill `ids` with the chats known before; return the walk that this one can prove."""
        for missing, chat_ids in known_chats(connection, self._phone_number):
            ids.add_known(chat_ids, missing=missing)
        if self._has_read:  # What a quick reading saw, the last walk may not have seen.
            return None
        return run_log.last_walk(connection, self._phone_number, run_id=self._context.run_id)

    async def _read_all(self, ids: ChatIds, last_walk: LastWalk | None) -> NumberOutcome:
        verdict = await self._walk(ids)
        stopped = verdict.stopped
        proved = self._options.prove and not stopped and await self._prove(ids, verdict)
        withheld = None if stopped else await self._settle_missing(ids, verdict)
        proves = last_walk and ids.count_seen_in_both_walks() == last_walk.total_count
        unreached = None if stopped or await self._is_reached() else UNREACHED
        unproved = None if proved else verdict.reason
        in_full = self._in_full and f"read in full, because {self._in_full}"
        reasons = dict.fromkeys([self._spent, withheld, unreached, unproved, in_full])
        incomplete = stopped or self._spent or withheld or unreached or self._rejected
        return NumberOutcome(
            self._phone_number,
            "partial" if incomplete else "succeeded",
            self._usage,
            completeness="proved" if proved else verdict.completeness,
            reason="; ".join(filter(None, reasons)) or None,
            passes=ids.passes,
            evidence={
                "total_count": verdict.total_count,
                "first_total_count": verdict.first_total,
                "distinct_ids": verdict.distinct,
                "duplicates": verdict.duplicates,
                "shrinkages": verdict.shrinkages,
                "missing": None if stopped else ids.count_missing(),
            },
            proved_run=last_walk.run_id if last_walk and proves else None,
            reading=None if stopped else self._notes.reading(is_full=True),
        )

    async def _walk(self, ids: ChatIds) -> Verdict:
        return await walk(self._bounded_fetch(), self._deliver, ids, width=self._width)

    async def _prove(self, ids: ChatIds, verdict: Verdict) -> bool:
        """Walk again: the ids seen in both walks must be as many as the first one last counted."""
        passes = ids.passes
        await self._walk(ids)
        return ids.count_seen_before_and_since(passes + 1) == verdict.total_count

    # Missing chats: known before, not seen in this walk

    async def _settle_missing(self, ids: ChatIds, verdict: Verdict) -> str | None:
        """Ask for each missing chat and store the answers; return why removals were withheld."""
        missing, known = ids.count_missing(), ids.count_known()
        if not missing or self._options.command == "backfill":
            return None
        if verdict.distinct == 0 and not self._options.allow_removals:
            return f"the list came back empty but {known} chats were known; {_ALLOW}"
        if unreached := await self._unreached():
            return unreached
        observed_at = self._context.clock()
        confirmations = await confirm_missing(
            list(ids.missing(self._context.config.sync.max_confirmations)),
            lambda chat_id: self._ask(chat_id, observed_at),
            width=self._context.config.api.max_concurrency,
            stop_when=lambda gone: self._suspicious(gone, known),
        )
        return await self._store_removals(ids, confirmations, verdict, observed_at)

    async def _store_removals(
        self, ids: ChatIds, confirmations: Confirmations, verdict: Verdict, observed_at: datetime
    ) -> str | None:
        """Store what was confirmed, unless it is suspicious; return what was withheld."""
        missing, known = ids.count_missing(), ids.count_known()
        gone, alive = confirmations.gone, set(confirmations.alive)
        consistent = verdict.completeness == "consistent"
        left = tuple(each for each in ids.missing_twice() if each in alive) if consistent else ()
        # Extrapolate from the answers to the chats that were not asked for or not answered.
        expected = len(left) + len(gone) * missing // max(len(gone) + len(alive), 1)
        suspicious_now = self._suspicious(expected, known)
        if suspicious_now:
            gone = left = ()
        ids.forget((*gone, *left))
        put, number = self._context.writer.put, self._phone_number
        await put(Removals(number, gone, left, (), observed_at))
        # Each item of the writer takes little memory and a short transaction.
        for chunk in chunks(alive if suspicious_now else ids.missing(), CHUNK):
            await put(Removals(number, (), (), tuple(chunk), observed_at))
        if suspicious_now:
            return f"about {expected} of {known} known chats are gone or not listed; {_ALLOW}"
        unknown = missing - len(gone) - len(alive)
        return f"{unknown} missing chats are unknown: not asked, or no answer" if unknown else None

    def _suspicious(self, removed: int, known: int) -> bool:
        return suspicious(removed, known) and not self._options.allow_removals

    async def _unreached(self) -> str | None:
        """Why removals are withheld for this number, if the token does not reach it now."""
        try:
            self._charge()
            numbers = await self._context.reach.list_numbers(self._request)
        except BudgetSpentError as error:
            return str(error)
        except (RequestRefusedError, TokenRefusedError):
            return None  # A token may list chats but not numbers: then the question has no answer.
        except ApiUnavailableError:
            return "whether the token still reaches the number is unknown; removals are withheld"
        if self._phone_number in numbers:
            return None
        return f"the token's numbers do not include this one; {_ALLOW}"

    async def _is_reached(self) -> bool:
        return await self._context.reach.includes(self._phone_number, self._request.token)

    async def _ask(self, chat_id: int, observed_at: datetime) -> bool | None:
        """Whether a missing chat is alive, and then its answer is stored; None if that is unclear.

        Its answer waits in the room for the writer, beside the pages of other numbers.
        """

        async def read(*, again: bool = False) -> Page:
            if not again:  # Charged with the other retries.
                self._charge()
            chat = await self._context.client.get_chat(self._request, chat_id, again=again)
            return _page_of(chat, observed_at)

        async def refresh(page: Page) -> bool | None:
            self._largest_chat = max(self._largest_chat, page.size)
            if page.chats:  # This does not put the chat in the list.
                observed = ObservedPage(self._phone_number, page, listed=False)
                await self._context.writer.put(observed)
                return True
            if page.withheld:
                return True
            return None if page.rejected else False

        room = self._context.room
        reading = room.ahead(self._largest_chat, read)
        return await room.use(reading, refresh, read=read, again=lambda: read(again=True))

    # A quick reading

    async def _read_quickly(self) -> NumberOutcome | None:
        """Read only where changes are likely; None if the whole list has to be read."""
        quick = QuickReading(self._context, self._phone_number, self._bounded_fetch, self._put)
        try:
            reading = await quick.read()
        except BudgetSpentError as error:
            return NumberOutcome(self._phone_number, "partial", self._usage, reason=str(error))
        self._in_full = quick.in_full
        if reading is None:
            return None
        unreached = None if await self._is_reached() else UNREACHED
        incomplete = quick.limit or unreached or self._rejected
        return NumberOutcome(
            self._phone_number,
            "partial" if incomplete else "succeeded",
            self._usage,
            completeness="quick",
            reason="; ".join(filter(None, [quick.limit, unreached])) or None,
            evidence={"total_count": reading.total_count},
            reading=reading,
        )

    # A page range

    def _begin_backfill(self, connection: Connection) -> int:
        """The first page: as asked, else where an interrupted backfill stopped."""
        run_id = self._context.run_id
        first_page = self._options.first_page or run_log.resume_page(
            connection,
            self._phone_number,
            run_id=run_id,
            margin=resume_margin(self._context.config),
        )
        run_log.note_first_page(connection, run_id, self._phone_number, first_page)
        return first_page

    async def _read_range(self, first_page: int) -> NumberOutcome:
        done = await read_range(
            self._bounded_fetch(),
            self._deliver,
            first=first_page,
            last=self._options.last_page,
            width=self._width,
        )
        pages = (
            f"only pages {first_page} to {done.last_page} were read; the next sync tells whether "
            "the list is complete"
        )
        reasons = [done.stopped, pages if done.last_page else None]
        return NumberOutcome(
            self._phone_number,
            "partial" if self._rejected or done.stopped else "succeeded",
            self._usage,
            reason="; ".join(filter(None, reasons)),
            evidence={"total_count": done.total_count},
        )

    # Requests

    def _bounded_fetch(self) -> BoundedFetch:
        sync = self._context.config.sync
        return BoundedFetch(
            self._fetch,
            max_passes=sync.max_passes,
            max_uncounted=MAX_UNCOUNTED_PAGES if sync.max_requests is None else None,
            fetch_again=self._fetch_again,
            room=self._context.room,
        )

    @property
    def _usage(self) -> ApiUsage:
        return self._context.client.usage[self._phone_number]

    def _charge(self) -> None:
        """Take a request, and the retries since the last one, from the run's budget."""
        charged, retries = self._retries_charged, self._usage.retries
        self._retries_charged = retries
        try:
            self._context.turns.take(self._phone_number, retries=retries - charged)
        except BudgetSpentError as error:
            self._spent = str(error)
            raise

    async def _fetch(self, page_number: int) -> Page:
        self._charge()
        return await self._context.client.list_chats(self._request, page_number)

    async def _fetch_again(self, page_number: int) -> Page:
        # Charged with the other retries.
        return await self._context.client.list_chats(self._request, page_number, again=True)

    async def _put(self, page: ObservedPage) -> None:
        self._rejected += len(page.page.rejected)
        self._has_read = True
        await self._context.writer.put(page)
        self._context.progress.page_read(self._phone_number, page.page)

    async def _deliver(self, page: Page) -> None:
        await self._put(ObservedPage(self._phone_number, page))
        is_first = not self._notes.has_pages
        self._notes.add(page)
        if is_first:
            self._note_length(page)

    def _note_length(self, first: Page) -> None:
        """Tell the other numbers how many pages follow this first one."""
        last_page = min(filter(None, (first.last_page, self._options.last_page)), default=None)
        if first.last_page and last_page:
            pages = last_page - first.page_number + 1
            try:
                self._context.turns.note_length(self._phone_number, pages)
            except BudgetSpentError as error:
                self._spent = str(error)
                raise


def resume_margin(config: Config) -> int:
    """By how many pages a backfill goes back where an earlier one stopped."""
    return _width(config) + 3


def _width(config: Config) -> int:
    """Pages of a list in flight, at most."""
    return 2 * config.api.max_concurrency


def _page_of(answer: Chat | Rejected | Withheld | None, observed_at: datetime) -> Page:
    """The answer to Get Chat; without a record if the chat is gone."""
    chats = (answer,) if isinstance(answer, Chat) else ()
    return Page(
        page_number=0,
        per_page=1,
        total_count=None,
        last_page=None,
        chats=chats,
        rejected=(answer,) if isinstance(answer, Rejected) else (),
        texts_cleaned=0,
        observed_at=observed_at,
        size=sum(chat.size for chat in chats),
        withheld=(answer.id,) if isinstance(answer, Withheld) else (),
    )


_ALLOW = "removals are withheld; if this is right, apply them with --allow-removals"

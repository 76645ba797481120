"""One number of a run: its list is walked into the database, and what it lacks is looked for."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Engine

from etl.api.client import LinqClient, RequestContext
from etl.api.decode import Chat, Page, Rejected
from etl.config import Config, PhoneNumber
from etl.db import run_log as runs
from etl.db.engine import in_reading, in_transaction
from etl.db.run_log import LastWalk, NumberOutcome
from etl.db.store.batch import ObservedPage
from etl.db.store.removals import Removals, known_chats
from etl.errors import ApiUnavailableError, RequestRefusedError, TokenRefusedError
from etl.phone import e164_or_none
from etl.sync.confirm import Confirmations, confirm_missing, suspicious
from etl.sync.progress import Report
from etl.sync.seen import ChatIds
from etl.sync.walk import Verdict, read_range, walk
from etl.sync.writer import Writer


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a run is asked to do.

    A `sync` walks each list and removes what is gone; a `backfill` removes nothing, and may read
    only some pages, from `first_page` (1 or, after an interruption, further on) to `last_page`.
    """

    numbers: tuple[PhoneNumber, ...]
    command: str = "sync"
    all_reached: bool = False
    prove: bool = False
    allow_removals: bool = False
    require_complete: bool = False
    first_page: int | None = None
    last_page: int | None = None


@dataclass(frozen=True, slots=True)
class RunContext:
    """What the numbers of one run share."""

    config: Config
    engine: Engine
    linq: LinqClient
    writer: Writer
    report: Report
    run_id: int
    now: Callable[[], datetime]


class NumberSync:
    """The reading of one number and what follows from it."""

    def __init__(
        self, tools: RunContext, plan: RunOptions, line: RequestContext, *, emit_created: bool
    ) -> None:
        self._tools = tools
        self._plan = plan
        self._line = line
        self._emit_created = emit_created
        self._width = 2 * tools.config.api.max_concurrency
        self._rejected = 0

    async def run(self) -> NumberOutcome:
        """Read the list as planned; raises what keeps it from being read to the end."""
        if self._plan.command == "backfill":
            first_page = await in_transaction(self._tools.engine, self._begin_backfill)
            if first_page > 1 or self._plan.last_page:
                return await self._read_range(first_page)
        with ChatIds() as ids:
            last_walk = await in_reading(self._tools.engine, lambda c: self._remember(c, ids))
            return await self._read_all(ids, last_walk)

    # A whole list

    def _remember(self, connection: Connection, ids: ChatIds) -> LastWalk | None:
        for missing, chat_ids in known_chats(connection, self._line.phone_number):
            ids.know(chat_ids, missing=missing)
        return runs.last_walk(connection, self._line.phone_number, before=self._tools.run_id)

    async def _read_all(self, ids: ChatIds, last_walk: LastWalk | None) -> NumberOutcome:
        verdict = await self._walk(ids)
        proved = self._plan.prove and await self._prove(ids, verdict)
        withheld = await self._look_for_missing(ids, verdict)
        proves = last_walk and ids.seen_last_time_and_now() == last_walk.total_count
        doubts = [withheld, None if proved else verdict.reason]
        return NumberOutcome(
            self._line.phone_number,
            "partial" if withheld or self._rejected else "succeeded",
            self._line.traffic,
            completeness="proved" if proved else verdict.completeness,
            reason="; ".join(filter(None, doubts)) or None,
            passes=ids.passes,
            evidence={
                "total_count": verdict.total_count,
                "first_total_count": verdict.first_total,
                "distinct_ids": verdict.distinct,
                "duplicates": verdict.duplicates,
                "shrinkages": verdict.shrinkages,
                "missing": ids.missing_count(),
            },
            proved_run=last_walk.run_id if last_walk and proves else None,
        )

    async def _walk(self, ids: ChatIds) -> Verdict:
        return await walk(
            self._fetch,
            self._deliver,
            ids,
            width=self._width,
            max_passes=self._tools.config.sync.max_passes,
        )

    async def _prove(self, ids: ChatIds, verdict: Verdict) -> bool:
        """Walk again now: were the chats seen both times as many as the first walk last counted?"""
        passes = ids.passes
        await self._walk(ids)
        return ids.seen_before_and_since(passes + 1) == verdict.total_count

    # What was known and not seen

    async def _look_for_missing(self, ids: ChatIds, verdict: Verdict) -> str | None:
        """Ask for the missing chats and settle what the answers tell; return what was withheld."""
        missing, known = ids.missing_count(), ids.known_count()
        if not missing or self._plan.command == "backfill":
            return None
        if verdict.distinct == 0 and not self._plan.allow_removals:
            return f"the list came back empty where {known} chats were known; {_ALLOW}"
        if unreached := await self._unreached():
            return unreached
        asked = list(ids.missing(self._tools.config.sync.max_confirmations))
        observed_at = self._tools.now()
        answers = await confirm_missing(
            asked,
            self._ask,
            width=self._tools.config.api.max_concurrency,
            enough=lambda gone: self._disbelieved(gone, known),
        )
        if answers.alive:
            await self._refresh(answers.alive, observed_at)
        return await self._settle(ids, answers, verdict, observed_at)

    async def _settle(
        self, ids: ChatIds, answers: Confirmations, verdict: Verdict, observed_at: datetime
    ) -> str | None:
        """Store what the answers tell, unless it is hard to believe; return what is in doubt."""
        missing, known = ids.missing_count(), ids.known_count()
        gone, alive = set(answers.gone), {chat.id for chat in answers.alive}
        complete = verdict.completeness == "consistent"
        left = alive & set(ids.missing_before()) if complete else set()
        # Those that were not asked for, or not answered, are taken to be as the others.
        expected = len(left) + len(gone) * missing // max(len(gone) + len(alive), 1)
        disbelieved = self._disbelieved(expected, known)
        if disbelieved:
            gone, left, still = set(), set(), alive
        else:
            still = set(ids.missing()) - left - gone
        await self._tools.writer.put(
            Removals(self._line.phone_number, tuple(gone), tuple(left), tuple(still), observed_at)
        )
        ids.settle((*gone, *left))
        if disbelieved:
            return f"about {expected} of {known} known chats are gone or not listed; {_ALLOW}"
        unknown = missing - len(gone) - len(alive)
        return f"{unknown} missing chats are unknown: not asked, or no answer" if unknown else None

    def _disbelieved(self, removed: int, known: int) -> bool:
        return suspicious(removed, known) and not self._plan.allow_removals

    async def _unreached(self) -> str | None:
        """Why this number's removals cannot be believed, if the token does not reach it now."""
        try:
            numbers = await self._tools.linq.list_phone_numbers(self._line)
        except (RequestRefusedError, TokenRefusedError):
            return None  # The token may list chats and not numbers; then this cannot be known.
        except ApiUnavailableError:
            return "whether the token still reaches the number is unknown; removals are withheld"
        if self._line.phone_number in {e164_or_none(number.phone_number) for number in numbers}:
            return None
        return f"the token's numbers do not include this one; {_ALLOW}"

    async def _ask(self, chat_id: int) -> Chat | Rejected | None:
        return await self._tools.linq.get_chat(self._line, chat_id)

    async def _refresh(self, chats: tuple[Chat, ...], observed_at: datetime) -> None:
        page = Page(
            page_number=0,
            per_page=len(chats),
            total_count=None,
            last_page=None,
            chats=chats,
            rejected=(),
            texts_cleaned=0,
            observed_at=observed_at,
        )
        await self._tools.writer.put(
            ObservedPage(self._line.phone_number, page, self._emit_created, listed=False)
        )

    # A part of a list

    def _begin_backfill(self, connection: Connection) -> int:
        """The page to begin at: as asked, else where an interrupted backfill came to."""
        first_page = self._plan.first_page or runs.resume_page(
            connection, self._line.phone_number, before=self._tools.run_id, margin=self._width + 3
        )
        runs.note_first_page(connection, self._tools.run_id, self._line.phone_number, first_page)
        return first_page

    async def _read_range(self, first_page: int) -> NumberOutcome:
        last = await read_range(
            self._fetch,
            self._deliver,
            first=first_page,
            last=self._plan.last_page,
            width=self._width,
        )
        return NumberOutcome(
            self._line.phone_number,
            "partial" if self._rejected else "succeeded",
            self._line.traffic,
            reason=f"only pages {first_page} to {last.page_number} were read; the next sync tells "
            "whether the list is complete",
            evidence={"total_count": last.total_count},
        )

    async def _fetch(self, page: int) -> Page:
        return await self._tools.linq.list_chats(self._line, page)

    async def _deliver(self, page: Page) -> None:
        self._rejected += len(page.rejected)
        await self._tools.writer.put(
            ObservedPage(self._line.phone_number, page, self._emit_created)
        )
        self._tools.report.page_read(self._line.phone_number, page)


_ALLOW = "removals are withheld; if this is right, let them through with --allow-removals"

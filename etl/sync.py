"""The main job: each number's list is walked, its pages stored, and all of it entered in the log.

A page's way: Linq.list_chats fetches and decodes it, walk keeps the books on it, Writer puts it
into the next transaction, where store writes it, and runs adds its counts.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from sqlalchemy import Connection, Engine

from etl import leases, log, runs
from etl.config import Config, PhoneNumber
from etl.database import database_clock, writing
from etl.errors import Busy, ConfigError, DatabaseError, EtlError
from etl.linq import Line, Linq, Traffic
from etl.pace import Pace
from etl.phone import shortened, to_e164
from etl.report import Report
from etl.runs import Claim, Ending, NumberOutcome, Record
from etl.staging import Listing
from etl.walk import walk
from etl.wire import Page
from etl.writer import Writer

T = TypeVar("T")

_NO_NUMBER = ""  # on whose bill the requests go that are for the whole run


@dataclass(frozen=True, slots=True)
class Result:
    """The run as the log has it, what went wrong in a sentence each, and the exit code."""

    record: Record
    errors: Sequence[str]
    exit_code: int


async def sync(
    config: Config,
    engine: Engine,
    numbers: Sequence[PhoneNumber],
    report: Report,
    *,
    all_reached: bool,
) -> Result:
    """Sync the numbers, and if `all_reached` and configured so, the others that the token reaches.

    Returns when every number has ended, well or not. Raises what ends the whole run: DatabaseError,
    LeaseLost, or, while the numbers are asked for, an error of the API. However it ends, and also
    when it is cancelled, the transaction in hand is finished and the run is closed first.
    """
    now = await asyncio.to_thread(database_clock, engine)
    lease_seconds = config.sync.lease_seconds
    run_id = await _transact(
        engine, lambda c: runs.start(c, "sync", now=now(), lease_seconds=lease_seconds)
    )
    pace = Pace(config.api.max_concurrency, config.api.max_requests_per_second)
    async with Linq(config.api, pace, now=now) as linq:
        job = _Job(config, engine, linq, report, run_id=run_id, now=now)
        try:
            await job.run(numbers, all_reached=all_reached)
        except asyncio.CancelledError:
            await job.close(Ending("interrupted", "interrupted", "ended by a signal"))
            raise
        except Exception as error:
            with suppress(DatabaseError):
                await job.close(Ending("failed", _kind(error), _sentence(error)))
            raise
        return Result(await job.close(job.ending()), job.errors(), job.exit_code())


class _Job:
    """One run under way: what it works with, and how its numbers ended so far."""

    def __init__(  # noqa: PLR0913  # its tools; they are made in one place and passed nowhere else
        self,
        config: Config,
        engine: Engine,
        linq: Linq,
        report: Report,
        *,
        run_id: int,
        now: Callable[[], datetime],
    ) -> None:
        self._config = config
        self._engine = engine
        self._linq = linq
        self._report = report
        self._run_id = run_id
        self._now = now
        self._traffic: dict[str, Traffic] = defaultdict(Traffic)
        self._writer = Writer(engine, run_id, now, self._traffic)
        self._outcomes: list[NumberOutcome] = []
        self._errors: dict[str, Exception] = {}

    async def run(self, configured: Sequence[PhoneNumber], *, all_reached: bool) -> None:
        """Sync every number that is free."""
        numbers = [*configured]
        if all_reached and self._config.sync.all_phone_numbers:
            numbers += await self._others(configured)
        claim = await _transact(
            self._engine, lambda c: runs.claim(c, self._run_id, numbers, self._now())
        )
        self._report.run_started(self._run_id, numbers)
        try:
            await self._sync_all([n for n in numbers if n.number in claim.held], claim)
        except BaseExceptionGroup as group:
            raise _first(group) from None

    def ending(self) -> Ending:
        """The run's status from its numbers': as they all ended, else partial."""
        statuses = {outcome.status for outcome in self._outcomes}
        status = statuses.pop() if len(statuses) == 1 else "partial"
        kinds = {outcome.error_kind for outcome in self._outcomes if outcome.status == "failed"}
        details = {o.error_detail for o in self._outcomes if o.status == "failed"}
        return Ending(
            status,
            kinds.pop() if len(kinds) == 1 else None,
            details.pop() if len(details) == 1 else None,
            self._traffic[_NO_NUMBER],
        )

    def exit_code(self) -> int:
        """0; or the one of the error that every number failed with; or 3."""
        if {outcome.status for outcome in self._outcomes} == {"succeeded"}:
            return 0
        codes = {_exit_code(error) for error in self._errors.values()}
        all_failed = len(self._errors) == len(self._outcomes)
        return codes.pop() if all_failed and len(codes) == 1 else 3

    def errors(self) -> list[str]:
        """A sentence for each number that failed; one for all that failed in the same way."""
        failed: dict[str, list[str]] = {}
        for number, error in self._errors.items():
            failed.setdefault(_sentence(error), []).append(shortened(number))
        return [f"{', '.join(numbers)}: {sentence}" for sentence, numbers in failed.items()]

    async def close(self, ending: Ending) -> Record:
        """Write the run's end; return its record."""

        def finish(connection: Connection) -> Record | None:
            runs.finish(connection, self._run_id, ending, self._now())
            return runs.one(connection, self._run_id)

        return await _transact(self._engine, finish) or {}

    async def _others(self, configured: Sequence[PhoneNumber]) -> list[PhoneNumber]:
        if self._config.token is None:
            raise ConfigError("all_phone_numbers needs a token: set $LINQ_INTEGRATION_TOKEN")
        line = Line(_NO_NUMBER, self._config.token, self._traffic[_NO_NUMBER])
        reached = {to_e164(n.phone_number) for n in await self._linq.list_phone_numbers(line)}
        return [PhoneNumber(n) for n in sorted(reached - {n.number for n in configured})]

    async def _sync_all(self, numbers: Sequence[PhoneNumber], claim: Claim) -> None:
        at_once = asyncio.Semaphore(self._config.api.max_concurrency)
        for phone_number, holder in claim.busy.items():
            self._note(_failure(phone_number, Traffic(), Busy(str(holder))), Busy(str(holder)))
        async with asyncio.TaskGroup() as background:
            helpers = [
                background.create_task(self._writer.run()),
                background.create_task(self._keep_leases()),
            ]
            async with asyncio.TaskGroup() as walks:
                for number in numbers:
                    walks.create_task(self._sync_number(number, claim, at_once))
            await self._writer.drain()
            for helper in helpers:
                helper.cancel()

    async def _sync_number(
        self, number: PhoneNumber, claim: Claim, at_once: asyncio.Semaphore
    ) -> None:
        """Walk one number's list into the database; its failure stays its own."""
        async with at_once:
            traffic = self._traffic[number.number]
            error: Exception | None = None
            try:
                outcome = await self._walk(number, traffic, news=number.number in claim.news)
            except EtlError as expected:
                error, outcome = expected, _failure(number.number, traffic, expected)
            except Exception as unexpected:  # noqa: BLE001  # a bug that one number's data brings out
                log.crash(unexpected)
                error, outcome = unexpected, _failure(number.number, traffic, unexpected)
            await self._writer.put(outcome)
            self._note(outcome, error)

    async def _walk(self, number: PhoneNumber, traffic: Traffic, *, news: bool) -> NumberOutcome:
        token = number.token or self._config.token
        if token is None:
            raise ConfigError("this number has no token: set its token_env, or api.token_file")
        line = Line(number.number, token, traffic)
        rejected = 0

        async def fetch(page: int) -> Page:
            return await self._linq.list_chats(line, page)

        async def deliver(page: Page) -> None:
            nonlocal rejected
            rejected += len(page.rejected)
            await self._writer.put(Listing(number.number, page, news))
            self._report.page_read(number.number, page)

        verdict = await walk(
            fetch,
            deliver,
            width=2 * self._config.api.max_concurrency,
            max_passes=self._config.sync.max_passes,
        )
        return NumberOutcome(
            number.number,
            "partial" if rejected else "succeeded",
            traffic,
            completeness=verdict.completeness,
            reason=verdict.reason,
            passes=verdict.passes,
            total_count=verdict.total_count,
        )

    def _note(self, outcome: NumberOutcome, error: Exception | None) -> None:
        self._outcomes.append(outcome)
        if error:
            self._errors[outcome.phone_number] = error
        self._report.number_ended(outcome)

    async def _keep_leases(self) -> None:
        """Move the run's expiry on, three times before it would come."""
        seconds = self._config.sync.lease_seconds
        while True:
            await asyncio.sleep(seconds / 3)
            with suppress(DatabaseError):  # A database that is gone is the writer's to report.
                await _transact(
                    self._engine,
                    lambda c: leases.renew(c, self._run_id, leases.expiry(self._now(), seconds)),
                )


async def _transact(engine: Engine, function: Callable[[Connection], T]) -> T:
    def in_thread() -> T:
        with writing(engine) as connection:
            return function(connection)

    return await asyncio.to_thread(in_thread)


def _failure(phone_number: str, traffic: Traffic, error: Exception) -> NumberOutcome:
    return NumberOutcome(
        phone_number, "failed", traffic, error_kind=_kind(error), error_detail=_sentence(error)
    )


def _kind(error: Exception) -> str:
    return error.kind if isinstance(error, EtlError) else EtlError.kind


def _sentence(error: Exception) -> str:
    # The text of an error that is not ours may hold people's data.
    return str(error) if isinstance(error, EtlError) else f"unexpected {type(error).__name__}"


def _exit_code(error: Exception) -> int:
    return error.exit_code if isinstance(error, EtlError) else EtlError.exit_code


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended the run; what else is in the group came of it."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first

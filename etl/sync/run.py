"""The main job: a run over many numbers, from its row in the run log to its exit code.

A page's way: Linq.list_chats fetches and decodes it, walk keeps the books on it, NumberSync hands
it to Writer, which puts it into the next transaction, where store writes it and runs adds its
counts.
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import Connection, Engine

from etl import log
from etl.api.client import LinqClient, RequestContext
from etl.api.pace import ApiUsage
from etl.config import Config, PhoneNumber, Token
from etl.db import leases
from etl.db import run_log as runs
from etl.db.engine import database_clock, in_transaction
from etl.db.run_log import Claim, NumberOutcome, Record, RunOutcome
from etl.errors import BusyError, ConfigError, DatabaseError, EtlError
from etl.phone import e164_or_none, shortened
from etl.sync.number import NumberSync, RunContext, RunOptions
from etl.sync.progress import Report
from etl.sync.writer import Writer

_NO_NUMBER = ""  # on whose bill the requests go that are for the whole run


@dataclass(frozen=True, slots=True)
class Result:
    """The run as the log has it, what went wrong in a sentence each, and the exit code."""

    record: Record
    errors: Sequence[str]
    exit_code: int


async def sync(
    config: Config, engine: Engine, linq: LinqClient, *, plan: RunOptions, report: Report
) -> Result:
    """Sync the numbers of the plan, and if it says so all others that the token reaches.

    Returns when every number has ended, well or not. Raises what ends the whole run: DatabaseError,
    LeaseLost, or, while the numbers are asked for, an error of the API. However it ends, and also
    when it is cancelled, the transaction in hand is finished and the run is closed first.
    """
    now = await asyncio.to_thread(database_clock, engine)
    lease_seconds = config.sync.lease_seconds
    run_id = await in_transaction(
        engine, lambda c: runs.start(c, plan.command, now=now(), lease_seconds=lease_seconds)
    )
    traffic: dict[str, ApiUsage] = defaultdict(ApiUsage)
    writer = Writer(engine, run_id, now, traffic)
    job = _Run(RunContext(config, engine, linq, writer, report, run_id, now), plan, traffic)
    try:
        await job.run()
    except asyncio.CancelledError:
        await job.close(RunOutcome("interrupted", "interrupted", "ended by a signal"))
        raise
    except Exception as error:
        with suppress(DatabaseError):
            await job.close(RunOutcome("failed", _kind(error), _sentence(error)))
        raise
    else:
        return Result(await job.close(job.ending()), job.errors(), job.exit_code())


class _Run:
    """One run under way: what it works with, and how its numbers ended so far."""

    def __init__(
        self, tools: RunContext, plan: RunOptions, traffic: Mapping[str, ApiUsage]
    ) -> None:
        self._tools = tools
        self._plan = plan
        self._traffic = traffic
        self._outcomes: list[NumberOutcome] = []
        self._errors: dict[str, Exception] = {}

    async def run(self) -> None:
        """Sync every number that is free."""
        numbers = [*self._plan.numbers]
        if self._plan.all_reached:
            numbers += await self._others()
        claim = await in_transaction(
            self._tools.engine,
            lambda c: runs.claim(c, self._tools.run_id, numbers, self._tools.now()),
        )
        self._tools.report.run_started(self._tools.run_id, numbers)
        try:
            await self._sync_all([n for n in numbers if n.e164 in claim.held], claim)
        except BaseExceptionGroup as group:
            raise _first(group) from None

    def ending(self) -> RunOutcome:
        """The run's status from its numbers': as they all ended, else partial."""
        statuses = {outcome.status for outcome in self._outcomes}
        status = statuses.pop() if len(statuses) == 1 else "partial"
        kinds = {outcome.error_kind for outcome in self._outcomes if outcome.status == "failed"}
        details = {o.error_detail for o in self._outcomes if o.status == "failed"}
        return RunOutcome(
            status,
            kinds.pop() if len(kinds) == 1 else None,
            details.pop() if len(details) == 1 else None,
            self._traffic[_NO_NUMBER],
        )

    def exit_code(self) -> int:
        """0; or the one of the error that every number failed with; or 3."""
        if {outcome.status for outcome in self._outcomes} == {"succeeded"}:
            unproved = any(outcome.completeness == "unproved" for outcome in self._outcomes)
            return 3 if unproved and self._plan.require_complete else 0
        codes = {_exit_code(error) for error in self._errors.values()}
        all_failed = len(self._errors) == len(self._outcomes)
        return codes.pop() if all_failed and len(codes) == 1 else 3

    def errors(self) -> list[str]:
        """A sentence for each number that failed; one for all that failed in the same way."""
        failed: dict[str, list[str]] = {}
        for number, error in self._errors.items():
            failed.setdefault(_sentence(error), []).append(shortened(number))
        return [f"{', '.join(numbers)}: {sentence}" for sentence, numbers in failed.items()]

    async def close(self, ending: RunOutcome) -> Record:
        """Write the run's end; return its record."""
        run_id, now = self._tools.run_id, self._tools.now()

        def finish(connection: Connection) -> Record | None:
            runs.finish(connection, run_id, ending, now)
            return runs.get_run(connection, run_id)

        return await in_transaction(self._tools.engine, finish) or {}

    async def _others(self) -> list[PhoneNumber]:
        token = self._tools.config.token
        if token is None:
            raise ConfigError("all_phone_numbers needs a token: set $LINQ_INTEGRATION_TOKEN")
        line = RequestContext(_NO_NUMBER, token, self._traffic[_NO_NUMBER])
        listed = await self._tools.linq.list_phone_numbers(line)
        reached = {e164_or_none(number.phone_number) for number in listed}
        known = {number.e164 for number in self._plan.numbers}
        return [
            PhoneNumber(number) for number in sorted(filter(None, reached)) if number not in known
        ]

    async def _sync_all(self, numbers: Sequence[PhoneNumber], claim: Claim) -> None:
        # More than requests at a time, because numbers also wait for the database.
        at_once = asyncio.Semaphore(3 * self._tools.config.api.max_concurrency - 2)
        for phone_number, holder in claim.busy.items():
            busy = BusyError(str(holder))
            self._note(_failure(phone_number, ApiUsage(), busy), busy)
        async with asyncio.TaskGroup() as background:
            helpers = [
                background.create_task(self._tools.writer.run()),
                background.create_task(self._keep_leases()),
            ]
            async with asyncio.TaskGroup() as walks:
                for number in numbers:
                    walks.create_task(self._sync_number(number, claim, at_once))
            await self._tools.writer.drain()
            for helper in helpers:
                helper.cancel()

    async def _sync_number(
        self, number: PhoneNumber, claim: Claim, at_once: asyncio.Semaphore
    ) -> None:
        """Sync one number; its failure stays its own."""
        async with at_once:
            traffic = self._traffic[number.e164]
            error: Exception | None = None
            try:
                line = RequestContext(number.e164, self._token(number), traffic)
                emit_created = number.e164 in claim.emit_created
                outcome = await NumberSync(
                    self._tools, self._plan, line, emit_created=emit_created
                ).run()
            except EtlError as expected:
                error, outcome = expected, _failure(number.e164, traffic, expected)
            except Exception as unexpected:  # noqa: BLE001  # a bug that one number brings out
                log.crash(unexpected)
                error, outcome = unexpected, _failure(number.e164, traffic, unexpected)
            await self._tools.writer.put(outcome)
            self._note(outcome, error)

    def _token(self, number: PhoneNumber) -> Token:
        token = number.token or self._tools.config.token
        if token is None:
            raise ConfigError("this number has no token: set its token_env, or api.token_file")
        return token

    def _note(self, outcome: NumberOutcome, error: Exception | None) -> None:
        self._outcomes.append(outcome)
        if error:
            self._errors[outcome.phone_number] = error
        self._tools.report.number_ended(outcome)

    async def _keep_leases(self) -> None:
        """Move the run's expiry on, three times before it would come."""
        tools, seconds = self._tools, self._tools.config.sync.lease_seconds
        while True:
            await asyncio.sleep(seconds / 3)
            with suppress(DatabaseError):  # A database that is gone is the writer's to report.
                await in_transaction(
                    tools.engine,
                    lambda c: leases.renew(c, tools.run_id, leases.expiry(tools.now(), seconds)),
                )


def _failure(phone_number: str, traffic: ApiUsage, error: Exception) -> NumberOutcome:
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

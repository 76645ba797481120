"""The main job: claim numbers, sync them side by side, close the run, derive the exit code."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Engine

from etl import log
from etl.api.client import LinqClient, RequestContext
from etl.config import Config, PhoneNumber, Token
from etl.db import run_log
from etl.db.api_pace import read_rates, write_rates
from etl.db.engine import clock_of
from etl.db.run_log import Claim, NumberOutcome, Record, RunOutcome
from etl.db.transactions import Transactions
from etl.errors import BusyError, ConfigError, DatabaseError, EtlError
from etl.phone import e164_or_none, shortened
from etl.sync.budget import Budget
from etl.sync.lease_keeper import LeaseKeeper
from etl.sync.number import NumberSync, RunContext, RunOptions
from etl.sync.progress import Progress
from etl.sync.writer import Writer

MAX_REACHED = 10_000  # phone numbers beside the configured ones


@dataclass(frozen=True, slots=True)
class RunResult:
    """The run's record from the log, a sentence per error, and the exit code."""

    record: Record
    errors: Sequence[str]
    exit_code: int


async def sync(
    config: Config, engine: Engine, client: LinqClient, *, options: RunOptions, progress: Progress
) -> RunResult:
    """Sync the numbers of `options`, and with `all_reached` every other number of the token.

    Returns when every number has ended; a number's failure is in the result. Raises what ends the
    whole run: DatabaseError, LeaseLostError, or an API error while the numbers are listed. In every
    case, cancellation included, the transaction in progress ends and the run is closed first.
    """
    transactions = Transactions(engine, patience=config.database.patience)
    clock = await transactions.read(clock_of)
    lease_keeper = LeaseKeeper(transactions, clock, config.sync.lease_seconds)
    now = clock()
    run_id = await transactions.write(lambda c: _start(c, config, options, now))
    transactions.run_id = run_id
    writer = Writer(transactions, run_id, clock, client.usage)
    budget = Budget(config.sync.max_requests)
    context = RunContext(config, transactions, client, writer, budget, progress, run_id, clock)
    run = _Run(context, options, lease_keeper)
    try:
        await run.run()
    except asyncio.CancelledError:
        transactions.end()
        with suppress(DatabaseError):
            await run.close(RunOutcome("interrupted", "interrupted", "ended by a signal"))
        raise
    except Exception as error:
        if isinstance(error, DatabaseError):
            transactions.end()  # It has waited for the database long enough.
        with suppress(DatabaseError):
            await run.close(RunOutcome("failed", _kind(error), _sentence(error)))
        raise
    else:
        return RunResult(await run.close(run.outcome()), run.errors(), run.exit_code())


def _start(connection: Connection, config: Config, options: RunOptions, now: datetime) -> int:
    lease_seconds = config.sync.lease_seconds
    return run_log.start(connection, options.command, now=now, lease_seconds=lease_seconds)


class _Run:
    """A run in progress: the outcomes and errors of its numbers so far."""

    def __init__(self, context: RunContext, options: RunOptions, lease_keeper: LeaseKeeper) -> None:
        self._context = context
        self._lease_keeper = lease_keeper
        self._options = options
        self._outcomes: list[NumberOutcome] = []
        # Not the errors themselves: their tracebacks hold what the numbers had in memory.
        self._exit_codes: set[int] = set()
        self._left_out = 0  # numbers that the token reaches, beyond MAX_REACHED

    async def run(self) -> None:
        """Sync every number that no other run holds."""
        await self._lease_keeper.close_dead_runs()
        numbers = [*self._options.numbers]
        if self._options.all_reached:
            numbers += await self._reached_numbers()
        context = self._context
        now = context.clock()
        claim = await context.transactions.write(
            lambda c: run_log.claim(c, context.run_id, numbers, now)
        )
        context.progress.run_started(context.run_id, numbers)
        for phone_number, holder in claim.busy.items():
            self._fail(phone_number, BusyError(str(holder)))
        try:
            held = [number for number in numbers if number.e164 in claim.held]
            await self._set_rates(held)
            await self._sync_all(held, claim)
        except BaseExceptionGroup as group:
            raise _first(group) from None

    def outcome(self) -> RunOutcome:
        """The run's status: that of its numbers if they agree, else partial."""
        statuses = {outcome.status for outcome in self._outcomes}
        failed = [outcome for outcome in self._outcomes if outcome.status == "failed"]
        kinds = {outcome.error_kind for outcome in failed}
        details = {outcome.error_detail for outcome in failed}
        return RunOutcome(
            statuses.pop() if len(statuses) == 1 and not self._left_out else "partial",
            kinds.pop() if len(kinds) == 1 else None,
            details.pop() if len(details) == 1 else None,
            self._context.client.usage[None],
        )

    def exit_code(self) -> int:
        """0 if all numbers succeeded; their common exit code if all failed alike; else 3."""
        statuses = {outcome.status for outcome in self._outcomes}
        if statuses == {"succeeded"} and not self._left_out:
            unproved = any(outcome.completeness == "unproved" for outcome in self._outcomes)
            return 3 if unproved and self._options.require_complete else 0
        alike = statuses == {"failed"} and len(self._exit_codes) == 1
        return min(self._exit_codes) if alike else 3

    def errors(self) -> list[str]:
        """A sentence per cause, after the numbers that it stopped."""
        failed: dict[str, list[str]] = {}
        for each in self._outcomes:
            if each.error_detail:
                failed.setdefault(each.error_detail, []).append(shortened(each.phone_number))
        errors = [f"{', '.join(numbers)}: {sentence}" for sentence, numbers in failed.items()]
        if self._left_out:
            errors.append(
                f"The API lists over {MAX_REACHED} phone numbers: {self._left_out} of them were "
                "left out. Name them in sync.phone_numbers."
            )
        return errors

    async def close(self, outcome: RunOutcome) -> Record:
        """Write the run's end to the run log and return its record."""
        run_id, now = self._context.run_id, self._context.clock()
        base_url, rates = self._context.config.api.base_url, self._context.client.rates()

        def finish(connection: Connection) -> Record | None:
            run_log.finish(connection, run_id, outcome, now)
            write_rates(connection, base_url, rates, now)
            return run_log.get_run(connection, run_id)

        return await self._context.transactions.write(finish) or {}

    async def _reached_numbers(self) -> list[PhoneNumber]:
        """The numbers that the default token reaches and that are not configured."""
        token = self._context.config.token
        if token is None:
            raise ConfigError("all_phone_numbers needs a token: set $LINQ_INTEGRATION_TOKEN")
        self._context.budget.take()
        listed = await self._context.client.list_phone_numbers(RequestContext(None, token))
        reached = {e164_or_none(number.phone_number) for number in listed} - {None}
        known = {number.e164 for number in self._options.numbers}
        others = sorted(filter(None, reached - known))
        self._left_out = len(others[MAX_REACHED:])
        return [PhoneNumber(number) for number in others[:MAX_REACHED]]

    async def _set_rates(self, numbers: Sequence[PhoneNumber]) -> None:
        """Start each token with the rate that an earlier run learned."""
        context = self._context
        tokens = {number.token or context.config.token for number in numbers} - {None}
        base_url, now = context.config.api.base_url, context.clock()
        rates = await context.transactions.read(
            lambda c: read_rates(c, base_url, [*filter(None, tokens)], now)
        )
        for token, rate in rates.items():
            context.client.set_rate(token, rate)

    async def _sync_all(self, numbers: Sequence[PhoneNumber], claim: Claim) -> None:
        async with asyncio.TaskGroup() as background:
            helpers = [
                background.create_task(self._context.writer.run()),
                background.create_task(self._lease_keeper.run(self._context.run_id)),
            ]
            # More numbers than requests in flight, because numbers also wait for the database.
            remaining = iter(numbers)
            async with asyncio.TaskGroup() as syncs:
                for _ in range(3 * self._context.config.api.max_concurrency - 2):
                    syncs.create_task(self._sync_each(remaining, claim))
            await self._context.writer.drain()
            for helper in helpers:
                helper.cancel()

    async def _sync_each(self, numbers: Iterator[PhoneNumber], claim: Claim) -> None:
        """Sync one number after another; the failure of one does not stop the others."""
        for number in numbers:
            outcome = await self._sync_number(number, emit_created=number.e164 in claim.loaded)
            await self._context.writer.put(outcome)

    async def _sync_number(self, number: PhoneNumber, *, emit_created: bool) -> NumberOutcome:
        try:
            request = RequestContext(number.e164, self._token(number))
            self._context.progress.number_started(number.e164)
            one = NumberSync(self._context, self._options, request, emit_created=emit_created)
            outcome = await one.run()
        except EtlError as error:
            return self._fail(number.e164, error)
        except Exception as error:  # noqa: BLE001  # a bug that one number triggers
            log.crash(error)
            return self._fail(number.e164, error)
        self._note(outcome)
        return outcome

    def _token(self, number: PhoneNumber) -> Token:
        token = number.token or self._context.config.token
        if token is None:
            raise ConfigError("this number has no token: set its token_env, or api.token_file")
        return token

    def _fail(self, phone_number: str, error: Exception) -> NumberOutcome:
        self._exit_codes.add(_exit_code(error))
        outcome = NumberOutcome(
            phone_number,
            "failed",
            self._context.client.usage[phone_number],
            error_kind=_kind(error),
            error_detail=_sentence(error),
        )
        self._note(outcome)
        return outcome

    def _note(self, outcome: NumberOutcome) -> None:
        self._outcomes.append(outcome)
        self._context.progress.number_ended(outcome)


def _kind(error: Exception) -> str:
    return error.kind if isinstance(error, EtlError) else EtlError.kind


def _sentence(error: Exception) -> str:
    # The text of a foreign error may hold people's data.
    return str(error) if isinstance(error, EtlError) else f"unexpected {type(error).__name__}"


def _exit_code(error: Exception) -> int:
    return error.exit_code if isinstance(error, EtlError) else EtlError.exit_code


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended the run; the others in the group follow from it."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first

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
from etl.db.engine import clock_of
from etl.db.run_log import NumberOutcome, Record, RunOutcome
from etl.db.tokens import read_rates, write_rates
from etl.db.transactions import Transactions
from etl.errors import BusyError, ConfigError, DatabaseError, EtlError
from etl.sync.budget import Budget
from etl.sync.lease_keeper import LeaseKeeper
from etl.sync.number import NumberSync, RunContext, RunOptions
from etl.sync.progress import Progress
from etl.sync.reach import Reach
from etl.sync.room import Room
from etl.sync.summary import cause, grouped_errors
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
    writer = Writer(transactions, run_id, clock, client.usage, progress.number_ended)
    budget = Budget(config.sync.max_requests)
    tokens = {number.e164: number.token or config.token for number in options.numbers}
    reach = Reach(client, transactions, budget, config.api, tokens, clock)
    context = RunContext(
        config, transactions, client, writer, budget, reach, progress, run_id, clock, Room()
    )
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
        self._labels: dict[str, str | None] = {}

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
        self._labels = {number.e164: number.label for number in numbers}
        context.progress.run_started(context.run_id, numbers)
        for phone_number, holder in claim.busy.items():
            context.progress.number_ended(self._fail(phone_number, BusyError(str(holder))))
        try:
            held = [number for number in numbers if number.e164 in claim.held]
            await self._set_rates(held)
            await self._sync_all(held)
        except BaseExceptionGroup as group:
            raise _first(group) from None

    def outcome(self) -> RunOutcome:
        """The run's status: that of its numbers if they agree, else partial."""
        statuses = {outcome.status for outcome in self._outcomes}
        failed = [outcome for outcome in self._outcomes if outcome.status == "failed"]
        kinds = {outcome.error_kind for outcome in failed}
        details = [outcome.error_detail for outcome in failed if outcome.error_detail]
        return RunOutcome(
            statuses.pop() if len(statuses) == 1 and not self._left_out else "partial",
            kinds.pop() if len(kinds) == 1 else None,
            details[0] if len(set(map(cause, details))) == 1 else None,
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
        failed = [
            {"phone_number": each.phone_number, "error_detail": each.error_detail}
            for each in self._outcomes
        ]
        errors = grouped_errors(failed, len(self._outcomes), self._labels)
        if self._left_out:
            errors.append(
                f"The API lists over {MAX_REACHED} phone numbers: {self._left_out} of them were "
                "left out. Name them in sync.phone_numbers."
            )
        return errors

    async def close(self, outcome: RunOutcome) -> Record:
        """Write the run's end to the run log, tell it, and return its record."""
        run_id, now = self._context.run_id, self._context.clock()
        base_url, rates = self._context.config.api.base_url, self._context.client.rates()

        def finish(connection: Connection) -> Record | None:
            run_log.finish(connection, run_id, outcome, now)
            write_rates(connection, base_url, rates, now)
            return run_log.get_run(connection, run_id)

        record = await self._context.transactions.write(finish)
        if record is None:
            return {}
        self._context.progress.run_ended(record)
        return record

    async def _reached_numbers(self) -> list[PhoneNumber]:
        """The numbers that the default token reaches and that are not configured."""
        token = self._context.config.token
        if token is None:
            raise ConfigError("all_phone_numbers needs a token: set $LINQ_INTEGRATION_TOKEN")
        self._context.budget.take()
        reached = await self._context.reach.list_numbers(RequestContext(None, token))
        others = sorted(reached - {number.e164 for number in self._options.numbers})
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

    async def _sync_all(self, numbers: Sequence[PhoneNumber]) -> None:
        async with asyncio.TaskGroup() as background:
            helpers = [
                background.create_task(self._context.writer.run()),
                background.create_task(self._lease_keeper.run(self._context.run_id)),
            ]
            # More numbers than requests in flight, because numbers also wait for the database.
            remaining = iter(numbers)
            async with asyncio.TaskGroup() as syncs:
                for _ in range(3 * self._context.config.api.max_concurrency - 2):
                    syncs.create_task(self._sync_each(remaining))
            await self._context.writer.drain()
            for helper in helpers:
                helper.cancel()

    async def _sync_each(self, numbers: Iterator[PhoneNumber]) -> None:
        """Sync one number after another; the failure of one does not stop the others."""
        for number in numbers:
            outcome = await self._sync_number(number)
            await self._context.writer.put(outcome)

    async def _sync_number(self, number: PhoneNumber) -> NumberOutcome:
        try:
            request = RequestContext(number.e164, self._token(number))
            self._context.progress.number_started(number.e164)
            outcome = await NumberSync(self._context, self._options, request).run()
        except EtlError as error:
            return self._fail(number.e164, error)
        except Exception as error:  # noqa: BLE001  # a bug that one number triggers
            log.crash(error)
            return self._fail(number.e164, error)
        self._outcomes.append(outcome)
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
        self._outcomes.append(outcome)
        return outcome


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

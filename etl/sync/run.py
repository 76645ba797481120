"""The main job: claim numbers, sync them side by side, close the run, derive the exit code."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from sqlalchemy import Connection, Engine

from etl import log
from etl.api.client import LinqClient, RequestContext
from etl.config import Config, PhoneNumber, Token
from etl.db import run_log
from etl.db.engine import clock_of
from etl.db.run_log import NumberOutcome, Record, RunOutcome
from etl.db.tables import Status
from etl.db.tokens import write_rates
from etl.db.transactions import READERS, Transactions
from etl.errors import (
    BusyError,
    ConfigError,
    DatabaseConflictError,
    DatabaseError,
    EtlError,
    LeaseLostError,
)
from etl.sync.budget import Budget
from etl.sync.context import RunContext, RunOptions
from etl.sync.dry_run import DryWriter
from etl.sync.failures import code_of, first_of, kind_of, sentence_of
from etl.sync.join import SharedList
from etl.sync.lease_keeper import LeaseKeeper
from etl.sync.number import NumberSync, resume_margin
from etl.sync.privacy import agreed
from etl.sync.progress import Progress
from etl.sync.quick.plan import known_good
from etl.sync.rates import SharedRates
from etl.sync.reach import Reach
from etl.sync.room import Room
from etl.sync.shard import Shard
from etl.sync.summary import cause, grouped_errors
from etl.sync.turns import LEFT_OUT, Turns
from etl.sync.writer import Writer

Clock = Callable[[], datetime]
Take = Callable[[], Awaitable[PhoneNumber | None]]  # the next number to sync; None if there is none

MAX_JOINS = 4  # of one process, which was taken for dead each time
MAX_REACHED = 10_000  # phone numbers beside the configured ones


@dataclass(frozen=True, slots=True)
class RunResult:
    """The run's record from the log, a sentence per error, and the exit code."""

    record: Record
    errors: Sequence[str]
    exit_code: int


async def sync(  # noqa: PLR0913  # what tests replace
    config: Config,
    engine: Engine,
    client: LinqClient,
    *,
    options: RunOptions,
    progress: Progress,
    clock: Clock | None = None,
) -> RunResult:
    """Sync the numbers of `options`, and with `all_reached` every other number of the token.

    Returns when every number has ended; a number's failure is in the result. Raises what ends the
    whole run: DatabaseError, LeaseLostError, or an API error while the numbers are listed. In every
    case, cancellation included, the transaction in progress ends and the run is closed first.

    A run that shares its numbers and was taken for dead joins the others again, as a new run. The
    times to record are those of `clock`, else the database's.
    """
    read_clock = (lambda _: clock) if clock else clock_of
    attempt = partial(
        _sync, config, engine, client, options=options, progress=progress, read_clock=read_clock
    )
    if options.since is None:
        return await attempt()
    transactions = Transactions(engine, patience=config.database.patience)
    begun = (await transactions.read(read_clock))()
    for _ in range(MAX_JOINS):
        try:
            return await attempt(begun=begun)
        except LeaseLostError as error:
            log.warning("joining_again", reason=str(error))
            client.usage.clear()
    raise DatabaseConflictError(
        f"This process was taken for dead {MAX_JOINS} times; set sync.lease_seconds higher than it "
        "can stall."
    )


async def _sync(  # noqa: PLR0913  # those of `sync`
    config: Config,
    engine: Engine,
    client: LinqClient,
    *,
    options: RunOptions,
    progress: Progress,
    read_clock: Callable[[Connection], Clock],
    begun: datetime | None = None,
) -> RunResult:
    # The more processes there are, the fewer connections each one may take.
    readers = 1 if begun or options.shard else READERS
    transactions = Transactions(engine, patience=config.database.patience, readers=readers)
    clock = await transactions.read(read_clock)
    lease_seconds, is_dry_run = config.sync.lease_seconds, options.is_dry_run
    lease_keeper = LeaseKeeper(transactions, clock, lease_seconds, closes_others=not is_dry_run)
    start = partial(_start, config=config, options=options, now=clock())
    run_id = await transactions.write(start)
    transactions.run_id = run_id
    create = DryWriter if is_dry_run else Writer
    writer = create(transactions, run_id, clock, client.usage, config.sync.quick_recall)
    budget = Budget(config.sync.max_requests)
    configured = (*config.sync.phone_numbers, *options.numbers)
    tokens = {number.e164: number.token or config.token for number in configured}
    turns = Turns(budget, config.api.per_page, _most_needed(config, options))
    reach = Reach(client, transactions, budget, config.api, tokens, clock, is_dry_run)
    context = RunContext(
        config, transactions, client, writer, turns, reach, progress, run_id, clock, Room()
    )
    run = _Run(context, options, lease_keeper, _shared_list(context, lease_keeper, options, begun))
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
            await run.close(RunOutcome("failed", kind_of(error), sentence_of(error)))
        raise
    else:
        return RunResult(await run.close(run.outcome()), run.errors(), run.exit_code())


def _shared_list(
    context: RunContext, keeper: LeaseKeeper, options: RunOptions, begun: datetime | None
) -> SharedList | None:
    if begun is None or options.since is None:
        return None
    since, is_quick = begun - options.since, options.mode == "quick"
    return SharedList(context, keeper, since, begun, is_quick=is_quick)


def _start(connection: Connection, config: Config, options: RunOptions, now: datetime) -> int:
    lease_seconds = config.sync.lease_seconds
    command, mode = options.command, options.mode
    return run_log.start(connection, command, mode, now=now, lease_seconds=lease_seconds)


def _most_needed(config: Config, options: RunOptions) -> int | None:
    """How many requests are enough to get on with a number, if the next run goes on from there."""
    return resume_margin(config) + 2 if options.command == "backfill" else None


class _Run:
    """A run in progress: the outcomes and errors of its numbers so far."""

    def __init__(
        self,
        context: RunContext,
        options: RunOptions,
        lease_keeper: LeaseKeeper,
        shared: SharedList | None,
    ) -> None:
        self._context = context
        self._shared = shared
        self._lease_keeper = lease_keeper
        self._options = options
        self._outcomes: list[NumberOutcome] = []
        # Not the errors themselves: their tracebacks hold what the numbers had in memory.
        self._exit_codes: set[int] = set()
        self._left_out = 0  # numbers that the token reaches, beyond MAX_REACHED
        self._labels: dict[str, str | None] = {}
        context.writer.on_closed = self.closed
        base_url = context.config.api.base_url
        self._rates = SharedRates(context.client, context.transactions, base_url, context.clock)

    async def run(self) -> None:
        """Sync every number that no other run holds."""
        await self._lease_keeper.close_dead_runs()
        numbers = [*self._options.numbers]
        if self._options.all_reached:
            numbers += await self._reached_numbers()
        await self._agree_on_privacy(numbers)
        if self._options.shard:
            numbers = await self._of_shard(self._options.shard, numbers)
        self._labels = {number.e164: number.label for number in numbers}
        numbers = await self._in_turn(numbers)
        try:
            tokens = {number.token or self._context.config.token for number in numbers}
            await self._rates.begin([*filter(None, tokens)])
            if self._shared:
                await self._shared.begin(numbers)
                self._context.progress.run_started(self._context.run_id, numbers)
                await self._sync_all(self._shared.take)
            else:
                await self._sync_all(await self._claim(numbers))
        except BaseExceptionGroup as group:
            raise first_of(group) from None

    async def _in_turn(self, numbers: Sequence[PhoneNumber]) -> list[PhoneNumber]:
        context, now = self._context, self._context.clock()
        quick: Collection[str] = ()
        if self._options.mode == "quick" and context.turns.is_limited:
            e164, full_every = [each.e164 for each in numbers], context.config.sync.full_every_span
            quick = await context.transactions.read(lambda c: known_good(c, e164, now, full_every))
        return await context.turns.ordered(context.transactions, numbers, quick)

    async def _agree_on_privacy(self, numbers: Sequence[PhoneNumber]) -> None:
        context, own = self._context, [number.e164 for number in numbers]
        writes = not self._options.is_dry_run
        privacy = await agreed(context.transactions, context.config, own, writes=writes)
        context.client.privacy = context.writer.privacy = privacy

    async def _of_shard(self, shard: Shard, numbers: Sequence[PhoneNumber]) -> list[PhoneNumber]:
        """The numbers of the shard; the others are stored too.

        One run asks for all of them which its token reaches.
        """
        context, now = self._context, self._context.clock()
        if not self._options.is_dry_run:
            await context.transactions.write(lambda c: run_log.remember_numbers(c, numbers, now))
        found = [number for number in numbers if shard.has(number.e164)]
        if not found:
            why = f"no number of the list is in shard {shard}"
            log.info("nothing_to_do", numbers=len(numbers), reason=why)
        return found

    async def _claim(self, numbers: Sequence[PhoneNumber]) -> Take:
        """Claim all numbers at once; those that are busy end here."""
        context, now = self._context, self._context.clock()
        claim = await context.transactions.write(lambda c: context.writer.claim(c, numbers, now))
        context.progress.run_started(context.run_id, numbers)
        for phone_number, holder in claim.busy.items():
            self._outcomes.append(self._failed(phone_number, BusyError(str(holder))))
            context.progress.number_ended(self._outcomes[-1])
        held = iter([number for number in numbers if number.e164 in claim.held])

        async def take() -> PhoneNumber | None:
            return next(held, None)

        return take

    def closed(self, outcome: NumberOutcome) -> None:
        """Tell that a number has ended, and that is in the run log."""
        self._context.progress.number_ended(outcome)
        if self._shared:
            self._shared.closed(outcome)

    def outcome(self) -> RunOutcome:
        """The run's status: that of its numbers if they agree, else partial."""
        statuses = {outcome.status for outcome in self._outcomes}
        failed = [outcome for outcome in self._outcomes if outcome.status == "failed"]
        kinds = {outcome.error_kind for outcome in failed}
        details = [outcome.error_detail for outcome in failed if outcome.error_detail]
        return RunOutcome(
            statuses.pop() if len(statuses) == 1 and not self._left_out else self._mixed,
            kinds.pop() if len(kinds) == 1 else None,
            details[0] if len(set(map(cause, details))) == 1 else None,
            self._context.client.usage[None],
        )

    @property
    def _mixed(self) -> Status:
        """The status of a run whose numbers do not agree on one."""
        is_part = self._shared or self._options.shard
        return "succeeded" if is_part and not self._outcomes and not self._left_out else "partial"

    def exit_code(self) -> int:
        """0 if all numbers succeeded; their common exit code if all failed alike; else 3."""
        if self._shared and (code := self._shared.exit_code()):
            return code
        statuses = {each.status for each in self._outcomes}
        if self._shared:  # What failed has succeeded in another run since.
            statuses.discard("failed")
        is_empty = not statuses and (self._shared or self._options.shard)
        if (statuses == {"succeeded"} or is_empty) and not self._left_out:
            lacks = any(each.completeness in {"unproved", "quick"} for each in self._outcomes)
            return 3 if lacks and self._options.require_complete else 0
        return min(self._exit_codes) if statuses == {"failed"} and len(self._exit_codes) == 1 else 3

    def errors(self) -> list[str]:
        """A sentence per cause, after the numbers that it stopped."""
        if self._shared:
            failures = {n: each.detail for n, each in self._shared.left().items()}
            total = self._shared.size
        else:
            failures = {each.phone_number: each.error_detail for each in self._outcomes}
            total = len(self._outcomes)
        failed = [{"phone_number": n, "error_detail": why} for n, why in failures.items()]
        errors = grouped_errors(failed, total, self._labels)
        if self._left_out:
            errors.append(
                f"The API lists over {MAX_REACHED} phone numbers: {self._left_out} of them were "
                "left out. Name them in sync.phone_numbers."
            )
        return errors

    async def close(self, outcome: RunOutcome) -> Record:
        """Write the run's end to the run log, tell it, and return its record."""
        now, base_url = self._context.clock(), self._context.config.api.base_url
        rates = {} if self._options.is_dry_run else self._context.client.rates()

        def finish(connection: Connection) -> Record | None:
            record = self._context.writer.finish(connection, outcome, now)
            write_rates(connection, base_url, rates, now)
            return record

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
        self._context.reach.budget.take()
        reached = await self._context.reach.list_numbers(RequestContext(None, token))
        others = sorted(reached - {number.e164 for number in self._options.numbers})
        self._left_out = len(others[MAX_REACHED:])
        return [PhoneNumber(number) for number in others[:MAX_REACHED]]

    async def _sync_all(self, take: Take) -> None:
        context = self._context
        async with asyncio.TaskGroup() as background:
            helpers = [
                background.create_task(context.writer.run()),
                background.create_task(self._lease_keeper.run(context.run_id)),
            ]
            if (self._shared or self._options.shard) and not self._options.is_dry_run:
                helpers.append(background.create_task(self._rates.run()))
            # More numbers than requests in flight, because numbers also wait for the database.
            async with asyncio.TaskGroup() as syncs:
                for _ in range(3 * context.config.api.max_concurrency - 2):
                    syncs.create_task(self._sync_each(take))
            await context.writer.drain()
            for helper in helpers:
                helper.cancel()

    async def _sync_each(self, take: Take) -> None:
        """Sync one number after another; the failure of one does not stop the others."""
        while number := await take():
            outcome = await self._sync_number(number)
            await self._context.writer.put(outcome)
            if self._shared:
                self._shared.read(number)

    async def _sync_number(self, number: PhoneNumber) -> NumberOutcome:
        if await self._context.turns.begin(number.e164):
            try:
                outcome = await self._read_number(number)
            finally:
                self._context.turns.end(number.e164)
        else:
            outcome = NumberOutcome(number.e164, "partial", reason=LEFT_OUT)
        self._outcomes.append(outcome)
        return outcome

    async def _read_number(self, number: PhoneNumber) -> NumberOutcome:
        try:
            request = RequestContext(number.e164, self._token(number))
            self._context.progress.number_started(number.e164)
            return await NumberSync(self._context, self._options, request).run()
        except EtlError as error:
            return self._failed(number.e164, error)
        except Exception as error:  # noqa: BLE001  # a bug that one number triggers
            log.crash(error)
            return self._failed(number.e164, error)

    def _token(self, number: PhoneNumber) -> Token:
        token = number.token or self._context.config.token
        if token is None:
            raise ConfigError("this number has no token: set its token_env, or api.token_file")
        return token

    def _failed(self, phone_number: str, error: Exception) -> NumberOutcome:
        self._exit_codes.add(code_of(error))
        return NumberOutcome(
            phone_number,
            "failed",
            self._context.client.usage[phone_number],
            error_kind=kind_of(error),
            error_detail=sentence_of(error),
        )

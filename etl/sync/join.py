"""Numbers that several runs share: each claims a few at a time, until all are finished.

A run claims when a request of its could start at once, so that none holds numbers that another
could read. In the end it looks again and again at those that other runs hold: if such a run dies or
fails, it takes them over. It tries each number once.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from random import uniform
from typing import Final

from sqlalchemy import Connection

from etl.config import PhoneNumber
from etl.db import run_log, shared_list
from etl.db.run_log import GOOD, NumberOutcome
from etl.db.shared_list import Failure, SharedRun, Standing
from etl.errors import EtlError
from etl.sync.context import RunContext
from etl.sync.lease_keeper import LeaseKeeper
from etl.sync.turns import LEFT_OUT

WINDOW: Final = 200  # numbers that one claim looks at
TICK: Final = 0.1  # seconds between two claims, or until a request can start
REVIEW: Final = 5.0  # seconds between two looks at what other runs hold, while numbers are free
SHORTEST_WAIT, LONGEST_WAIT = 0.25, 5.0  # seconds between two such looks when none is free
# One batch is written at a time, so the more runs there are, the longer each gathers its own.
GATHER_PER_RUN, SHORTEST_GATHER, LONGEST_GATHER = 0.06, 0.3, 5.0  # seconds
SECONDS_PER_RUN: Final = 0.1  # of the longest wait
LOG_EVERY: Final = 60.0  # seconds of waiting


class SharedList:
    """The list, as one run knows it; `begun` is when its process began."""

    def __init__(
        self,
        context: RunContext,
        lease_keeper: LeaseKeeper,
        since: datetime,
        begun: datetime,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._context = context
        self._lease_keeper = lease_keeper
        self._run = SharedRun(context.run_id, since, begun, first_run=context.run_id)
        self._monotonic = monotonic
        self._most = 3 * context.config.api.max_concurrency - 2  # numbers at a time
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()  # a number of this run was closed
        self._next_claim = 0.0
        self._numbers: dict[str, PhoneNumber] = {}
        # Every number that is not finished is in one of these.
        self._free: list[str] = []  # as far as is known, in the order of claims
        self._claimed: list[str] = []
        self._active: set[str] = set()  # claimed and not closed
        self._reading: set[str] = set()  # of these, the ones whose end is not queued yet
        self._elsewhere: set[str] = set()  # with other runs, or failed
        self._tried = 0
        self._own: dict[str, Failure] = {}
        self._given_up: dict[str, Failure] = {}
        self._workers = 1
        self._reviewed = self._logged = monotonic()
        self._wait = SHORTEST_WAIT

    async def begin(self, numbers: Sequence[PhoneNumber]) -> None:
        """Find out which of the numbers are not finished."""
        self._numbers = {number.e164: number for number in numbers}
        transactions, now = self._context.transactions, self._context.clock()
        await transactions.write(lambda c: run_log.remember_numbers(c, numbers, now))
        runs = await transactions.read(shared_list.open_runs)
        first = min([*runs, self._context.run_id])
        self._run = self._run._replace(first_run=first)
        self._count_workers(runs)
        since = self._run.since
        free = await transactions.read(lambda c: shared_list.unfinished(c, self._numbers, since))
        if self._context.turns.is_limited:  # Then in their turn, not the longest first.
            known = {*free}
            free = [number for number in self._numbers if number in known]
        self._free = free

    async def take(self) -> PhoneNumber | None:
        """The next number, once it is claimed; None if this run can do nothing more."""
        async with self._turn:
            while not self._claimed:
                if self._is_stopped:
                    return None
                if self._free:
                    await self._claim()
                elif self._is_with_others:
                    await self._wait_for_others()
                elif self._active:
                    await self._pause(TICK)
                else:
                    return None
            return self._numbers[self._claimed.pop(0)]

    def closed(self, outcome: NumberOutcome) -> None:
        """Record how a claimed number ended; its lease is released."""
        number = outcome.phone_number
        self._active.discard(number)
        self._changed.set()
        if outcome.status not in GOOD or outcome.completeness is None:
            self._own[number] = Failure(outcome.error_kind, outcome.error_detail or outcome.reason)
            self._elsewhere.add(number)

    def read(self, number: PhoneNumber) -> None:
        """Record that the number's outcome is queued; the last ones are stored at once."""
        self._reading.discard(number.e164)
        if not self._free and not self._reading:
            self._context.writer.flush()

    @property
    def size(self) -> int:
        return len(self._numbers)

    def left(self) -> Mapping[str, Failure]:
        """What is not finished, and why."""
        error = self._context.client.error
        spent = LEFT_OUT if self._context.turns.is_over else None
        unknown = Failure(error.kind, str(error)) if error else Failure(None, spent)
        left = sorted({*self._free, *self._claimed, *self._elsewhere, *self._active})
        known = self._given_up | self._own
        return {number: known.get(number, unknown) for number in left}

    @property
    def _is_stopped(self) -> bool:
        return self._context.client.error is not None or self._context.turns.is_over

    @property
    def _is_with_others(self) -> bool:
        return bool(self._elsewhere - self._given_up.keys())

    async def _claim(self) -> None:
        """Claim a few numbers, as soon as requests for them can start."""
        if self._elsewhere and self._monotonic() - self._reviewed >= REVIEW:
            await self._review()
        count = self._room()
        if not count:
            await self._pause(TICK)
            return
        window = self._free[:WINDOW]
        claim = partial(self._write_claim, window=window, count=count)
        taken, standing = await self._context.transactions.write(claim)
        self._note(window, taken, standing)
        # What is still free is being claimed by another run, or for later.
        self._next_claim = self._monotonic() + (TICK if set(window) & {*self._free, *taken} else 0)

    def _room(self) -> int:
        """How many numbers to claim now."""
        spare = self._context.client.spare
        if not spare or self._monotonic() < self._next_claim:
            return 0
        # With some in reserve, which begin before the next claim.
        wanted = spare + self._context.config.api.max_concurrency // 2
        # Towards the end one at a time, so that no run has much to do when the others have done.
        fair = max(len(self._free) // (2 * self._workers), 1)
        return max(min(wanted, fair, self._most - len(self._active)), 0)

    def _write_claim(
        self, connection: Connection, window: Sequence[str], count: int
    ) -> tuple[list[str], Standing]:
        return shared_list.claim(
            connection,
            self._run,
            window,
            count=count,
            claimed=self._tried,
        )

    def _note(self, window: Sequence[str], taken: Sequence[str], standing: Standing) -> None:
        self._tried += len(taken)
        self._claimed += taken
        self._active.update(taken)
        self._reading.update(taken)
        known = {*taken, *(number for number in window if not standing.is_free(number))}
        self._free = [number for number in self._free if number not in known]
        self._elsewhere |= known - {*taken} - standing.finished
        if standing.held:
            self._wait = SHORTEST_WAIT

    async def _wait_for_others(self) -> None:
        if self._wait >= 1 and not self._active:
            self._context.transactions.release_connections()
        await self._pause(self._wait * uniform(0.7, 1.3))  # noqa: S311  # no secret
        # The more runs there are, the less often each one asks.
        longest = min(max(self._workers * SECONDS_PER_RUN, 1), LONGEST_WAIT)
        self._wait = min(1.5 * self._wait, longest)
        before = len(self._elsewhere)
        await self._review()
        if len(self._elsewhere) < before:
            self._wait = SHORTEST_WAIT
        if self._monotonic() - self._logged >= LOG_EVERY:
            self._logged = self._monotonic()
            self._context.progress.waiting(len(self._elsewhere))

    async def _pause(self, seconds: float) -> None:
        """Wait, but only until a number of this run is closed."""
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    async def _review(self) -> None:
        """Look at the numbers of other runs: finished, failed, or free again."""
        await self._lease_keeper.close_dead_runs()
        look = partial(self._look, numbers=sorted(self._elsewhere))
        runs, standing = await self._context.transactions.read(look)
        self._count_workers(runs)
        self._reviewed = self._monotonic()
        self._elsewhere -= standing.finished
        self._own = {n: own for n, own in self._own.items() if n not in standing.finished}
        again = [n for n in self._elsewhere if standing.is_free(n) and n not in self._own]
        self._free[:0] = sorted(again)
        self._elsewhere.difference_update(again)
        self._given_up = {
            number: self._own.get(number) or standing.failures[number][-1]
            for number in self._elsewhere - standing.held - standing.mine
        }

    def _count_workers(self, runs: Sequence[int]) -> None:
        self._workers = max(len(runs), 1)
        gather = min(max(self._workers * GATHER_PER_RUN, SHORTEST_GATHER), LONGEST_GATHER)
        self._context.writer.gather_seconds = gather

    def _look(
        self, connection: Connection, numbers: Sequence[str]
    ) -> tuple[Sequence[int], Standing]:
        runs = shared_list.open_runs(connection)
        return runs, shared_list.look(connection, self._run, numbers)


def exit_code_of(kind: str | None) -> int:
    """The exit code of a failure that another run has logged."""
    known: dict[str, int] = {each.kind: each.exit_code for each in _kinds(EtlError)}
    return known.get(kind or "", 3)


def _kinds(base: type[EtlError]) -> list[type[EtlError]]:
    return [base, *(kind for each in base.__subclasses__() for kind in _kinds(each))]

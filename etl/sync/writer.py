"""What the walks of many numbers want written, one transaction after another.

A batch gathers for a moment, and while the transaction before it runs in its thread: a transaction
a page would cost the walks more time than their requests. They wait when the writer is behind.
Pages and the closing of their number keep their order.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from sqlalchemy import Engine

from etl.api.pace import ApiUsage
from etl.db import leases
from etl.db import run_log as runs
from etl.db.engine import writing
from etl.db.run_log import NumberOutcome
from etl.db.store.batch import ObservedPage
from etl.db.store.pages import store
from etl.db.store.removals import Removals, store_removals

BATCH = 100
GATHER_SECONDS = 0.1

Item = ObservedPage | Removals | NumberOutcome


class Writer:
    """Writes for one run, as long as it holds its leases.

    `traffic` is what was spent on each number so far, entered with its pages.
    """

    def __init__(
        self,
        engine: Engine,
        run_id: int,
        now: Callable[[], datetime],
        traffic: Mapping[str, ApiUsage],
    ) -> None:
        self._engine = engine
        self._traffic = traffic
        self._run_id = run_id
        self._now = now
        # None says that nothing more is on its way.
        self._queue: asyncio.Queue[Item | None] = asyncio.Queue(maxsize=BATCH)

    async def put(self, item: Item) -> None:
        """Hand over a page, or how a number ended; waits while the writer is behind."""
        if isinstance(item, ObservedPage):
            _ = item.readings  # Made now, because the thread that writes has more to do than this.
        await self._queue.put(item)

    async def drain(self) -> None:
        """Wait until all that was handed over is stored."""
        await self._queue.put(None)
        await self._queue.join()

    async def run(self) -> None:
        """Write until cancelled. Raises DatabaseError or LeaseLost, after which nothing is written.

        A transaction that is under way when it is cancelled is brought to its end first.
        """
        while True:
            if not (batch := await self._gather()):
                continue
            writing_batch = asyncio.ensure_future(asyncio.to_thread(self._write, batch))
            try:
                await asyncio.shield(writing_batch)
            finally:
                await asyncio.wait([writing_batch])
                writing_batch.exception()  # Known now, so that asyncio does not print it.
            for _ in batch:
                self._queue.task_done()

    async def _gather(self) -> list[Item]:
        batch: list[Item] = []
        try:
            async with asyncio.timeout(None) as moment:
                while len(batch) < BATCH and (item := await self._queue.get()):
                    batch.append(item)
                    if len(batch) == 1:
                        moment.reschedule(asyncio.get_running_loop().time() + GATHER_SECONDS)
        except TimeoutError:
            return batch
        if len(batch) < BATCH:
            self._queue.task_done()  # for the None
        return batch

    def _write(self, batch: Sequence[Item]) -> None:
        listings = [item for item in batch if isinstance(item, ObservedPage)]
        absences = [item for item in batch if isinstance(item, Removals)]
        outcomes = [item for item in batch if isinstance(item, NumberOutcome)]
        now = self._now()
        with writing(self._engine) as connection:
            leases.ensure_held(connection, self._run_id, {item.phone_number for item in batch})
            if listings:
                counts = store(connection, listings, run_id=self._run_id, now=now)
                runs.add_counts(connection, self._run_id, counts, self._traffic)
            for absence in absences:
                removed = store_removals(connection, absence, run_id=self._run_id)
                counts = {absence.phone_number: Counter(chats_removed=removed)}
                runs.add_counts(connection, self._run_id, counts, self._traffic)
            for outcome in outcomes:
                runs.close_number(connection, self._run_id, outcome, now)

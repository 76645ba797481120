"""The queue between the syncs of many numbers and the database, and the one writer behind it.

A batch gathers for a moment, and while the previous transaction runs in its thread: a transaction
per page would take longer than the page's request. `put` waits while the queue is full. A number's
pages, removals and outcome keep their order.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial

from sqlalchemy import Connection

from etl.api.models import ApiUsage
from etl.api.privacy import Privacy
from etl.config import PhoneNumber
from etl.db import leases, run_log
from etl.db.run_log import Claim, NumberOutcome, Record, RunOutcome
from etl.db.run_records import get_run
from etl.db.store.batch import ObservedPage
from etl.db.store.pages import Changes, ChangesByPlace, Stored, store_pages
from etl.db.store.removals import Removals, store_removals
from etl.db.transactions import Transactions
from etl.sync.privacy import keep_to
from etl.sync.quick.learning import learn

BATCH = 100
GATHER_SECONDS = 0.1
MAX_QUEUE_BYTES = 32 * 1024 * 1024  # in memory; their rows take as much again

Item = ObservedPage | Removals | NumberOutcome


class Writer:
    """Writes for one run, as long as the run is not closed.

    `usage` has what each number spent so far; it is entered in the run log with the pages.
    `least_recall` is what quick readings need.
    `on_closed` gets each outcome once it is committed.
    """

    def __init__(
        self,
        transactions: Transactions,
        run_id: int,
        clock: Callable[[], datetime],
        usage: Mapping[str | None, ApiUsage],
        least_recall: float,
    ) -> None:
        self.gather_seconds = GATHER_SECONDS
        self.on_closed: Callable[[NumberOutcome], None] = lambda _: None
        self.privacy = Privacy()
        self._least_recall = least_recall
        self._changes: Counter[str] = Counter()
        self._places: Changes = {}  # of the numbers that are not closed
        self._transactions = transactions
        self._usage = usage
        self._run_id = run_id
        self._clock = clock
        self._batches = 0
        self._written: tuple[Counter[str], Changes] = Counter(), {}  # by the last transaction
        # None ends a batch: nothing more follows it at once.
        self._queue: asyncio.Queue[Item | None] = asyncio.Queue(maxsize=BATCH)
        self._queued_bytes = 0
        self._room = asyncio.Condition()

    def claim(self, connection: Connection, numbers: Sequence[PhoneNumber], now: datetime) -> Claim:
        """Claim the numbers for the run."""
        return run_log.claim(connection, self._run_id, numbers, now)

    def finish(self, connection: Connection, outcome: RunOutcome, now: datetime) -> Record | None:
        """Close the run; return its record."""
        run_log.finish(connection, self._run_id, outcome, now)
        return get_run(connection, self._run_id)

    async def put(self, item: Item) -> None:
        """Queue a page, removals or an outcome; waits while the queue is full."""
        if isinstance(item, ObservedPage):
            _ = item.observations  # Computed here, because the writing thread is the busier one.
            async with self._room:
                await self._room.wait_for(lambda: self._fits(item))
                self._queued_bytes += item.page.size
        await self._queue.put(item)

    def flush(self) -> None:
        """Write what is queued as soon as the transaction in progress has ended."""
        if not self._queue.full():
            self._queue.put_nowait(None)

    async def drain(self) -> None:
        """Wait until everything queued is stored."""
        await self._queue.put(None)
        await self._queue.join()

    async def run(self) -> None:
        """Write until cancelled; then the transaction in progress ends first.

        Raises DatabaseError or LeaseLostError, after which nothing more is written.
        """
        while True:
            await self._store(await self._gather())

    async def _store(self, batch: Sequence[Item]) -> None:
        # A function of its own: the batch is not kept while the next one gathers.
        if not batch:
            return
        self._changes += await self._commit(batch)
        for outcome in batch:
            if isinstance(outcome, NumberOutcome):
                self._places.pop(outcome.phone_number, None)
                changes = self._changes.pop(outcome.phone_number, 0)
                self.on_closed(replace(outcome, changes=changes))
        async with self._room:
            self._queued_bytes -= sum(
                item.page.size for item in batch if isinstance(item, ObservedPage)
            )
            self._room.notify_all()
        for _ in batch:
            self._queue.task_done()

    async def _commit(self, batch: Sequence[Item]) -> Counter[str]:
        self._batches += 1
        write = partial(self._write, batch=batch, number=self._batches)
        changes, places = await self._transactions.write(write)
        for phone_number, found in places.items():
            self._places[phone_number] = self._with_places_before(phone_number, found)
        return changes

    def _with_places_before(self, phone_number: str, places: ChangesByPlace) -> ChangesByPlace:
        found = dict(self._places.get(phone_number, {}))
        for place, counts in places.items():
            found[place] = found.get(place, Counter()) + counts
        return found

    def _fits(self, page: ObservedPage) -> bool:
        return not self._queued_bytes or self._queued_bytes + page.page.size <= MAX_QUEUE_BYTES

    async def _gather(self) -> list[Item]:
        batch: list[Item] = []
        try:
            async with asyncio.timeout(None) as timeout:
                while len(batch) < BATCH and (item := await self._queue.get()):
                    batch.append(item)
                    if len(batch) == 1:
                        timeout.reschedule(asyncio.get_running_loop().time() + self.gather_seconds)
        except TimeoutError:
            return batch
        if len(batch) < BATCH:
            self._queue.task_done()  # for the None
        return batch

    def _write(
        self, connection: Connection, batch: Sequence[Item], number: int
    ) -> tuple[Counter[str], Changes]:
        """Write the run's batch of that number, counted from 1, unless it was committed before.

        Returns how many chats of each phone number changed, and where in its list.
        """
        changes: Counter[str] = Counter()
        places: Changes = {}
        pages = [item for item in batch if isinstance(item, ObservedPage)]
        run_id, now = self._run_id, self._clock()
        # Two numbers may lose the same chat: the second one has to see that nobody lists it.
        loses = any(isinstance(item, Removals) and item.gone for item in batch)
        leases.lock_writers(connection, everywhere=loses)
        if not leases.move_fence(connection, run_id, number):
            return self._written  # It was committed, but the answer was lost.
        self._written = changes, places
        leases.ensure_held(connection, run_id, {item.phone_number for item in batch})
        if pages:
            counts, found = self._store_pages(connection, pages, now)
            places |= found
            run_log.add_counts(connection, run_id, counts, self._usage)
            for phone_number, count in counts.items():
                changes[phone_number] += count["chats_inserted"] + count["chats_updated"]
        for item in batch:
            if isinstance(item, Removals):
                removed = store_removals(connection, item, run_id=run_id)
                counts = {item.phone_number: Counter(chats_removed=removed)}
                run_log.add_counts(connection, run_id, counts, self._usage)
                changes[item.phone_number] += removed
            elif isinstance(item, NumberOutcome):
                now_found = places.get(item.phone_number, {})
                in_list = self._with_places_before(item.phone_number, now_found)
                learned = learn(connection, run_id, item, in_list, least=self._least_recall)
                ended = replace(item, evidence={**item.evidence, **learned})
                run_log.close_number(connection, run_id, ended, now)
        return changes, places

    def _store_pages(
        self, connection: Connection, pages: Sequence[ObservedPage], now: datetime
    ) -> Stored:
        kept, hashes = keep_to(connection, self.privacy, pages), self.privacy.hashes_of_names
        return store_pages(connection, kept, run_id=self._run_id, now=now, name_hashes=hashes)

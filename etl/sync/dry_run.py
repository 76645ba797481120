"""The writer of a dry run: it compares each batch with the database, counts, and writes no data."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial

from sqlalchemy import Connection

from etl.api.models import ApiUsage
from etl.config import PhoneNumber
from etl.db import dry_runs, leases, run_log
from etl.db.run_log import Claim, NumberOutcome, Record, RunOutcome
from etl.db.run_records import get_run
from etl.db.store.batch import ObservedPage
from etl.db.store.pages import Counts, count_pages
from etl.db.store.removals import Removals, count_removals
from etl.db.store.unwritten import Unwritten
from etl.db.tables import sync_run_numbers
from etl.sync.writer import Item, Writer

_BLANK = {column.name: 0 if column.server_default else None for column in sync_run_numbers.columns}


class DryWriter(Writer):
    """Counts for one run; the numbers have their entries of the run log in memory."""

    _entries: Mapping[str, Record] = {}
    _unwritten: Unwritten

    def claim(self, connection: Connection, numbers: Sequence[PhoneNumber], now: datetime) -> Claim:
        claim = dry_runs.claim(connection, self._run_id, numbers, now)
        self._entries = {
            number: {**_BLANK, "run_id": self._run_id, "phone_number": number, "status": "running"}
            for number in sorted(each.e164 for each in numbers)
        }
        for number, holder in claim.busy.items():
            self._entries[number].update(run_log.as_busy(holder, now))
        return claim

    async def run(self) -> None:
        with Unwritten() as self._unwritten:
            await super().run()

    def finish(self, connection: Connection, outcome: RunOutcome, now: datetime) -> Record | None:
        unfinished = run_log.of_unfinished(outcome, now)
        entries = [
            each | unfinished | self._spent(number) if each["status"] == "running" else each
            for number, each in self._entries.items()
        ]
        run_log.finish(connection, self._run_id, replace(outcome, unwritten=entries), now)
        record = get_run(connection, self._run_id)
        return record and {**record, "numbers": entries}

    async def _commit(self, batch: Sequence[Item]) -> Counter[str]:
        counts = await self._transactions.read(partial(self._compare, batch=batch))
        self._unwritten.keep()
        for phone_number, count in counts.items():
            for name, number in count.items():
                self._entries[phone_number][name] += number
        outcomes = [item for item in batch if isinstance(item, NumberOutcome)]
        for outcome in outcomes:
            entry = self._entries[outcome.phone_number]
            entry.update(run_log.values_of(outcome, self._clock()))
        if ended := [outcome.phone_number for outcome in outcomes]:
            release = partial(leases.release, run_id=self._run_id, numbers=ended)
            await self._transactions.write(release)
        return _changes(counts)

    def _compare(self, connection: Connection, batch: Sequence[Item]) -> Counts:
        self._unwritten.discard()  # what a transaction added that did not come to its end
        pages = [item for item in batch if isinstance(item, ObservedPage)]
        hashes, now = self.privacy.hashes_of_names, self._clock()
        counts = count_pages(connection, pages, self._unwritten, now=now, name_hashes=hashes)
        for item in batch:
            if isinstance(item, Removals):
                removed = count_removals(connection, item, self._unwritten)
                counts.setdefault(item.phone_number, Counter())["chats_removed"] += removed
        return counts

    def _spent(self, phone_number: str) -> Record:
        return run_log.counts_of(self._usage.get(phone_number, ApiUsage()))


def _changes(counts: Counts) -> Counter[str]:
    """How many chats of each phone number would change."""
    names = ("chats_inserted", "chats_updated", "chats_removed")
    return Counter({number: sum(each[name] for name in names) for number, each in counts.items()})

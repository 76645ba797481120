"""Store a batch of pages in the caller's transaction: the order of the steps, and the counts."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import Connection, insert, select

from etl.api.models import canonical_json
from etl.db.store.batch import ObservedPage, latest_observations, split_new_and_changed
from etl.db.store.diff import Diff, diff, is_newer
from etl.db.store.memberships import store_memberships
from etl.db.store.read import read_chats
from etl.db.store.write import write_diffs
from etl.db.tables import rejected_records

Counts = dict[str, Counter[str]]  # the run log's counts by phone number
_DIFF_COUNTS = (
    "chats_inserted",
    "chats_updated",
    "handles_inserted",
    "handles_updated",
    "handles_removed",
)


def store_pages(
    connection: Connection, pages: Sequence[ObservedPage], *, run_id: int, now: datetime
) -> Counts:
    """Write what the pages change; return the run log's counts."""
    new, changed = split_new_and_changed(connection, latest_observations(pages))
    stored = read_chats(connection, [each.chat.id for each in changed])
    diffs = [diff(None, each) for each in new]
    for observation in changed:
        before = stored[observation.chat.id]
        if not is_newer(before, observation, now):
            diffs.append(diff(before, observation))
    write_diffs(connection, diffs, run_id)
    store_memberships(connection, pages, now)
    rejected = _store_rejected(connection, pages, run_id)
    return _counts(pages, diffs, rejected)


def _store_rejected(
    connection: Connection, pages: Iterable[ObservedPage], run_id: int
) -> Counter[str]:
    """Keep each rejected record once per run, however often it is read; count them by number."""
    found = {
        (page.phone_number, rejected.payload): {
            "run_id": run_id,
            "phone_number": page.phone_number,
            "page": page.page.page_number,
            "reason": rejected.reason,
            "payload": json.loads(rejected.payload),
        }
        for page in pages
        for rejected in page.page.rejected
    }
    if not found:
        return Counter()
    kept = select(rejected_records.c.phone_number, rejected_records.c.payload)
    for phone_number, payload in connection.execute(
        kept.where(rejected_records.c.run_id == run_id)
    ):
        found.pop((phone_number, canonical_json(payload)), None)
    if found:
        connection.execute(insert(rejected_records), list(found.values()))
    return Counter(phone_number for phone_number, _ in found)


def _counts(pages: Sequence[ObservedPage], diffs: Iterable[Diff], rejected: Counter[str]) -> Counts:
    counts: Counts = {page.phone_number: Counter() for page in pages}
    for each in diffs:
        count = counts[each.observation.counted_for]
        for name in _DIFF_COUNTS:
            if number := getattr(each, name):
                count[name] += number
    for page in pages:
        count = counts[page.phone_number]
        count["pages"] += page.listed
        count["chats_seen"] += len(page.page.chats)
        count["texts_cleaned"] += page.page.texts_cleaned
    for phone_number, count in counts.items():
        count["rejected"] += rejected[phone_number]
        written = count["chats_inserted"] + count["chats_updated"]
        count["chats_unchanged"] = count["chats_seen"] - written
    return counts

"""Store a batch of pages in the caller's transaction: the order of the steps, and the counts."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import Connection, and_, func, insert, select

from etl.db.backends import backend
from etl.db.store.batch import (
    Observation,
    ObservedPage,
    latest_observations,
    split_new_and_changed,
)
from etl.db.store.diff import Diff, diff, is_newer
from etl.db.store.memberships import store_memberships
from etl.db.store.names import NameHashes, settle_names
from etl.db.store.read import portions, read_chats
from etl.db.store.watch import UNWATCHED, watch_new, watch_stored
from etl.db.store.write import write_diffs
from etl.db.tables import chats, rejected_records

MAX_REJECTED = 10_000  # rows of rejected_records per run
Counts = dict[str, Counter[str]]  # the run log's counts by phone number
_DIFF_COUNTS = (
    "chats_inserted",
    "chats_updated",
    "handles_inserted",
    "handles_updated",
    "handles_removed",
)


def store_pages(
    connection: Connection,
    pages: Sequence[ObservedPage],
    *,
    run_id: int,
    now: datetime,
    name_hashes: NameHashes | None = None,
) -> Counts:
    """Write what the pages change; return the run log's counts.

    With `name_hashes`, groups keep their names only if they name no person.
    """
    counts: Counts = {page.phone_number: Counter() for page in pages}
    latest = latest_observations(pages)
    if name_hashes:
        latest = settle_names(connection, pages, latest, name_hashes)
    new, changed = split_new_and_changed(connection, latest)
    watches = watch_new(connection, pages, new)
    diffs = [diff(None, each, watches.get(each.chat.id, UNWATCHED)) for each in new]
    _store_diffs(connection, diffs, run_id, counts)
    observed = {each.chat.id: each for each in changed}
    if observed:
        backend(connection.dialect).lock_rows(connection, chats, observed)
    for portion in portions(connection, [*observed]):
        again = [observed[chat_id] for chat_id in portion]
        _store_diffs(connection, _diffs(connection, again, now), run_id, counts)
    store_memberships(connection, pages, now)
    rejected = _store_rejected(connection, pages, run_id)
    _count_pages(counts, pages, rejected)
    return counts


def _diffs(
    connection: Connection, observations: Sequence[Observation], now: datetime
) -> list[Diff]:
    ids = [each.chat.id for each in observations]
    stored, watches = read_chats(connection, ids), watch_stored(connection, ids)
    return [
        diff(before, each, watches.get(each.chat.id, UNWATCHED))
        for each in observations
        if not is_newer(before := stored[each.chat.id], each, now)
    ]


def _store_diffs(
    connection: Connection, diffs: Sequence[Diff], run_id: int, counts: Counts
) -> None:
    write_diffs(connection, diffs, run_id)
    for each in diffs:
        count = counts[each.observation.counted_for]
        for name in _DIFF_COUNTS:
            if number := getattr(each, name):
                count[name] += number


def _store_rejected(
    connection: Connection, pages: Iterable[ObservedPage], run_id: int
) -> Counter[str]:
    """Store each rejected record once per run and number; count the new ones by number.

    At most MAX_REJECTED are stored per run; the others are only counted.
    """
    found = {
        (page.phone_number, rejected.digest): (page, rejected)
        for page in pages
        for rejected in page.page.rejected
    }
    if not found:
        return Counter()
    table = rejected_records
    of_run = table.c.run_id == run_id
    digests = {digest for _, digest in found}
    given = backend(connection.dialect).id_table(digests)
    known = select(table.c.phone_number, table.c.digest).select_from(
        given.join(table, and_(of_run, table.c.digest == given.c.id))
    )
    for key in connection.execute(known):
        found.pop(tuple(key), None)
    stored = connection.execute(select(func.count()).where(of_run)).scalar_one()
    rows = [
        {
            "run_id": run_id,
            "phone_number": phone_number,
            "page": page.page.page_number,
            "reason": rejected.reason,
            "payload": rejected.payload,
            "digest": digest,
        }
        for (phone_number, digest), (page, rejected) in found.items()
    ]
    if kept := rows[: max(MAX_REJECTED - stored, 0)]:
        connection.execute(insert(table), kept)
    return Counter(phone_number for phone_number, _ in found)


def _count_pages(counts: Counts, pages: Iterable[ObservedPage], rejected: Counter[str]) -> None:
    for page in pages:
        count = counts[page.phone_number]
        count["pages"] += page.listed
        count["chats_seen"] += len(page.page.chats)
        count["texts_cleaned"] += page.page.texts_cleaned
    for phone_number, count in counts.items():
        count["rejected"] += rejected[phone_number]
        written = count["chats_inserted"] + count["chats_updated"]
        count["chats_unchanged"] = count["chats_seen"] - written

"""Store a batch of pages in the caller's transaction, or only count: the order of the steps."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import chain
from typing import NamedTuple

from sqlalchemy import Connection, and_, func, insert, select

from etl.db.backends import backend
from etl.db.store.batch import (
    Observation,
    ObservedPage,
    Place,
    latest_observations,
    split_new_and_changed,
)
from etl.db.store.diff import Diff, diff, is_newer
from etl.db.store.memberships import gained_memberships, store_memberships
from etl.db.store.names import NameHashes, settled, store_name_hashes
from etl.db.store.read import portions, read_chats
from etl.db.store.unwritten import Unwritten
from etl.db.store.watch import UNWATCHED, watch_new, watch_stored
from etl.db.store.write import write_diffs
from etl.db.tables import ChangeKind, chats, rejected_records

MAX_REJECTED = 10_000  # rows of rejected_records per run
Counts = dict[str, Counter[str]]  # the run log's counts by phone number
# Changed chats by place and phone number: how many in all (None), and how many of each kind.
ChangesByPlace = dict[Place, Counter[ChangeKind | None]]
Changes = dict[str, ChangesByPlace]
_DIFF_COUNTS = (
    "chats_inserted",
    "chats_updated",
    "handles_inserted",
    "handles_updated",
    "handles_removed",
)


class Stored(NamedTuple):
    """What pages have changed, counted, and where in the lists."""

    counts: Counts
    changes: Changes


def store_pages(
    connection: Connection,
    pages: Sequence[ObservedPage],
    *,
    run_id: int,
    now: datetime,
    name_hashes: NameHashes | None = None,
) -> Stored:
    """Write what the pages change.

    With `name_hashes`, groups keep their names only if they name no person.
    """
    counts: Counts = {page.phone_number: Counter() for page in pages}
    changes: Changes = {page.phone_number: {} for page in pages}
    latest = latest_observations(pages)
    if name_hashes:
        store_name_hashes(connection, pages, latest, name_hashes)
        latest = settled(connection, latest, name_hashes)
    new, changed = split_new_and_changed(connection, latest)
    watches = watch_new(connection, pages, new)
    diffs = [diff(None, each, watches.get(each.chat.id, UNWATCHED)) for each in new]
    write_diffs(connection, diffs, run_id)
    _count(diffs, counts, changes)
    if changed:
        ids = [each.chat.id for each in changed]
        backend(connection.dialect).lock_rows(connection, chats, ids)
    for diffs in _diffs_of_changed(connection, changed, now):
        write_diffs(connection, diffs, run_id)
        _count(diffs, counts, changes)
    store_memberships(connection, pages, now)
    rejected = _store_rejected(connection, pages, run_id)
    _count_pages(counts, pages, rejected)
    return Stored(counts, changes)


def count_pages(
    connection: Connection,
    pages: Sequence[ObservedPage],
    unwritten: Unwritten,
    *,
    now: datetime,
    name_hashes: NameHashes | None = None,
) -> Counts:
    """Return what `store_pages` would count, and add it to `unwritten`; reads only.

    A chat that is counted already counts no more.
    """
    counts: Counts = {page.phone_number: Counter() for page in pages}
    observations = latest_observations(pages)
    for chat_id in unwritten.changed(observations):
        del observations[chat_id]
    if name_hashes:
        observations = settled(connection, observations, name_hashes)
    new, changed = split_new_and_changed(connection, observations)
    diffs = [diff(None, each, UNWATCHED) for each in new]
    for some in chain([diffs], _diffs_of_changed(connection, changed, now)):
        unwritten.add_changed(
            each.observation.chat.id for each in some if _count_diff(counts, each)
        )
    for phone_number, gained in gained_memberships(connection, pages, now):
        unwritten.set_listed(phone_number, (*gained.new, *gained.restored), is_listed=True)
    rejected = Counter[str]()
    for page in pages:
        rejected[page.phone_number] += unwritten.add_rejected(page)
    _count_pages(counts, pages, rejected)
    return counts


def _diffs_of_changed(
    connection: Connection, changed: Iterable[Observation], now: datetime
) -> Iterator[list[Diff]]:
    """In portions that take little memory."""
    observed = {each.chat.id: each for each in changed}
    for portion in portions(connection, [*observed]):
        yield _diffs(connection, [observed[chat_id] for chat_id in portion], now)


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


def _count(diffs: Iterable[Diff], counts: Counts, changes: Changes) -> None:
    for each in diffs:
        _count_diff(counts, each)
        if each.is_change:
            at_place = changes[each.observation.counted_for].setdefault(
                each.observation.place, Counter()
            )
            at_place.update([None, *each.kinds])


def _count_diff(counts: Counts, found: Diff) -> bool:
    """Add its counts; return whether there are any."""
    added = {name: number for name in _DIFF_COUNTS if (number := getattr(found, name))}
    counts[found.observation.counted_for].update(added)
    return bool(added)


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

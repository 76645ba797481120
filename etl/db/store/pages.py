"""A batch of pages into the tables, in the caller's transaction.

What is stored just as it was read is passed over, what is new is written straight, and what may
have changed is compared field by field.
"""

import json
from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, func, insert, select

from etl.api.decode import json_text
from etl.db.store.additions import add_chats
from etl.db.store.batch import (
    Counts,
    ObservedPage,
    latest_observations,
    memberships,
    split_new_and_changed,
)
from etl.db.store.changes import apply_changes
from etl.db.store.memberships import store_memberships
from etl.db.tables import rejected_records


def store(
    connection: Connection, listings: Sequence[ObservedPage], *, run_id: int, now: datetime
) -> Counts:
    """Write the pages; return the run log's counts per number."""
    _plan_by_index(connection)
    counts = {listing.phone_number: Counter[str]() for listing in listings}
    new, changed, undigested = split_new_and_changed(connection, latest_observations(listings), now)
    if new:
        add_chats(connection, new, counts, run_id)
    if changed:
        apply_changes(connection, changed, undigested, counts, run_id)
    store_memberships(connection, memberships(listings), now)
    _store_rejected(connection, listings, run_id, counts)
    _count_pages(listings, counts)
    return counts


def _plan_by_index(connection: Connection) -> None:
    """Make PostgreSQL look rows up by key: it takes a batch for large, and hashes whole tables.

    It would also compile the larger statements, which takes ten times as long as running them.
    """
    if connection.dialect.name == "postgresql":
        scans = ("hashjoin", "mergejoin", "material", "bitmapscan")
        off = ("jit", *(f"enable_{scan}" for scan in scans))
        connection.execute(select(*(func.set_config(name, "off", True) for name in off)))


def _store_rejected(
    connection: Connection,
    listings: Sequence[ObservedPage],
    run_id: int,
    counts: Counts,
) -> None:
    """Keep what could not be stored, once a run however often it was read."""
    found = {
        (listing.phone_number, rejected.payload): {
            "run_id": run_id,
            "phone_number": listing.phone_number,
            "page": listing.page.page_number,
            "reason": rejected.reason,
            "payload": json.loads(rejected.payload),
        }
        for listing in listings
        for rejected in listing.page.rejected
    }
    if not found:
        return
    kept = select(rejected_records.c.phone_number, rejected_records.c.payload)
    for phone_number, payload in connection.execute(
        kept.where(rejected_records.c.run_id == run_id)
    ):
        found.pop((phone_number, json_text(payload)), None)
    for phone_number, _ in found:
        counts[phone_number]["rejected"] += 1
    if found:
        connection.execute(insert(rejected_records), list(found.values()))


def _count_pages(listings: Sequence[ObservedPage], counts: Counts) -> None:
    for listing in listings:
        count, page = counts[listing.phone_number], listing.page
        count["pages"] += listing.listed
        count["chats_seen"] += len(page.chats)
        count["texts_cleaned"] += page.texts_cleaned
    for count in counts.values():
        written = count["chats_inserted"] + count["chats_updated"]
        count["chats_unchanged"] = count["chats_seen"] - written

"""What a batch of pages says: of each chat the answer that was read last, and who lists it.

Compared with what is stored by one hash a chat, most of what is read turns out to be the same:
nothing more is looked at. What is left is new, or to be compared field by field.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

from msgspec import UNSET, Struct, structs
from sqlalchemy import Connection, case, func, select

from etl.api.decode import Chat, Handle, Page
from etl.db.bulk import Encoders, Row, id_table, lookup_by_id
from etl.db.tables import chat_handles, chats

Counts = dict[str, Counter[str]]  # of the run log, per number

CHAT_FIELDS = ("display_name", "service", "is_group", "message_count", "extra")
HANDLE_FIELDS = ("phone_number", "service", "joined_at", "extra")


class Observation(Struct, frozen=True, gc=False):
    """What the API said of a chat, and when; `seen_under` is the number for which it is counted."""

    chat: Chat
    digest: int
    counted_for: str
    emit_created: bool
    observed_at: datetime


@dataclass(frozen=True)
class ObservedPage:
    """A page of a number's list; `news` once that number's list has been read to the end before.

    Chats that appear later are news; those that are there at first are the starting stock. If not
    `listed`, its chats were asked for one by one: they exist, which does not put them in the list.
    """

    phone_number: str
    page: Page
    emit_created: bool
    listed: bool = True

    @cached_property
    def readings(self) -> list[Observation]:
        """Its chats, each with its digest."""
        under, emit_created, observed_at = (
            self.phone_number,
            self.emit_created,
            self.page.observed_at,
        )
        return [
            Observation(chat, chat.digest, under, emit_created, observed_at)
            for chat in self.page.chats
        ]


class Delta(NamedTuple):
    """The readings of chats that are not stored yet, and of those that are, but not just so.

    `undigested` are the ids of those among the latter that are stored without a digest.
    """

    new: list[Observation]
    changed: list[Observation]
    undigested: list[int]


def latest_observations(listings: Iterable[ObservedPage]) -> dict[int, Observation]:
    """The batch by chat: what was read last, counted for the number that listed it first.

    In the order of ids, as what is written is best put into the tables' trees.
    """
    found: dict[int, Observation] = {}
    for listing in sorted(listings, key=_observed_at):
        for reading in listing.readings:
            before = found.get(reading.chat.id)
            if before and before.counted_for != reading.counted_for:
                found[reading.chat.id] = structs.replace(reading, counted_for=before.counted_for)
            else:
                found[reading.chat.id] = reading
    return dict(sorted(found.items()))


def memberships(listings: Iterable[ObservedPage]) -> dict[str, dict[int, datetime]]:
    """Which numbers list which chats, and when that was last read."""
    found: dict[str, dict[int, datetime]] = {}
    for listing in sorted(listings, key=_observed_at):
        if listing.listed:
            seen = dict.fromkeys((chat.id for chat in listing.page.chats), listing.page.observed_at)
            found.setdefault(listing.phone_number, {}).update(seen)
    return found


def split_new_and_changed(
    connection: Connection, readings: Mapping[int, Observation], now: datetime
) -> Delta:
    """Drop what is stored just as it was read, and what is older than what is stored."""
    digest = case((chats.c.removed_at.is_(None), chats.c.digest))
    stored = lookup_by_id(connection, readings, chats.c.id, digest)
    new = [reading for chat_id, reading in readings.items() if chat_id not in stored]
    changed = [readings[i] for i, digest in stored.items() if digest != readings[i].digest]
    if changed:
        newer = _newer_rows(connection, changed, now)
        changed = [reading for reading in changed if reading.chat.id not in newer]
    undigested = [r.chat.id for r in changed if stored[r.chat.id] is None]
    return Delta(new, changed, undigested)


def _newer_rows(connection: Connection, readings: Iterable[Observation], now: datetime) -> set[int]:
    """The chats of which a row, or a participant's, has changed since they were read.

    A row from the future is no newer than anything, so that it does not stay for ever.
    """
    observed_at = {reading.chat.id: reading.observed_at for reading in readings}
    given = id_table(connection, observed_at)
    # By what is grouped and filtered like this, PostgreSQL cannot take the index of that column,
    # in which it would go through all participants for each chat.
    handles_changed_at = (
        select(func.max(chat_handles.c.changed_at).filter(chat_handles.c.changed_at <= now))
        .where(chat_handles.c.chat_id == given.c.id)
        .group_by(chat_handles.c.chat_id)
        .scalar_subquery()
    )
    rows = connection.execute(
        select(given.c.id, chats.c.changed_at, handles_changed_at).select_from(
            given.outerjoin(chats, chats.c.id == given.c.id)
        )
    )
    return {
        chat_id
        for chat_id, *times in rows
        if any(at and observed_at[chat_id] < at <= now for at in times)
    }


def chat_values(chat: Chat, encoders: Encoders) -> Row:
    """The chat's values in the order of CHAT_FIELDS, null where the API left one out."""
    values = (chat.display_name, chat.service, chat.is_group, chat.message_count, chat.extra)
    if chat.extra is None and UNSET not in values:
        return values
    return _stored(values, encoders)


def handle_values(handle: Handle, encoders: Encoders) -> Row:
    """The same for a participant and HANDLE_FIELDS."""
    joined_at = handle.joined_at
    at = encoders.time(joined_at) if isinstance(joined_at, datetime) else joined_at
    values = (handle.phone_number, handle.service, at, handle.extra)
    if handle.extra is None and UNSET not in values:
        return values
    return _stored(values, encoders)


def _stored(values: Row, encoders: Encoders) -> Row:
    """The values, of which the last is `extra`, in the forms in which they are stored."""
    *others, extra = values
    return (*map(told, others), None if extra is None else encoders.json(extra))


def told(value: Any) -> Any:
    """The value, null where the API left it out."""
    return None if value is UNSET else value


def handles_of(chat: Chat) -> Collection[Handle]:
    """Its participants; one that is listed twice is one, and what stands last counts."""
    handles = chat.handles or ()
    by_id = {handle.id: handle for handle in handles}
    return handles if len(by_id) == len(handles) else by_id.values()


def _observed_at(listing: ObservedPage) -> datetime:
    return listing.page.observed_at

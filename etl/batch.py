"""What a batch of pages says: of each chat the answer that was read last, and who lists it.

Compared with what is stored by one hash a chat, most of what is read turns out to be the same:
nothing more is looked at. What is left is new, or to be compared field by field.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from msgspec import UNSET, Struct
from sqlalchemy import Connection, func, or_, select, update

from etl.bulk import Forms, Row, given_integers
from etl.tables import chat_handles, chats
from etl.wire import Chat, Handle, Page

CHAT_FIELDS = ("display_name", "service", "is_group", "message_count", "extra")
HANDLE_FIELDS = ("phone_number", "service", "joined_at", "extra")


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of a number's list; `news` once that number's list has been read to the end before.

    Chats that appear later are news; those that are there at first are the starting stock. If not
    `listed`, its chats were asked for one by one: they exist, which does not put them in the list.
    """

    phone_number: str
    page: Page
    news: bool
    listed: bool = True


class Reading(Struct, frozen=True, gc=False):
    """What the API last said of a chat, and under which number it is counted: who listed it first.

    `digest` is the chat's.
    """

    chat: Chat
    digest: int
    seen_under: str
    news: bool
    observed_at: datetime


class Sorted(NamedTuple):
    """The readings of chats that are not stored yet, and of those that are, but not just so.

    The last are those of `changed` whose chat is stored without a digest.
    """

    new: list[Reading]
    changed: list[Reading]
    undigested: list[Reading]


def readings(listings: Iterable[Listing]) -> dict[int, Reading]:
    """The batch by chat; of one that is there twice, what was read last."""
    found: dict[int, Reading] = {}
    for listing in sorted(listings, key=_observed_at):
        under, news, observed_at = listing.phone_number, listing.news, listing.page.observed_at
        for chat in listing.page.chats:
            before = found.get(chat.id)
            seen_under = before.seen_under if before else under
            found[chat.id] = Reading(chat, chat.digest, seen_under, news, observed_at)
    return found


def memberships(listings: Iterable[Listing]) -> dict[str, dict[int, datetime]]:
    """Which numbers list which chats, and when that was last read."""
    found: dict[str, dict[int, datetime]] = {}
    for listing in sorted(listings, key=_observed_at):
        if listing.listed:
            seen = dict.fromkeys((chat.id for chat in listing.page.chats), listing.page.observed_at)
            found.setdefault(listing.phone_number, {}).update(seen)
    return found


def sort_out(connection: Connection, readings: Mapping[int, Reading], now: datetime) -> Sorted:
    """Drop what is stored just as it was read, and what is older than what is stored.

    A row from the future is no newer than anything, so that it does not stay for ever.
    """
    found = Sorted([], [], [])
    if not readings:
        return found
    pairs = [(chat_id, reading.digest) for chat_id, reading in readings.items()]
    given = given_integers(connection, pairs, "id", "digest")
    same_chat, past = chat_handles.c.chat_id == chats.c.id, chat_handles.c.changed_at <= now
    # Grouped, because PostgreSQL would look for the largest of all in the index of that column.
    handles_changed_at = (
        select(func.max(chat_handles.c.changed_at))
        .where(same_chat, past)
        .group_by(chat_handles.c.chat_id)
    )
    differs = or_(chats.c.digest.is_distinct_from(given.c.digest), chats.c.removed_at.is_not(None))
    rows = connection.execute(
        select(
            given.c.id,
            chats.c.digest,
            chats.c.changed_at,
            handles_changed_at.scalar_subquery(),
        )
        .select_from(given.outerjoin(chats, chats.c.id == given.c.id))
        .where(differs)
    )
    for chat_id, digest, changed_at, handles_at in rows:
        reading = readings[chat_id]
        if changed_at is None:
            found.new.append(reading)
        elif not any(at and reading.observed_at < at <= now for at in (changed_at, handles_at)):
            found.changed.append(reading)
            if digest is None:
                found.undigested.append(reading)
    return found


def note_digests(connection: Connection, readings: Iterable[Reading]) -> None:
    """Keep the digests of what is now stored as it was read."""
    pairs = [(reading.chat.id, reading.digest) for reading in readings]
    given = given_integers(connection, pairs, "id", "digest")
    other = chats.c.digest.is_distinct_from(given.c.digest)
    connection.execute(
        update(chats).where(chats.c.id == given.c.id, other).values(digest=given.c.digest)
    )


def chat_values(chat: Chat, forms: Forms) -> Row:
    """The chat's values in the order of CHAT_FIELDS, null where the API left one out."""
    told = (chat.display_name, chat.service, chat.is_group, chat.message_count)
    return (*_nulled(told), forms.json(chat.extra) if chat.extra else None)


def handle_values(handle: Handle, forms: Forms) -> Row:
    """The same for a participant and HANDLE_FIELDS."""
    joined_at = handle.joined_at
    if isinstance(joined_at, datetime):
        joined_at = forms.time(joined_at)
    told = (handle.phone_number, handle.service, joined_at)
    return (*_nulled(told), forms.json(handle.extra) if handle.extra else None)


def handles_of(chat: Chat) -> Collection[Handle]:
    """Its participants; one that is listed twice is one, and what stands last counts."""
    handles = chat.handles or ()
    by_id = {handle.id: handle for handle in handles}
    return handles if len(by_id) == len(handles) else by_id.values()


def _nulled(values: Row) -> Row:
    return tuple(None if v is UNSET else v for v in values) if UNSET in values else values


def _observed_at(listing: Listing) -> datetime:
    return listing.page.observed_at

"""Where participants are hashed: keep the name of a group only if it names no person.

A part of a group's name may be the name of a one-to-one chat, which is stored as a keyed hash
alone. Such a chat may be read after the group: then the group's stored name is erased, without an
event, because it should not have been stored.
"""

from collections.abc import Callable, Collection, Mapping
from datetime import datetime

from msgspec import structs
from sqlalchemy import Connection, select, update

from etl.api.models import Chat, hash64
from etl.db.backends import Row, backend
from etl.db.store.batch import Observation, ObservedPage
from etl.db.tables import chat_events, chat_name_hashes, chats

NameHashes = Callable[[str], set[int]]  # of a name and its parts
_table = chat_name_hashes
_NAMES = ("chat_id", "name_hash", "is_group")


def store_name_hashes(
    connection: Connection,
    pages: Collection[ObservedPage],
    observations: Mapping[int, Observation],
    hashes_of: NameHashes,
) -> None:
    """Store the hashes of the names; erase the stored names of groups that name a person."""
    groups = _hashes_of_groups(observations, hashes_of)
    rows = {each: False for page in pages for each in page.page.contacts}
    rows |= {(chat_id, part): True for chat_id, parts in groups.items() for part in parts}
    stored = {row[:2]: row[2] for row in _rows_of(connection, {chat_id for chat_id, _ in rows})}
    new = sorted((*key, value) for key, value in rows.items() if stored.get(key) != value)
    if new:
        backend(connection.dialect).upsert_rows(connection, _table, _NAMES, new)
    if people := {name for _, name, is_group in new if not is_group}:
        at = max(page.page.observed_at for page in pages)
        _erase_names(connection, people, hashes_of, at)


def settled(
    connection: Connection, observations: Mapping[int, Observation], hashes_of: NameHashes
) -> dict[int, Observation]:
    """The observations as they are stored: without the names of groups that name a person."""
    groups = _hashes_of_groups(observations, hashes_of)
    named = _people_among(connection, {part for parts in groups.values() for part in parts})
    return {
        chat_id: _settled(each, withhold=bool(groups[chat_id] & named))
        if chat_id in groups
        else each
        for chat_id, each in observations.items()
    }


def _hashes_of_groups(
    observations: Mapping[int, Observation], hashes_of: NameHashes
) -> dict[int, set[int]]:
    return {
        chat_id: hashes_of(name)
        for chat_id, each in observations.items()
        if (name := _group_name(each.chat))
    }


def with_settled_name(connection: Connection, chat: Chat, hashes_of: NameHashes) -> Chat:
    """The chat, without its name if that names a person."""
    name = _group_name(chat)
    if name and _people_among(connection, hashes_of(name)):
        return structs.replace(chat, display_name=None)
    return chat


def _group_name(chat: Chat) -> str | None:
    """A name that must be looked up before it is stored: only groups still have one here."""
    return chat.display_name if isinstance(chat.display_name, str) else None


def _people_among(connection: Connection, hashes: Collection[int]) -> set[int]:
    """Those of the hashes that are of the name of a one-to-one chat."""
    return {row[1] for row in _rows_with(connection, hashes, is_group=False)}


def _settled(observation: Observation, *, withhold: bool) -> Observation:
    """Its digest is such that a name can be erased later: see _erase_names."""
    name = _group_name(observation.chat) or ""
    nameless = structs.replace(observation.chat, display_name=None)
    if withhold:
        return structs.replace(observation, chat=nameless, digest=nameless.digest)
    return structs.replace(observation, digest=nameless.digest ^ hash64(name.encode()))


def _erase_names(
    connection: Connection, people: Collection[int], hashes_of: NameHashes, at: datetime
) -> None:
    """Erase the stored names of groups that hold a name of these people, also from the history."""
    database = backend(connection.dialect)
    found = {row[0] for row in _rows_with(connection, people, is_group=True)}
    if not found:
        return
    given = database.id_table(found)
    known = {*people}

    def names_person(name: str | None) -> bool:
        return name is not None and bool(hashes_of(name) & known)

    named = select(chats.c.id, chats.c.display_name, chats.c.digest).select_from(
        given.join(chats, chats.c.id == given.c.id)
    )
    for chat_id, name, digest in database.fetch_rows(connection, named):
        if names_person(name):
            without = None if digest is None else digest ^ hash64(name.encode())
            erased = update(chats).where(chats.c.id == chat_id)
            connection.execute(erased.values(display_name=None, digest=without, changed_at=at))
    events = select(chat_events.c.id, chat_events.c.old_value, chat_events.c.new_value).select_from(
        given.join(chat_events, chat_events.c.chat_id == given.c.id)
    )
    renamed = events.where(chat_events.c.kind == "renamed")
    for event_id, *values in database.fetch_rows(connection, renamed):
        old, new = (None if names_person(value) else value for value in values)
        if [old, new] != values:
            erased = update(chat_events).where(chat_events.c.id == event_id)
            connection.execute(erased.values(old_value=old, new_value=new))


def _rows_of(connection: Connection, chat_ids: Collection[int]) -> list[Row]:
    database = backend(connection.dialect)
    given = database.id_table(chat_ids)
    joined = given.join(_table, _table.c.chat_id == given.c.id)
    return database.fetch_rows(connection, select(*_table.c).select_from(joined))


def _rows_with(connection: Connection, hashes: Collection[int], *, is_group: bool) -> list[Row]:
    if not hashes:
        return []
    database = backend(connection.dialect)
    given = database.id_table(hashes)
    joined = given.join(_table, _table.c.name_hash == given.c.id)
    query = select(*_table.c).select_from(joined).where(_table.c.is_group.is_(is_group))
    return database.fetch_rows(connection, query)

"""Compare a chat as stored with a chat as observed: the rows to write, counts and events. Pure.

The rules: a field that the API left out keeps its stored value. A chat without a list of
participants keeps them; from a list, a missing participant has left. A removed chat or participant
that is observed again is restored. Only a chat that is watched gets events and gains.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final, NamedTuple

from msgspec import UNSET, Struct

from etl.api.models import Chat, Handle
from etl.db.store.batch import Observation
from etl.db.store.watch import Watch
from etl.db.tables import ChangeKind, EventKind

CHAT_FIELDS: Final = ("display_name", "service", "is_group", "message_count", "extra")
HANDLE_FIELDS: Final = ("phone_number", "service", "joined_at", "extra")
_EVENT_KINDS: Final[Mapping[str, EventKind]] = {
    "display_name": "renamed",
    "service": "service_changed",
    "is_group": "group_changed",
}
_CHANGE_KINDS: Final[Mapping[str, ChangeKind]] = {
    "message_count": "messages",
    "display_name": "names",
    "chat_handles": "participants",
}


class ChatRow(Struct, frozen=True, gc=False):
    """A row of `chats`; `extra` is JSON text."""

    id: int
    changed_at: datetime
    removed_at: datetime | None
    digest: int | None
    display_name: str | None
    service: str | None
    is_group: bool | None
    message_count: int | None
    extra: str | None


class HandleRow(Struct, frozen=True, gc=False):
    """A row of `chat_handles`; `extra` is JSON text."""

    chat_id: int
    id: int
    changed_at: datetime
    removed_at: datetime | None
    phone_number: str | None
    service: str | None
    joined_at: datetime | None
    extra: str | None


class StoredChat(NamedTuple):
    """A chat's row and its participants' rows by id, removed ones included."""

    row: ChatRow
    handles: dict[int, HandleRow]


class Event(NamedTuple):
    """What happened, with the text before and after."""

    kind: EventKind
    old: str | None = None
    new: str | None = None


class Count(NamedTuple):
    """A chat's message count; `gained` messages since `gained_since`, both None if not known."""

    message_count: int | None
    gained: int | None = None
    gained_since: datetime | None = None


class Diff(Struct, gc=False):
    """What an observation changes: rows to write and events, with the run log's counts.

    `count` is None if the message count is as before. `fields` names the columns that differ;
    `chat_handles` stands for participants who joined or left.
    """

    observation: Observation
    chat: ChatRow | None = None
    handles: Sequence[HandleRow] = ()
    count: Count | None = None
    events: tuple[Event, ...] = ()
    fields: tuple[str, ...] = ()
    chats_inserted: int = 0
    chats_updated: int = 0
    handles_inserted: int = 0
    handles_updated: int = 0
    handles_removed: int = 0

    @property
    def is_change(self) -> bool:
        """Whether anything differs, besides the digest."""
        return bool(self.chats_inserted or self.chats_updated or self.handles)

    @property
    def kinds(self) -> Sequence[ChangeKind]:
        """What has changed, as far as quick readings are judged by it."""
        if self.chats_inserted:
            return ("new",)
        return [kind for name, kind in _CHANGE_KINDS.items() if name in self.fields]


def diff(stored: StoredChat | None, observation: Observation, watch: Watch) -> Diff:
    """Compare; `stored` is None for a chat that has no row yet."""
    if stored is None:
        return _diff_new(observation, watch)
    found = Diff(observation)
    _compare_chat(found, stored.row, watch)
    if observation.chat.handles is not None:
        _compare_handles(found, stored.handles)
    if not watch.is_on:
        found.events = ()
    outdated_digest = stored.row.digest != observation.digest
    if found.chat is None and outdated_digest and (found.handles or stored.row.digest is None):
        found.chat = _with_digest(stored.row, observation.digest)
    return found


def is_newer(stored: StoredChat, observation: Observation, now: datetime) -> bool:
    """Whether a row of the chat changed after the observation.

    Ignore timestamps ahead of `now`: after a wrong clock, such a row would never be updated again.
    """
    times = (stored.row.changed_at, *(handle.changed_at for handle in stored.handles.values()))
    return any(observation.observed_at < at <= now for at in times)


def _diff_new(observation: Observation, watch: Watch) -> Diff:
    chat, at = observation.chat, observation.observed_at
    message_count = None if chat.message_count is UNSET else chat.message_count
    handles = [
        HandleRow(chat.id, handle.id, at, None, *_none_if_unset(_handle_values(handle)))
        for handle in _distinct(chat.handles or ())
    ]
    return Diff(
        observation,
        chat=ChatRow(chat.id, at, None, observation.digest, *_none_if_unset(_chat_values(chat))),
        handles=handles,
        count=_count(0, message_count, at, watch.same_until),
        events=(Event("created"),) if watch.is_on else (),
        chats_inserted=1,
        handles_inserted=len(handles),
    )


def _count(
    before: int | None, after: int | None, at: datetime, same_until: datetime | None
) -> Count:
    if same_until is None or before is None or after is None:
        return Count(after)
    return Count(after, max(after - before, 0), min(same_until, at))


def _compare_chat(found: Diff, row: ChatRow, watch: Watch) -> None:
    observation = found.observation
    before = _chat_values(row)
    after = _said_or_stored(_chat_values(observation.chat), before)
    differing = _differing(CHAT_FIELDS, before, after)
    if not differing and row.removed_at is None:
        return
    found.chat = ChatRow(row.id, observation.observed_at, None, observation.digest, *after)
    found.chats_updated = 1
    if "message_count" in differing:
        same_until = watch.same_until and max(row.changed_at, watch.same_until)
        at, after_count = observation.observed_at, found.chat.message_count
        found.count = _count(row.message_count, after_count, at, same_until)
    events = [
        Event(_EVENT_KINDS[name], _text(old), _text(new))
        for name, old, new in zip(CHAT_FIELDS, before, after, strict=True)
        if name in differing and name in _EVENT_KINDS
    ]
    restored = () if row.removed_at is None else (Event("restored"),)
    found.events = (*restored, *events)
    found.fields = (*differing, *(("removed_at",) if restored else ()))


def _compare_handles(found: Diff, stored: Mapping[int, HandleRow]) -> None:
    chat_id, at = found.observation.chat.id, found.observation.observed_at
    rows: list[HandleRow] = []
    events: list[Event] = []
    fields: set[str] = set()
    listed = {handle.id: handle for handle in found.observation.chat.handles or ()}
    for handle in listed.values():
        row = stored.get(handle.id)
        before = _handle_values(row) if row else _NO_VALUES
        after = _said_or_stored(_handle_values(handle), before)
        joined = row is None or row.removed_at is not None
        differing = ["chat_handles"] if joined else _differing(_HANDLE_COLUMNS, before, after)
        if differing:
            rows.append(HandleRow(chat_id, handle.id, at, None, *after))
            fields.update(differing)
            found.handles_inserted += row is None
        if joined:
            events.append(Event("joined", None, rows[-1].phone_number))
    found.handles_updated = len(rows) - found.handles_inserted
    for row in stored.values():
        if row.removed_at is None and row.id not in listed:
            rows.append(HandleRow(chat_id, row.id, at, at, *_handle_values(row)))
            fields.add("chat_handles")
            events.append(Event("left", row.phone_number))
            found.handles_removed += 1
    found.handles = rows
    found.events += tuple(events)
    found.fields += tuple(sorted(fields))


def _with_digest(row: ChatRow, digest: int) -> ChatRow:
    return ChatRow(row.id, row.changed_at, row.removed_at, digest, *_chat_values(row))


# Values in the order of CHAT_FIELDS and HANDLE_FIELDS

_HANDLE_COLUMNS: Final = tuple(f"chat_handles.{name}" for name in HANDLE_FIELDS)
_NO_VALUES: Final = (None,) * len(HANDLE_FIELDS)


def _chat_values(chat: Chat | ChatRow) -> tuple[Any, ...]:
    return chat.display_name, chat.service, chat.is_group, chat.message_count, chat.extra


def _handle_values(handle: Handle | HandleRow) -> tuple[Any, ...]:
    return handle.phone_number, handle.service, handle.joined_at, handle.extra


def _none_if_unset(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if UNSET not in values:
        return values
    return tuple(None if value is UNSET else value for value in values)


def _said_or_stored(said: tuple[Any, ...], stored: tuple[Any, ...]) -> tuple[Any, ...]:
    if UNSET not in said:
        return said
    return tuple(old if new is UNSET else new for new, old in zip(said, stored, strict=True))


def _differing(names: Sequence[str], before: Sequence[Any], after: Sequence[Any]) -> list[str]:
    """The names of the values that differ; the last value, `extra`, is compared as JSON."""
    if before == after:
        return []
    differing = [n for n, old, new in zip(names, before, after, strict=True) if old != new]
    return (
        differing[:-1]
        if differing[-1] == names[-1] and _same_json(before[-1], after[-1])
        else differing
    )


def _same_json(old: str | None, new: str | None) -> bool:
    if old == new or old is None or new is None:
        return old == new
    return _same(json.loads(old), json.loads(new))


def _same(old: Any, new: Any) -> bool:
    """Equal as JSON: jsonb stores 1e16 as 10000000000000000, and Python finds True equal to 1."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(_same(old[key], new[key]) for key in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_same, old, new))
    if {type(old), type(new)} == {int, float}:
        # jsonb stores 1e23 as the integer, of which the float is only the nearest.
        with suppress(OverflowError):
            return float(old) == float(new)
    return bool(old == new) and isinstance(old, bool) == isinstance(new, bool)


def _text(value: Any) -> str | None:
    return str(value).lower() if isinstance(value, bool) else value


def _distinct(handles: Collection[Handle]) -> Collection[Handle]:
    """A participant that is listed twice is one; its last entry counts."""
    by_id = {handle.id: handle for handle in handles}
    return handles if len(by_id) == len(handles) else by_id.values()

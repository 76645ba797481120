"""The rules of storing in their plainest form, and the records to try them with.

The model keeps whole rows in dictionaries; the tests compare them with what the program stored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from hypothesis import strategies as st

from etl.db.store.batch import ObservedPage
from etl.db.store.watch import Watch
from tests.support.builders import Row, count_row, event_row, link_row, observed_page

# Names in the API's records, and the columns that hold them.
CHAT_NAMES = {
    "display_name": "display_name",
    "service": "service",
    "group": "is_group",
    "message_count": "message_count",
}
HANDLE_NAMES = {name: name for name in ("phone_number", "service", "joined_at")}


@dataclass(frozen=True)
class ModelPage:
    """A page of a number's list, before it is written as JSON."""

    phone_number: str
    at: datetime
    records: Sequence[Row]

    def observed(self) -> ObservedPage:
        return observed_page(*self.records, phone_number=self.phone_number, at=self.at)


@dataclass
class Model:
    """The rows that the tables should hold, by key; `loaded` says since when numbers are loaded."""

    chats: dict[int, Row] = field(default_factory=dict)
    handles: dict[tuple[int, int], Row] = field(default_factory=dict)
    links: dict[tuple[str, int], Row] = field(default_factory=dict)
    message_counts: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    loaded: Mapping[str, datetime] = field(default_factory=dict)

    def store(self, batch: Sequence[ModelPage]) -> None:
        latest, listed = {}, {}
        for page in sorted(batch, key=lambda page: page.at):
            latest.update({record["id"]: (record, page) for record in page.records})
            listed.update({(page.phone_number, record["id"]): page.at for record in page.records})
        for record, page in latest.values():
            watch = self._watch(record["id"], [number for number, i in listed if i == record["id"]])
            self.store_chat(record, page.at, watch)
        for key, at in listed.items():
            row = link_row(*key, first_seen_at=at)
            self.links.setdefault(key, row)["removed_at"] = None

    def remove_everything(self, at: datetime) -> None:
        for row in self.chats.values():
            row.update(changed_at=at, removed_at=at)
        for row in self.links.values():
            row.update(removed_at=at)

    def _watch(self, chat_id: int, listing: Sequence[str]) -> Watch:
        if chat_id in self.chats:
            links = [self.links.get((number, chat_id)) for number in self.loaded]
            times = [row["first_seen_at"] for row in links if row]
        else:
            times = [self.loaded[number] for number in listing if number in self.loaded]
        return Watch(same_until=max(times, default=None))

    def store_chat(self, record: Row, at: datetime, watch: Watch) -> None:
        chat_id, old = record["id"], self.chats.get(record["id"])
        new = self.chats[chat_id] = _merged(old, record, CHAT_NAMES, at, {"id": chat_id})
        self._store_count(old, new, at, watch)
        events = [*self.events]
        self._store_events(old, new, record, at)
        if not watch.is_on:
            self.events = events

    def _store_count(self, old: Row | None, new: Row, at: datetime, watch: Watch) -> None:
        before, after = old["message_count"] if old else 0, new["message_count"]
        if old and before == after:
            return
        row = count_row(new["id"], at, after)
        if watch.same_until and None not in (before, after):
            since = max(old["changed_at"], watch.same_until) if old else watch.same_until
            gained = max(after - before, 0)
            row = count_row(new["id"], at, after, gained=gained, since=min(since, at))
        self.message_counts.append(row)

    def _store_events(self, old: Row | None, new: Row, record: Row, at: datetime) -> None:
        chat_id = new["id"]
        if old is None:
            self._add_event("created", at, chat_id)
        if old and old["removed_at"]:
            self._add_event("restored", at, chat_id)
        for name, kind in (
            ("display_name", "renamed"),
            ("service", "service_changed"),
            ("is_group", "group_changed"),
        ):
            if old and old[name] != new[name]:
                self._add_event(kind, at, chat_id, old[name], new[name])
        if record.get("chat_handles") is not None:
            self._store_handles(record, at, is_new=old is None)

    def _store_handles(self, record: Row, at: datetime, *, is_new: bool) -> None:
        listed = {(record["id"], member["id"]): member for member in record["chat_handles"]}
        for key, member in listed.items():
            old = self.handles.get(key)
            new = _merged(old, member, HANDLE_NAMES, at, {"chat_id": key[0], "id": key[1]})
            self.handles[key] = new
            if not is_new and (old is None or old["removed_at"]):
                self._add_event("joined", at, key[0], None, new["phone_number"])
        for key, row in self.handles.items():
            if key[0] == record["id"] and key not in listed and not row["removed_at"]:
                row.update(changed_at=at, removed_at=at)
                self._add_event("left", at, key[0], row["phone_number"], None)

    def _add_event(
        self, kind: str, at: datetime, chat_id: int, old: Any = None, new: Any = None
    ) -> None:
        texts = {True: "true", False: "false"}
        values = [texts[v] if isinstance(v, bool) else v for v in (old, new)]
        self.events.append(event_row(kind, *values, observed_at=at, chat_id=chat_id))


def _merged(old: Row | None, record: Row, names: Mapping[str, str], at: datetime, key: Row) -> Row:
    """The row after the record was read: `old` itself if nothing differs."""
    sent = {column: record[name] for name, column in names.items() if name in record}
    if sent.get("joined_at"):
        sent["joined_at"] = datetime.fromisoformat(sent["joined_at"])
    unknown = {"extra": {"mood": record["mood"]} if "mood" in record else None}
    blank: Row = {**key, **dict.fromkeys(names.values()), "first_seen_at": at}
    row = {**(old or blank), **sent, **unknown, "removed_at": None}
    return old if old and row == old else {**row, "changed_at": at}


# Random records


def _records(ids: st.SearchStrategy[int], **fields: Any) -> st.SearchStrategy[Row]:
    """Records with such an id and some of these fields, each with one of its values."""
    values = {
        name: st.sampled_from(value) if isinstance(value, list) else value
        for name, value in fields.items()
    }
    return st.fixed_dictionaries({"id": ids}, optional=values)


HANDLE_RECORDS = _records(
    st.integers(11, 13),
    phone_number=["+13125550011", "bo@example.com", None],
    service=["SMS", "iMessage"],
    joined_at=["2025-05-21T15:30:00-05:00", "2025-05-21T20:30:00Z", "2025-01-01T00:00Z", None],
    mood=["good", None],
)
CHAT_RECORDS = _records(
    st.integers(1, 4),
    display_name=["Ada", "Bo", None],
    service=["SMS", "iMessage", None],
    group=[True, False, None],
    message_count=[0, 1, 2**63 - 1, None],
    mood=["good", {"a": [1]}],
    chat_handles=st.none() | st.lists(HANDLE_RECORDS, max_size=4),
)

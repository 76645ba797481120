"""The comparison of a stored chat with an observed one, without a database."""

from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from etl.api.models import canonical_json
from etl.db.store.batch import Observation
from etl.db.store.diff import ChatRow, Count, Diff, Event, HandleRow, StoredChat, diff, is_newer
from etl.db.store.watch import UNWATCHED, Watch
from tests.support.builders import (
    JOINED,
    NOON,
    Row,
    chat,
    handle,
    minute,
    observed_page,
    without,
)
from tests.support.store_model import CHAT_RECORDS, Model

LATER = minute(1)
WATCHED = Watch(same_until=NOON)


def observe(record: Row, at: datetime = LATER) -> Observation:
    (observation,) = observed_page(record, at=at).observations
    return observation


def stored_handle(handle_id: int = 11, /, **fields: Any) -> HandleRow:
    """The row that `handle` leaves at noon."""
    row: Row = {
        "chat_id": 1,
        "id": handle_id,
        "changed_at": NOON,
        "removed_at": None,
        "phone_number": f"+1312555{handle_id:04}",
        "service": "iMessage",
        "joined_at": JOINED,
        "extra": None,
    }
    return HandleRow(**row | fields)


def stored_chat(*handles: HandleRow, **fields: Any) -> StoredChat:
    """The row that `chat` leaves at noon, with these participants, or with the one of `chat`."""
    row: Row = {
        "id": 1,
        "changed_at": NOON,
        "removed_at": None,
        "digest": observe(chat()).digest,
        "display_name": "Ada",
        "service": "iMessage",
        "is_group": False,
        "message_count": 1,
        "extra": None,
    }
    by_id = {each.id: each for each in handles or (stored_handle(),)}
    return StoredChat(ChatRow(**row | fields), by_id)


def written_chat(observation: Observation, **fields: Any) -> ChatRow:
    """The row of the default chat with these new values."""
    times = {"changed_at": observation.observed_at, "digest": observation.digest}
    return structs.replace(stored_chat().row, **times | fields)


def compare(stored: StoredChat | None, observation: Observation, watch: Watch = WATCHED) -> Diff:
    """The diff, with its participants in a tuple, as in an empty one."""
    found = diff(stored, observation, watch)
    return structs.replace(found, handles=tuple(found.handles))


# A chat without a row


@pytest.mark.parametrize("watch", [UNWATCHED, WATCHED])
def test_a_new_chat_is_inserted_with_its_participants(watch: Watch) -> None:
    """It is a `created` event and a gain if it is watched; there are no `joined` events."""
    observation = observe(chat(chat_handles=[handle(11), handle(12)]))
    assert compare(None, observation, watch) == Diff(
        observation,
        chat=written_chat(observation),
        handles=tuple(stored_handle(number, changed_at=LATER) for number in (11, 12)),
        count=Count(1, 1, NOON) if watch.is_on else Count(1),
        events=(Event("created"),) if watch.is_on else (),
        chats_inserted=1,
        handles_inserted=2,
    )


def test_what_a_new_record_leaves_out_is_null() -> None:
    """Both in the chat and in its participants; its message count of null is the first one."""
    observation = observe({"id": 1, "chat_handles": [{"id": 11}]})
    found = compare(None, observation)
    unset = dict.fromkeys(("display_name", "service", "is_group", "message_count"))
    assert found.chat == written_chat(observation, **unset)
    unset = dict.fromkeys(("phone_number", "service", "joined_at"))
    assert found.handles == (stored_handle(changed_at=LATER, **unset),)
    assert found.count == Count(None)


@pytest.mark.parametrize("nothing", [None, []])
def test_a_new_chat_may_have_no_participants(nothing: Any) -> None:
    """With an empty list and without one."""
    found = compare(None, observe(chat(chat_handles=nothing)))
    assert (found.handles, found.handles_inserted) == ((), 0)


# A chat with a row


@pytest.mark.parametrize(
    "record",
    [
        chat(),
        {"id": 1},
        {"id": 1, "chat_handles": None},
        {"id": 1, "chat_handles": [{"id": 11}]},
        chat(chat_handles=[handle(joined_at="2025-05-21T20:30:00Z")]),
    ],
    ids=["same", "id only", "null list", "participant's id only", "same instant"],
)
def test_nothing_new_changes_nothing(record: Row) -> None:
    """A field or a list that was left out keeps what is stored."""
    observation = observe(record)
    assert compare(stored_chat(), observation) == Diff(observation)


@pytest.mark.parametrize(
    ("column", "field", "value", "event"),
    [
        ("display_name", "display_name", "Bo", Event("renamed", "Ada", "Bo")),
        ("display_name", "display_name", None, Event("renamed", "Ada", None)),
        ("service", "service", "SMS", Event("service_changed", "iMessage", "SMS")),
        ("is_group", "group", True, Event("group_changed", "false", "true")),
        ("is_group", "group", None, Event("group_changed", "false", None)),
        ("message_count", "message_count", 2, None),
        ("message_count", "message_count", None, None),
    ],
)
def test_a_changed_field_is_written(
    column: str, field: str, value: Any, event: Event | None
) -> None:
    """With its event; a changed message count has a row of its own instead."""
    observation = observe(chat(**{field: value}))
    assert compare(stored_chat(), observation) == Diff(
        observation,
        chat=written_chat(observation, **{column: value}),
        count={("message_count", 2): Count(2, 1, NOON), ("message_count", None): Count(None)}.get(
            (column, value)
        ),
        events=(event,) if event else (),
        fields=(column,),
        chats_updated=1,
    )


def test_several_changes_are_one_row() -> None:
    """Events and fields in the order of the columns; what was left out stays."""
    observation = observe({"id": 1, "display_name": "Bo", "group": True, "message_count": 5})
    assert compare(stored_chat(extra='{"a":1}'), observation) == Diff(
        observation,
        chat=written_chat(observation, display_name="Bo", is_group=True, message_count=5),
        count=Count(5, 4, NOON),
        events=(Event("renamed", "Ada", "Bo"), Event("group_changed", "false", "true")),
        fields=("display_name", "is_group", "message_count", "extra"),
        chats_updated=1,
    )


def test_a_removed_chat_is_restored() -> None:
    """Although no value changed; the event comes before those of its changes."""
    removed = stored_chat(removed_at=NOON)
    observation = observe(chat())
    assert compare(removed, observation) == Diff(
        observation,
        chat=written_chat(observation),
        events=(Event("restored"),),
        fields=("removed_at",),
        chats_updated=1,
    )
    renamed = compare(removed, observe(chat(display_name="Bo")))
    assert renamed.events == (Event("restored"), Event("renamed", "Ada", "Bo"))
    assert renamed.fields == ("display_name", "removed_at")


def test_a_missing_digest_is_written_alone() -> None:
    """The chat counts as unchanged, and `changed_at` stays."""
    observation = observe(chat())
    assert compare(stored_chat(digest=None), observation) == Diff(
        observation, chat=stored_chat(digest=observation.digest).row
    )


# Participants


def test_a_participant_who_is_listed_has_joined() -> None:
    """A row, an event with the phone number or e-mail address, and the digest of the chat."""
    observation = observe(chat(chat_handles=[handle(11), handle(12)]))
    assert compare(stored_chat(), observation) == Diff(
        observation,
        chat=written_chat(observation, changed_at=NOON),
        handles=(stored_handle(12, changed_at=LATER),),
        events=(Event("joined", None, "+13125550012"),),
        fields=("chat_handles",),
        handles_inserted=1,
    )


@pytest.mark.parametrize("listed", [[], [handle(12)]])
def test_a_participant_who_is_not_listed_has_left(listed: list[Row]) -> None:
    """Its row keeps its values; an empty list means that all have left."""
    observation = observe(chat(chat_handles=listed))
    others = [stored_handle(each["id"]) for each in listed]
    assert compare(stored_chat(stored_handle(), *others), observation) == Diff(
        observation,
        chat=written_chat(observation, changed_at=NOON),
        handles=(stored_handle(changed_at=LATER, removed_at=LATER),),
        events=(Event("left", "+13125550011"),),
        fields=("chat_handles",),
        handles_removed=1,
    )


def test_a_participant_who_has_left_stays_away() -> None:
    """Not listed again, its row is not written again."""
    stored = stored_chat(stored_handle(), stored_handle(12, removed_at=NOON))
    observation = observe(chat())
    assert compare(stored, observation) == Diff(observation)


def test_a_participant_who_returns_is_updated() -> None:
    """Restored with the values of now; fields that were left out keep the stored ones."""
    observation = observe(chat(chat_handles=[{"id": 11, "service": "SMS"}]))
    assert compare(stored_chat(stored_handle(removed_at=NOON)), observation) == Diff(
        observation,
        chat=written_chat(observation, changed_at=NOON),
        handles=(stored_handle(changed_at=LATER, service="SMS"),),
        events=(Event("joined", None, "+13125550011"),),
        fields=("chat_handles",),
        handles_updated=1,
    )


@pytest.mark.parametrize(
    ("field", "value", "stored"),
    [
        ("phone_number", "ada@example.com", "ada@example.com"),
        ("service", None, None),
        ("joined_at", "2025-05-21T20:30:00.000001Z", JOINED.replace(microsecond=1)),
    ],
)
def test_a_changed_participant_is_written(field: str, value: Any, stored: Any) -> None:
    """Without an event."""
    observation = observe(chat(chat_handles=[handle(**{field: value})]))
    assert compare(stored_chat(), observation) == Diff(
        observation,
        chat=written_chat(observation, changed_at=NOON),
        handles=(stored_handle(changed_at=LATER, **{field: stored}),),
        fields=(f"chat_handles.{field}",),
        handles_updated=1,
    )


@pytest.mark.parametrize("known", [False, True], ids=["new", "stored"])
def test_a_participant_listed_twice_is_one(known: bool) -> None:
    """The last entry counts."""
    observation = observe(chat(chat_handles=[handle(service="SMS"), handle(service="RCS")]))
    found = compare(stored_chat() if known else None, observation)
    assert found.handles == (stored_handle(changed_at=LATER, service="RCS"),)
    assert (found.handles_inserted, found.handles_updated) == ((0, 1) if known else (1, 0))


# Unknown fields

EQUAL_JSON = [
    ('{"a":1,"b":2}', '{"b":2,"a":1}'),
    ('{"a":10000000000000000}', '{"a":1e+16}'),
    ('{"a":100000000000000000000000}', '{"a":1e+23}'),
    ('{"a":0}', '{"a":-0.0}'),
    ('{"a":[1.0,{"b":null}]}', '{"a":[1,{"b":null}]}'),
]
DIFFERENT_JSON = [
    ('{"a":1}', '{"a":true}'),
    ('{"a":false}', '{"a":0}'),
    ('{"a":[true]}', '{"a":[1]}'),
    ('{"a":null}', "{}"),
    ('{"a":[1,2]}', '{"a":[2,1]}'),
    ('{"a":[1]}', '{"a":[1,1]}'),
    ('{"a":1}', '{"a":"1"}'),
    ('{"a":{}}', '{"a":[]}'),
    ('{"a":1}', '{"b":1}'),
    ('{"a":9007199254740993}', '{"a":9007199254740992}'),
    ('{"a":1}', None),
    (None, '{"a":1}'),
]


def observe_extra(extra: str | None) -> Observation:
    """The default chat and its participant, with these unknown fields."""
    plain = observe(chat())
    handles = plain.chat.handles or ()
    handles = tuple(structs.replace(each, extra=extra) for each in handles)
    return structs.replace(plain, chat=structs.replace(plain.chat, extra=extra, handles=handles))


@pytest.mark.parametrize(("stored", "sent"), EQUAL_JSON)
def test_unknown_fields_that_are_equal_as_json_are_unchanged(stored: str, sent: str) -> None:
    """A database may store a number or an object in another form than the API sent."""
    observation = observe_extra(sent)
    before = stored_chat(stored_handle(extra=stored), extra=stored)
    assert compare(before, observation) == Diff(observation)


@pytest.mark.parametrize(("stored", "sent"), DIFFERENT_JSON)
def test_unknown_fields_that_differ_are_written(stored: str | None, sent: str | None) -> None:
    """True is not 1, null is not a missing key, and no digit of an integer is lost."""
    observation = observe_extra(sent)
    before = stored_chat(stored_handle(extra=stored), extra=stored)
    assert compare(before, observation) == Diff(
        observation,
        chat=written_chat(observation, extra=sent),
        handles=(stored_handle(changed_at=LATER, extra=sent),),
        fields=("extra", "chat_handles.extra"),
        chats_updated=1,
        handles_updated=1,
    )


def test_a_change_beside_equal_json_names_only_the_change() -> None:
    """`extra` in another form is not a changed field."""
    extra = '{"a":1e+16}'
    observation = observe_extra(extra)
    before = stored_chat(stored_handle(extra=extra), extra='{"a":10000000000000000}', service="SMS")
    assert compare(before, observation).fields == ("service",)


# Order of time


@pytest.mark.parametrize(
    ("chat_changed", "handle_changed", "newer"),
    [(0, 0, False), (1, 1, False), (2, 0, True), (0, 2, True), (9, 0, True), (10, 10, False)],
    ids=["older", "same instant", "chat", "participant", "now", "future"],
)
def test_a_row_is_newer_than_an_older_observation(
    chat_changed: int, handle_changed: int, newer: bool
) -> None:
    """Chat or participant; a time after `now` comes from a wrong clock and is ignored."""
    stored = stored_chat(
        stored_handle(changed_at=minute(handle_changed)), changed_at=minute(chat_changed)
    )
    assert is_newer(stored, observe(chat(), at=minute(1)), now=minute(9)) is newer


def test_a_participant_who_left_later_makes_the_row_newer() -> None:
    """Removed rows count too."""
    left = stored_handle(12, changed_at=minute(2), removed_at=minute(2))
    assert is_newer(stored_chat(stored_handle(), left), observe(chat()), now=minute(9))


# What was gained


@pytest.mark.parametrize(
    ("before", "after", "gained"), [(1, 4, 3), (4, 1, 0), (0, 2**63 - 1, 2**63 - 1)]
)
def test_a_gain_is_an_increase(before: int, after: int, gained: int) -> None:
    """A fall gains nothing."""
    found = compare(stored_chat(message_count=before), observe(chat(message_count=after)))
    assert found.count == Count(after, gained, NOON)


@pytest.mark.parametrize(("before", "after"), [(None, 4), (4, None)])
def test_without_two_counts_no_gain_is_known(before: int | None, after: int | None) -> None:
    """Null is no count."""
    found = compare(stored_chat(message_count=before), observe(chat(message_count=after)))
    assert found.count == Count(after)


@pytest.mark.parametrize(
    ("changed_at", "same_until", "since"),
    [
        (minute(0), minute(5), minute(5)),
        (minute(6), minute(5), minute(6)),
        (minute(0), minute(20), minute(10)),
    ],
    ids=["read unchanged later", "changed later", "clock was ahead"],
)
def test_a_gain_was_made_after_the_last_reading(
    changed_at: datetime, same_until: datetime, since: datetime
) -> None:
    """Never after it was observed."""
    stored = stored_chat(changed_at=changed_at)
    watch = Watch(same_until=same_until)
    found = compare(stored, observe(chat(message_count=2), minute(10)), watch)
    assert found.count == Count(2, 1, since)


def test_a_chat_that_is_not_watched_has_no_events_and_gains() -> None:
    """Its rows are written all the same."""
    record = chat(display_name="Bo", message_count=2, chat_handles=[handle(12)])
    stored = stored_chat(removed_at=NOON)
    found, watched = (compare(stored, observe(record), each) for each in (UNWATCHED, WATCHED))
    assert len(watched.events) == 4
    assert found == structs.replace(watched, events=(), count=Count(2))


# Any stored chat, any observation

MOODS = {canonical_json({"mood": mood}): mood for mood in ("good", None, {"a": [1]})}
REMOVED = st.sampled_from([None, NOON])


@st.composite
def stored_chats(draw: st.DrawFn) -> StoredChat:
    """The rows that some record left at noon, some of them marked as removed."""
    found = diff(None, observe(draw(CHAT_RECORDS) | {"id": 1}, NOON), UNWATCHED)
    assert found.chat
    digest = draw(st.sampled_from([found.chat.digest, None]))
    row = structs.replace(found.chat, digest=digest, removed_at=draw(REMOVED))
    handles = [structs.replace(each, removed_at=draw(REMOVED)) for each in found.handles]
    return StoredChat(row, {each.id: each for each in handles})


def written(stored: StoredChat | None, found: Diff) -> StoredChat:
    """The rows after the diff was written."""
    row = found.chat or (stored and stored.row)
    assert row
    return StoredChat(row, (stored.handles if stored else {}) | {h.id: h for h in found.handles})


def as_model(stored: StoredChat | None) -> Model:
    """The rows as the model keeps them."""

    def as_row(row: ChatRow | HandleRow) -> Row:
        extra = row.extra and {"mood": MOODS[row.extra]}
        return {**without(structs.asdict(row), "digest"), "extra": extra, "first_seen_at": NOON}

    if stored is None:
        return Model()
    handles = {(1, handle_id): as_row(row) for handle_id, row in stored.handles.items()}
    return Model({1: as_row(stored.row)}, handles)


@settings(max_examples=300)
@given(st.none() | stored_chats(), CHAT_RECORDS, st.sampled_from([WATCHED, UNWATCHED]))
def test_any_diff_leads_to_the_rows_of_the_model(
    stored: StoredChat | None, record: Row, watch: Watch
) -> None:
    """With its events and counts; when compared again, nothing is left to write."""
    record = record | {"id": 1}
    observation = observe(record)
    found, model = compare(stored, observation, watch), as_model(stored)
    known = set(model.handles)
    model.store_chat(record, LATER, watch)
    after = written(stored, found)
    for rows in (model.chats, model.handles):
        for row in rows.values():
            row["first_seen_at"] = NOON
    assert as_model(after).chats == model.chats
    assert as_model(after).handles == model.handles
    events = [Event(each["kind"], each["old_value"], each["new_value"]) for each in model.events]
    assert sorted(found.events, key=repr) == sorted(events, key=repr)
    counts = [(r["message_count"], r["gained"], r["gained_since"]) for r in model.message_counts]
    assert ([tuple(found.count)] if found.count else []) == counts
    assert counts_of(found) == counts_in(model, known, is_new=stored is None)
    assert compare(after, observation) == Diff(observation)


def counts_of(found: Diff) -> dict[str, int]:
    names = [name for name in Diff.__struct_fields__ if name.startswith(("chats_", "handles_"))]
    return {name: getattr(found, name) for name in names}


def counts_in(model: Model, known: set[tuple[int, int]], *, is_new: bool) -> dict[str, int]:
    """Counted from what changed in the model; `known` are the participants from before."""
    changed = {key: row for key, row in model.handles.items() if row["changed_at"] == LATER}
    removed = [row for row in changed.values() if row["removed_at"]]
    inserted = changed.keys() - known
    return {
        "chats_inserted": int(is_new),
        "chats_updated": int(not is_new and model.chats[1]["changed_at"] == LATER),
        "handles_inserted": len(inserted),
        "handles_updated": len(changed) - len(inserted) - len(removed),
        "handles_removed": len(removed),
    }

"""The views, whose SQL the migrations hold, and the data dictionary."""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    Double,
    Integer,
    MetaData,
    Table,
)
from sqlalchemy.types import TypeEngine

from etl.db.tables.base import metadata
from etl.db.types import LongText, ShortText, UtcDateTime

data_dictionary = Table(
    "data_dictionary",
    metadata,
    Column("table_name", ShortText(64), primary_key=True, comment="A table or view."),
    Column(
        "column_name",
        ShortText(64),
        primary_key=True,
        comment="Its column. Empty in the row about the table itself.",
    ),
    Column("type", LongText, comment="The column's type; table or view for the table."),
    Column("comment", LongText, nullable=False, comment="What it means."),
    comment="Every table, view and column of linq-etl, and what it means.",
)

views = MetaData()

_Columns = dict[str, tuple[type[TypeEngine[Any]], str]]
_NUMBER = (LongText, "The configured number.")
_LABEL = (LongText, "The number's label from the configuration.")
_SPREAD = (
    Integer,
    "Over how many UTC days, up to this one, the largest gain of the day may spread: 1 if it was "
    "gained on this day, more after a time without syncs. Null if not known.",
)


def _view(name: str, comment: str, columns: _Columns) -> Table:
    described = [Column(key, kind(), comment=text) for key, (kind, text) in columns.items()]
    return Table(name, views, *described, comment=comment)


number_status = _view(
    "number_status",
    "One row per number that was ever configured: how fresh and complete its list is, and whether "
    "its syncs fail.",
    {
        "phone_number": _NUMBER,
        "label": _LABEL,
        "run_id": (BigInteger, "The last run that read the whole list. Null if there is none."),
        "last_good_sync": (UtcDateTime, "When that run ended for this number."),
        "completeness": (LongText, "As in sync_run_numbers, of that run."),
        "reason": (LongText, "As in sync_run_numbers, of that run."),
        "total_count": (BigInteger, "The API's count of chats in that run."),
        "fresh_as_of": (
            UtcDateTime,
            "Changes until then are stored: when the last full walk began, or the last quick "
            "reading that is known to find nearly all of them (see quick_recall_lower).",
        ),
        "complete_as_of": (
            UtcDateTime,
            "When the last run ended whose list is consistent or proved: no chat was missing.",
        ),
        "list_order": (
            LongText,
            "How the API orders the list, as measured: recency, id, id-desc or unknown.",
        ),
        "quick_off": (
            LongText,
            "Why quick syncs read the whole list. Null if they read only where changes are likely.",
        ),
        "quick_hits": (BigInteger, "As in sync_run_numbers, of the last full walk."),
        "quick_misses": (BigInteger, "As in sync_run_numbers, of the last full walk."),
        "quick_recall_lower": (Double, "As in sync_run_numbers, of the last full walk."),
        "last_run_id": (BigInteger, "The last run that tried. One that found it busy did not."),
        "last_attempt_at": (
            UtcDateTime,
            "When that attempt ended.",
        ),
        "last_status": (LongText, "How it ended, as in sync_run_numbers."),
        "last_error_kind": (
            LongText,
            "Its kind of error, as in sync_runs. Null if it did not fail.",
        ),
        "last_error_detail": (LongText, "Its error as a sentence."),
        "failing_since": (
            UtcDateTime,
            "When the first attempt after the last good sync failed. Null if the last attempt did "
            "not fail.",
        ),
        "always_empty": (
            Boolean,
            "Whether the list was read and never had a chat: the number may be mistyped.",
        ),
    },
)

_view(
    "messages_per_day",
    "Messages per configured number and UTC day. A gain counts for each number that listed the "
    "chat when it was observed and was loaded before, so a sum over numbers counts shared chats "
    "twice: use messages_per_day_total. Filter by day.",
    {
        "phone_number": _NUMBER,
        "day": (Date, "The UTC day on which the messages were observed."),
        "messages": (BigInteger, "Messages gained. A day without any has no row."),
        "spread_days": _SPREAD,
    },
)

_view(
    "messages_per_day_total",
    "Messages per UTC day over all numbers; a chat that several numbers list counts once. Filter "
    "by day.",
    {
        "day": (Date, "The UTC day on which the messages were observed."),
        "messages": (BigInteger, "Messages gained. A day without any has no row."),
        "spread_days": _SPREAD,
    },
)

_view(
    "chat_activity",
    "One row per chat that exists: its last gain, and what it gained lately. A chat without gains "
    "is silent only since watched_since; before, nothing is known.",
    {
        "chat_id": (BigInteger, "The chat."),
        "display_name": (LongText, "As in chats."),
        "service": (LongText, "As in chats."),
        "is_group": (Boolean, "As in chats."),
        "message_count": (BigInteger, "Messages in the chat, as last read."),
        "last_gain_at": (UtcDateTime, "When a gain was last observed. Null if none was."),
        "gained_7_days": (BigInteger, "Messages gained in the last 7 x 24 hours."),
        "gained_30_days": (BigInteger, "Messages gained in the last 30 x 24 hours."),
        "watched_since": (UtcDateTime, "When the chat was first read."),
    },
)

_view(
    "daily_numbers",
    "What happened on each number and UTC day. Filter by day: all days together take long.",
    {
        "phone_number": _NUMBER,
        "day": (Date, "The UTC day. A day on which no message count changed has no row."),
        "new_chats": (
            BigInteger,
            "Chats that were first read on this day, after the number's first load.",
        ),
        "messages": (BigInteger, "As in messages_per_day."),
        "people": (
            BigInteger,
            "Different participants of the chats that gained messages, without configured numbers.",
        ),
        "advised_messages": (Integer, "The most messages that Linq advises for a number and day."),
    },
)

_view(
    "current_participants",
    "Current participants of current chats, for each number that lists the chat. Nothing marked as "
    "removed.",
    {
        "phone_number": _NUMBER,
        "label": _LABEL,
        "chat_id": (BigInteger, "The chat."),
        "display_name": (LongText, "As in chats."),
        "service": (LongText, "As in chats."),
        "is_group": (Boolean, "As in chats."),
        "handle_id": (BigInteger, "The API's handle id."),
        "participant": (LongText, "The participant, as chat_handles.phone_number."),
        "participant_service": (LongText, "The participant's messaging service."),
        "joined_at": (UtcDateTime, "When the participant joined. Null if not known."),
    },
)

_view(
    "participants",
    "One row per person: a phone number or e-mail address that takes part in current chats. Filter "
    "by participant: all people together take long.",
    {
        "participant": (LongText, "The participant, as chat_handles.phone_number."),
        "is_own_number": (Boolean, "Whether it is a configured number. Leave these out of counts."),
        "chats": (BigInteger, "Current chats with the person."),
        "group_chats": (BigInteger, "Group chats among them."),
        "numbers": (BigInteger, "Configured numbers that list such a chat."),
        "first_seen_at": (UtcDateTime, "When the person was first read in one of them."),
    },
)

_view(
    "group_sizes",
    "How many group chats have how many participants, configured numbers not counted.",
    {
        "people": (BigInteger, "Different current participants of a group chat."),
        "chats": (BigInteger, "Group chats of that size."),
    },
)

_view(
    "service_mix",
    "Current chats per configured number and messaging service.",
    {
        "phone_number": _NUMBER,
        "service": (LongText, "The chats' service. Null if the API did not name one."),
        "chats": (BigInteger, "Current chats."),
        "group_chats": (BigInteger, "Group chats among them."),
        "messages": (BigInteger, "Messages in these chats, as last read."),
    },
)

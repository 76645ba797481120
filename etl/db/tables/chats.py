"""Phone numbers, chats, their participants and their history."""

from typing import Literal

from sqlalchemy import BigInteger, Boolean, Column, Date, ForeignKey, Index, Integer, Table

from etl.db.tables.base import NUMBER_LENGTH, PARTICIPANT_LENGTH, metadata
from etl.db.types import BigKey, Json, LongText, ShortText, UtcDateTime

EventKind = Literal[
    "created",
    "renamed",
    "service_changed",
    "group_changed",
    "joined",
    "left",
    "removed",
    "restored",
]

_CHANGED_AT = "When this row last changed: the time of the API response that showed the change."
_EXTRA = "JSON object of the API fields that this version of linq-etl does not know."

phone_numbers = Table(
    "phone_numbers",
    metadata,
    Column(
        "phone_number",
        ShortText(NUMBER_LENGTH),
        primary_key=True,
        comment="E.164 with plus, e.g. +13343284472.",
    ),
    Column("label", LongText, comment="The number's label from the configuration."),
    Column("first_seen_at", UtcDateTime, nullable=False, comment="When it was first synced."),
    Column(
        "first_loaded_at",
        UtcDateTime,
        comment="When its list was first read to the end. Null until then. Chats found by a "
        "number's first full read get no `created` event.",
    ),
    Column(
        "unreached_since",
        UtcDateTime,
        comment="Since when List Phone Numbers does not name this number for its token. Null if it "
        "does, or if that is not known.",
    ),
    comment="One row per phone number that was ever configured.",
)

chats = Table(
    "chats",
    metadata,
    Column("id", BigKey, primary_key=True, autoincrement=False, comment="The API's chat id."),
    Column(
        "display_name",
        LongText,
        comment="A group's own name, or the chat's participants joined by commas. Where "
        "participants are hashed, a group's own name or null; where they are dropped, null.",
    ),
    Column("service", LongText, comment="iMessage, SMS, RCS or another service named by the API."),
    Column("is_group", Boolean, comment="Whether this is a group chat (the API's `group`)."),
    Column("message_count", BigInteger, comment="Messages in the chat, as last read."),
    Column("extra", Json, comment=_EXTRA),
    Column("first_seen_at", UtcDateTime, nullable=False, comment="When the chat was first read."),
    Column("changed_at", UtcDateTime, nullable=False, index=True, comment=_CHANGED_AT),
    Column(
        "removed_at",
        UtcDateTime,
        comment="When the API confirmed that the chat no longer exists. Null while it exists.",
    ),
    Column(
        "digest",
        BigInteger,
        comment="Internal: hash of the chat and its participants as last written. A chat that is "
        "read with the same hash is not compared. Null forces a comparison.",
    ),
    comment="One row per chat. Rows are never deleted, except by forget.",
)

chat_handles = Table(
    "chat_handles",
    metadata,
    Column(
        "chat_id",
        BigInteger,
        ForeignKey(chats.c.id),
        primary_key=True,
        autoincrement=False,
        comment="The chat.",
    ),
    Column("id", BigInteger, primary_key=True, autoincrement=False, comment="The API's handle id."),
    Column(
        "phone_number",
        ShortText(PARTICIPANT_LENGTH),
        comment="The participant's phone number or e-mail address, exactly as the API sent it. "
        "Where participants are hashed, its keyed hash, the same in each chat; where they are "
        "dropped, null. A configured number is never hashed or dropped.",
    ),
    Column("service", LongText, comment="The participant's messaging service."),
    Column("joined_at", UtcDateTime, comment="When the participant joined. Null if not known."),
    Column("extra", Json, comment=_EXTRA),
    Column(
        "first_seen_at",
        UtcDateTime,
        nullable=False,
        comment="When the participant was first read in this chat.",
    ),
    Column("changed_at", UtcDateTime, nullable=False, index=True, comment=_CHANGED_AT),
    Column(
        "removed_at",
        UtcDateTime,
        comment="When the chat was first read without this participant. Null while present.",
    ),
    Index(None, "phone_number"),
    sqlite_with_rowid=False,
    comment="One row per participant of a chat. Rows are never deleted, except by forget.",
)

# Here and in chat_message_counts, each row is written in the same transaction as the row it refers
# to, and that row is never deleted. PostgreSQL checks a foreign key row by row, which took longer
# than all other writes to these tables.
chat_phone_numbers = Table(
    "chat_phone_numbers",
    metadata,
    Column(
        "phone_number", ShortText(NUMBER_LENGTH), primary_key=True, comment="The configured number."
    ),
    Column(
        "chat_id",
        BigInteger,
        primary_key=True,
        autoincrement=False,
        index=True,
        comment="A chat in this number's list.",
    ),
    Column(
        "first_seen_at",
        UtcDateTime,
        nullable=False,
        comment="When the chat was first read in this list.",
    ),
    Column(
        "removed_at",
        UtcDateTime,
        comment="When the chat was found to have left this list. Null while it is listed.",
    ),
    Column(
        "missing_since",
        UtcDateTime,
        comment="When the list was first read without the chat although its removal is not "
        "confirmed. Null otherwise.",
    ),
    sqlite_with_rowid=False,
    comment="Which configured number lists which chat. A chat can be in several lists.",
)

chat_message_counts = Table(
    "chat_message_counts",
    metadata,
    Column("chat_id", BigInteger, primary_key=True, autoincrement=False, comment="The chat."),
    Column("observed_at", UtcDateTime, primary_key=True, comment="When the count was read."),
    Column("message_count", BigInteger, comment="The count from then on."),
    Column("run_id", BigKey, nullable=False, comment="The run that read the count."),
    Column(
        "gained",
        BigInteger,
        comment="Messages gained since the count before; 0 if the count fell. The first count, for "
        "a chat that is new in the list of a number. Null if not known, and during first loads.",
    ),
    Column(
        "gained_since",
        UtcDateTime,
        comment="The messages were gained after this time: the chat had been read since without "
        "them, or was not listed. Null if gained is null.",
    ),
    Column(
        "observed_on",
        Date,
        nullable=False,
        index=True,
        comment="The UTC date of observed_at. Filter by it to read a range of days fast.",
    ),
    Column(
        "spread_days",
        Integer,
        comment="UTC days from gained_since to observed_at, both counted: 1 if all was gained on "
        "observed_on. Null if gained is null.",
    ),
    sqlite_with_rowid=False,
    comment="A chat's message count over time: its first value, then one row per change.",
)

chat_events = Table(
    "chat_events",
    metadata,
    Column("id", BigKey, primary_key=True, comment="Ascending in the order of storing."),
    Column("run_id", BigKey, nullable=False, comment="The run that observed the change."),
    Column("observed_at", UtcDateTime, nullable=False, index=True, comment="When it was observed."),
    Column("chat_id", BigInteger, ForeignKey(chats.c.id), nullable=False, comment="The chat."),
    Column(
        "kind",
        LongText,
        nullable=False,
        comment="created, renamed, service_changed, group_changed, joined, left, removed or "
        "restored.",
    ),
    Column("old_value", LongText, comment="The value before. For left: the participant."),
    Column("new_value", LongText, comment="The value after. For joined: the participant."),
    Index(None, "chat_id", "observed_at"),
    comment="Changes of chats. Chats found by a number's first full read get no `created` event.",
)

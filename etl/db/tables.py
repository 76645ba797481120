"""The tables, as the program and the migrations see them; no functions.

The comments are the data dictionary: analysts read them in the database and in the README.
"""

from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
)
from sqlalchemy.dialects.postgresql import JSONB


class UtcDateTime(TypeDecorator[datetime]):
    """An instant in UTC: `timestamptz` in PostgreSQL, `YYYY-MM-DD HH:MM:SS.ffffff` in SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return value if value is None else value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        instant: datetime = value
        return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)


# In SQLite a key whose type is exactly INTEGER is the row's own, 64 bits wide, without an index.
BigKey = BigInteger().with_variant(Integer(), "sqlite")
# jsonb can be compared, so an unchanged value is recognised; json cannot.
Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")

# Names make a constraint droppable: without one, a later ALTER in SQLite cannot find it.
metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

# Our own name, so that another project's alembic_version in the same database is not ours.
VERSION_TABLE: Final = "linq_etl_alembic_version"

# The newest of the migrations, which makes these tables.
REVISION: Final = "0006"

COUNTS: Final = {
    "requests": "HTTP requests sent, retries included.",
    "retries": "Requests that were repeated after a transient failure.",
    "throttled": "Answers 429: the API asked for fewer requests.",
    "pages": "Pages of the list that were stored.",
    "chats_seen": "Chats on those pages; one read twice counts twice.",
    "chats_inserted": "Chats stored for the first time.",
    "chats_updated": "Chats whose row changed.",
    "chats_unchanged": "Chats read that were already stored just so; nothing was written.",
    "chats_removed": "Chats marked as removed.",
    "handles_inserted": "Participants stored for the first time.",
    "handles_updated": "Participants whose row changed, those who came back included.",
    "handles_removed": "Participants marked as removed.",
    "rejected": "Records that could not be stored; see rejected_records.",
    "texts_cleaned": "Texts in which NUL or a lone surrogate was replaced by U+FFFD.",
}


def _counts() -> list[Column[int]]:
    return [
        Column(name, BigInteger, nullable=False, server_default="0", comment=comment)
        for name, comment in COUNTS.items()
    ]


_CHANGED_AT = "When this row last changed: the time of the API answer that showed the change."

phone_numbers = Table(
    "phone_numbers",
    metadata,
    Column("phone_number", Text, primary_key=True, comment="E.164 with plus, e.g. +13343284472."),
    Column("label", Text, comment="The name given to it in the configuration."),
    Column("first_seen_at", UtcDateTime, nullable=False, comment="When it was first synced."),
    Column(
        "first_loaded_at",
        UtcDateTime,
        comment="When its list had been read to the end for the first time; null until then. "
        "Chats found before this are the starting stock, not news.",
    ),
    comment="Every phone number that was ever configured here.",
)

chats = Table(
    "chats",
    metadata,
    Column("id", BigKey, primary_key=True, autoincrement=False, comment="The API's chat id."),
    Column(
        "display_name",
        Text,
        comment="A group's own name, else its participants joined with commas.",
    ),
    Column("service", Text, comment="iMessage, SMS, RCS or whatever the API says."),
    Column("is_group", Boolean, comment="Whether this is a group chat (the API's `group`)."),
    Column("message_count", BigInteger, comment="Messages in the chat, as last read."),
    Column("extra", Json, comment="Fields that the API sends and this version does not know."),
    Column("first_seen_at", UtcDateTime, nullable=False, comment="When it was first read."),
    Column("changed_at", UtcDateTime, nullable=False, index=True, comment=_CHANGED_AT),
    Column(
        "removed_at",
        UtcDateTime,
        comment="When the API confirmed that it is gone; null while it exists.",
    ),
    Column(
        "digest",
        BigInteger,
        comment="Internal: a hash of what the API said of the chat and its participants when they "
        "were last written. A chat that is read with the same hash is not compared; null: it is.",
    ),
    comment="One row per chat. Rows are never deleted.",
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
        Text,
        comment="The participant's phone number or e-mail address, exactly as the API sent it.",
    ),
    Column("service", Text, comment="The participant's messaging service."),
    Column("joined_at", UtcDateTime, comment="When the participant joined; null if not said."),
    Column("extra", Json, comment="Fields that the API sends and this version does not know."),
    Column("first_seen_at", UtcDateTime, nullable=False, comment="When it was first read."),
    Column("changed_at", UtcDateTime, nullable=False, index=True, comment=_CHANGED_AT),
    Column(
        "removed_at",
        UtcDateTime,
        comment="When the chat was first read without this participant; null while present.",
    ),
    # A B-tree refuses texts of more than some thousand characters, and a hash index takes ever
    # longer for a value that many rows have: the number itself may take part in all its chats.
    Index(None, "phone_number", postgresql_using="spgist"),
    sqlite_with_rowid=False,
    comment="One row per participant of a chat. Rows are never deleted.",
)

# Here and in chat_message_counts each row is written in one transaction with what it refers to,
# which is never deleted. PostgreSQL would check a foreign key row by row, which took longer than
# all the rest of writing these tables.
chat_phone_numbers = Table(
    "chat_phone_numbers",
    metadata,
    Column(
        "phone_number",
        Text,
        primary_key=True,
        comment="The configured number.",
    ),
    Column(
        "chat_id",
        BigInteger,
        primary_key=True,
        autoincrement=False,
        index=True,
        comment="A chat in this number's list.",
    ),
    Column("first_seen_at", UtcDateTime, nullable=False, comment="When it was first listed there."),
    Column(
        "removed_at",
        UtcDateTime,
        comment="When it was found to be listed there no longer; null while it is.",
    ),
    Column(
        "missing_since",
        UtcDateTime,
        comment="Since when the list has been read without it although the API does not call it "
        "gone; null while it is seen there.",
    ),
    sqlite_with_rowid=False,
    comment="Which configured number lists which chat. A chat can be in several lists.",
)

sync_runs = Table(
    "sync_runs",
    metadata,
    Column("id", BigKey, primary_key=True, comment="Counts up."),
    Column("command", Text, nullable=False, comment="sync, backfill…"),
    Column(
        "status",
        Text,
        nullable=False,
        index=True,
        comment="running, succeeded, partial, failed, interrupted (by a signal) or abandoned "
        "(its process died).",
    ),
    Column("started_at", UtcDateTime, nullable=False, comment="Before the first request."),
    Column("finished_at", UtcDateTime, comment="Null while it runs."),
    Column("version", Text, nullable=False, comment="Version of linq-etl."),
    Column("host", Text, nullable=False, comment="Name of the machine it runs on."),
    Column(
        "owner",
        Text,
        nullable=False,
        comment="Identity of the process, by which another run on that machine sees it has died.",
    ),
    Column(
        "lease_expires_at",
        UtcDateTime,
        nullable=False,
        comment="Until then its numbers are its own; moved on by a heartbeat while it runs.",
    ),
    Column("numbers_total", Integer, nullable=False, comment="Numbers it was to sync."),
    Column("numbers_failed", Integer, nullable=False, comment="Those that were not synced."),
    *_counts(),
    Column(
        "error_kind",
        Text,
        comment="What to do about it, in a word: config, refused, token, unavailable, throttled, "
        "database, schema, busy, lease_lost, interrupted or unexpected.",
    ),
    Column("error_detail", Text, comment="The same as a sentence."),
    comment="The run log: one row per run, written before its first request.",
)

sync_run_numbers = Table(
    "sync_run_numbers",
    metadata,
    Column(
        "run_id",
        BigKey,
        ForeignKey(sync_runs.c.id),
        primary_key=True,
        autoincrement=False,
        comment="The run.",
    ),
    Column(
        "phone_number",
        Text,
        ForeignKey(phone_numbers.c.phone_number),
        primary_key=True,
        comment="The number.",
    ),
    Column("status", Text, nullable=False, comment="As in sync_runs, for this number."),
    Column("finished_at", UtcDateTime, comment="Null while it runs."),
    Column(
        "completeness",
        Text,
        comment="proved: the list as it was when the walk ended. consistent: read completely, "
        "unless chats came and went in pairs between the same two requests. unproved: neither; see "
        "reason. Null if it was not read to the end.",
    ),
    Column("reason", Text, comment="Why it is unproved, or why something was withheld."),
    Column("first_page", BigInteger, comment="Where a backfill began to read; null for a sync."),
    Column("passes", Integer, nullable=False, server_default="0", comment="Times it was read."),
    Column("total_count", BigInteger, comment="Length of the list, as the API last said."),
    Column("first_total_count", BigInteger, comment="Length of the list, as the API first said."),
    Column("distinct_ids", BigInteger, comment="Different chats seen in the last pass."),
    Column("duplicates", BigInteger, comment="Rows read again, in all passes together."),
    Column("shrinkages", BigInteger, comment="Answers that told of a shorter list than before."),
    Column(
        "missing",
        BigInteger,
        comment="Chats known from before that were not seen, and whose removal is not confirmed.",
    ),
    *_counts(),
    Column("error_kind", Text, comment="As in sync_runs, for this number."),
    Column("error_detail", Text, comment="The same as a sentence."),
    Index(None, "phone_number", "run_id"),
    comment="The run log per phone number, and how far to trust its list.",
)

number_leases = Table(
    "number_leases",
    metadata,
    Column(
        "phone_number",
        Text,
        ForeignKey(phone_numbers.c.phone_number),
        primary_key=True,
        comment="The number.",
    ),
    Column(
        "run_id",
        BigKey,
        ForeignKey(sync_runs.c.id),
        nullable=False,
        comment="The run that alone may write this number, while that run is alive.",
    ),
    comment="Which run holds which number. Internal to linq-etl.",
)

rejected_records = Table(
    "rejected_records",
    metadata,
    Column("id", BigKey, primary_key=True, comment="Counts up."),
    Column(
        "run_id",
        BigKey,
        ForeignKey(sync_runs.c.id),
        nullable=False,
        index=True,
        comment="The run that read it.",
    ),
    Column("phone_number", Text, comment="The number in whose list it was."),
    Column("page", Integer, comment="The page it was on; null if it was asked for by itself."),
    Column("reason", Text, nullable=False, comment="What is wrong with it, and where."),
    Column("payload", Json, comment="The record as the API sent it."),
    comment="Records that the API sent and that could not be stored.",
)

chat_message_counts = Table(
    "chat_message_counts",
    metadata,
    Column(
        "chat_id",
        BigInteger,
        primary_key=True,
        autoincrement=False,
        comment="The chat.",
    ),
    Column("observed_at", UtcDateTime, primary_key=True, comment="When the count was read."),
    Column("message_count", BigInteger, comment="The count from then on."),
    Column(
        "run_id",
        BigKey,
        nullable=False,
        comment="The run that read it.",
    ),
    sqlite_with_rowid=False,
    comment="A chat's message count over time: its first value, then one row for each change.",
)

chat_events = Table(
    "chat_events",
    metadata,
    Column("id", BigKey, primary_key=True, comment="Counts up."),
    Column(
        "run_id",
        BigKey,
        nullable=False,
        comment="The run that noticed it.",
    ),
    Column("observed_at", UtcDateTime, nullable=False, index=True, comment="When it was noticed."),
    Column("chat_id", BigInteger, ForeignKey(chats.c.id), nullable=False, comment="The chat."),
    Column(
        "kind",
        Text,
        nullable=False,
        comment="created, renamed, service_changed, group_changed, joined, left, removed or "
        "restored.",
    ),
    Column("old_value", Text, comment="Before; for left: the participant."),
    Column("new_value", Text, comment="After; for joined: the participant."),
    Index(None, "chat_id", "observed_at"),
    comment="What happened to chats since their number was first loaded; the starting stock of a "
    "number makes no events.",
)

# By name; the migrations hold their SQL.
VIEWS: Final = {
    "messages_per_day": "Messages gained per configured number and UTC day, as counted by the "
    "syncs: what was there when a number was first loaded is no gain.",
    "current_participants": "Who takes part now, in which chat, in whose list: nothing removed.",
}

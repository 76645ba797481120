"""The tables, and the values of their status columns.

The comments are the data dictionary that analysts read in the database and in the documentation.
"""

from typing import Final, Literal

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
)

from etl.db.types import BigKey, Json, JsonText, UtcDateTime

Status = Literal["running", "succeeded", "partial", "failed", "interrupted", "abandoned"]
Completeness = Literal["proved", "consistent", "unproved"]
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

# A later migration can drop only a constraint with a name; SQLite gives none by itself.
metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

# Not Alembic's default name, which another project in the same database may use.
VERSION_TABLE: Final = "linq_etl_alembic_version"

# The newest migration: it results in these tables.
REVISION: Final = "0007_run_fences"

COUNTS: Final = {
    "requests": "HTTP requests sent, including retries.",
    "retries": "Requests repeated after a transient failure.",
    "throttled": "429 responses: the API asked for fewer requests.",
    "pages": "List pages stored.",
    "chats_seen": "Chats on those pages. A chat that was read twice counts twice.",
    "chats_inserted": "Chats stored for the first time.",
    "chats_updated": "Chats whose row changed.",
    "chats_unchanged": "Chats read without a change. Nothing was written for them.",
    "chats_removed": "Chats marked as removed.",
    "handles_inserted": "Participants stored for the first time.",
    "handles_updated": "Participants whose row changed, including those who came back.",
    "handles_removed": "Participants marked as removed.",
    "rejected": "Records that could not be stored. See rejected_records.",
    "texts_cleaned": "Texts in which NUL or a lone surrogate was replaced by U+FFFD.",
}


def _counts() -> list[Column[int]]:
    return [
        Column(name, BigInteger, nullable=False, server_default="0", comment=comment)
        for name, comment in COUNTS.items()
    ]


_CHANGED_AT = "When this row last changed: the time of the API response that showed the change."
_EXTRA = "JSON object of the API fields that this version of linq-etl does not know."

phone_numbers = Table(
    "phone_numbers",
    metadata,
    Column("phone_number", Text, primary_key=True, comment="E.164 with plus, e.g. +13343284472."),
    Column("label", Text, comment="The number's label from the configuration."),
    Column("first_seen_at", UtcDateTime, nullable=False, comment="When it was first synced."),
    Column(
        "first_loaded_at",
        UtcDateTime,
        comment="When its list was first read to the end. Null until then. Chats found by a "
        "number's first full read get no `created` event.",
    ),
    comment="One row per phone number that was ever configured.",
)

chats = Table(
    "chats",
    metadata,
    Column("id", BigKey, primary_key=True, autoincrement=False, comment="The API's chat id."),
    Column(
        "display_name",
        Text,
        comment="A group's own name, or the chat's participants joined by commas.",
    ),
    Column("service", Text, comment="iMessage, SMS, RCS or another service named by the API."),
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
    comment="One row per participant of a chat. Rows are never deleted.",
)

# Here and in chat_message_counts, each row is written in the same transaction as the row it refers
# to, and that row is never deleted. PostgreSQL checks a foreign key row by row, which took longer
# than all other writes to these tables.
chat_phone_numbers = Table(
    "chat_phone_numbers",
    metadata,
    Column("phone_number", Text, primary_key=True, comment="The configured number."),
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

sync_runs = Table(
    "sync_runs",
    metadata,
    Column("id", BigKey, primary_key=True, comment="Ascending: a later run has a higher id."),
    Column("command", Text, nullable=False, comment="The command: sync or backfill."),
    Column(
        "status",
        Text,
        nullable=False,
        index=True,
        comment="running, succeeded, partial, failed, interrupted (by a signal) or abandoned "
        "(its process died).",
    ),
    Column("started_at", UtcDateTime, nullable=False, comment="Before the first request."),
    Column("finished_at", UtcDateTime, comment="Null while the run is in progress."),
    Column("version", Text, nullable=False, comment="Version of linq-etl."),
    Column("host", Text, nullable=False, comment="Name of the machine."),
    Column(
        "owner",
        Text,
        nullable=False,
        comment="Internal: identity of the process, so that a run on the same machine can detect "
        "its death.",
    ),
    Column(
        "lease_expires_at",
        UtcDateTime,
        nullable=False,
        comment="Internal: when the run counts as dead, unless its heartbeat renews this time.",
    ),
    Column("numbers_total", Integer, nullable=False, comment="Phone numbers to sync."),
    Column("numbers_failed", Integer, nullable=False, comment="Phone numbers that failed."),
    *_counts(),
    Column(
        "error_kind",
        Text,
        comment="The kind of error: config, refused, token, unavailable, throttled, database, "
        "schema, busy, lease_lost, interrupted or unexpected.",
    ),
    Column("error_detail", Text, comment="The error as a sentence."),
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
        comment="The configured number.",
    ),
    Column("status", Text, nullable=False, comment="As in sync_runs, for this number."),
    Column("finished_at", UtcDateTime, comment="Null while the number is being synced."),
    Column(
        "completeness",
        Text,
        comment="proved: exactly the list as it was when the walk ended. consistent: complete, "
        "unless chats came and went in pairs between the same two requests. unproved: neither; see "
        "reason. Null if the list was not read, or if the budget ended the reading.",
    ),
    Column(
        "reason",
        Text,
        comment="Why the list is unproved or was not read to its end, or why removals were "
        "withheld. Begins with budget if the requests ran out.",
    ),
    Column("first_page", BigInteger, comment="The first page of a backfill. Null for a sync."),
    Column("passes", Integer, nullable=False, server_default="0", comment="Passes over the list."),
    Column("total_count", BigInteger, comment="The API's last count of chats in the list."),
    Column("first_total_count", BigInteger, comment="The API's first count of chats in the list."),
    Column("distinct_ids", BigInteger, comment="Different chats seen in the last pass."),
    Column("duplicates", BigInteger, comment="Chats read again, over all passes."),
    Column("shrinkages", BigInteger, comment="How often the API's count dropped during the walk."),
    Column(
        "missing",
        BigInteger,
        comment="Stored chats that the walk did not see and whose removal is not confirmed. Null "
        "if the walk did not reach the list's end.",
    ),
    *_counts(),
    Column("error_kind", Text, comment="As in sync_runs, for this number."),
    Column("error_detail", Text, comment="The error as a sentence."),
    Index(None, "phone_number", "run_id"),
    comment="The run log per phone number, and how completely its list was read.",
)

number_leases = Table(
    "number_leases",
    metadata,
    Column(
        "phone_number",
        Text,
        ForeignKey(phone_numbers.c.phone_number),
        primary_key=True,
        comment="The configured number.",
    ),
    Column(
        "run_id",
        BigKey,
        ForeignKey(sync_runs.c.id),
        nullable=False,
        comment="The only run that may write this number, as long as that run is alive.",
    ),
    comment="Internal: which run holds which number.",
)

# No foreign key to sync_runs: a lock on the run's row would make its heartbeat wait for its batch.
run_fences = Table(
    "run_fences",
    metadata,
    Column(
        "run_id",
        BigKey,
        primary_key=True,
        autoincrement=False,
        comment="A run that is not closed; 0 is the lock that lets one run write at a time.",
    ),
    Column("fence", BigInteger, nullable=False, comment="Batches that the run has committed."),
    comment="Internal: each batch moves its run's fence, which fails once the run is closed.",
)

rejected_records = Table(
    "rejected_records",
    metadata,
    Column("id", BigKey, primary_key=True, comment="Ascending in the order of storing."),
    Column("run_id", BigKey, ForeignKey(sync_runs.c.id), nullable=False, comment="Its run."),
    Column("phone_number", Text, comment="The configured number whose list held the record."),
    Column("page", BigInteger, comment="Its page of the list. Null if it was requested by its id."),
    Column("reason", Text, nullable=False, comment="What is wrong with the record, and where."),
    Column("payload", JsonText, comment="The record as the API sent it, as JSON."),
    Column(
        "digest",
        BigInteger,
        nullable=False,
        comment="Internal: hash of the record, which is stored once per run.",
    ),
    Index(None, "run_id", "digest"),
    comment="Records from the API that could not be stored, at most 10,000 per run.",
)

chat_message_counts = Table(
    "chat_message_counts",
    metadata,
    Column("chat_id", BigInteger, primary_key=True, autoincrement=False, comment="The chat."),
    Column("observed_at", UtcDateTime, primary_key=True, comment="When the count was read."),
    Column("message_count", BigInteger, comment="The count from then on."),
    Column("run_id", BigKey, nullable=False, comment="The run that read the count."),
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
        Text,
        nullable=False,
        comment="created, renamed, service_changed, group_changed, joined, left, removed or "
        "restored.",
    ),
    Column("old_value", Text, comment="The value before. For left: the participant."),
    Column("new_value", Text, comment="The value after. For joined: the participant."),
    Index(None, "chat_id", "observed_at"),
    comment="Changes of chats. Chats found by a number's first full read get no `created` event.",
)

# By name. The migrations hold their SQL.
VIEWS: Final = {
    "messages_per_day": "Messages gained per configured number and UTC day. The count at a "
    "number's first load is not a gain.",
    "current_participants": "Current participants of current chats, for each number that lists "
    "the chat. Nothing marked as removed.",
}

"""The tables and views of version 0.1."""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006_baseline"
down_revision = None
branch_labels = None
depends_on = None

INTEGER, BIG = sa.Integer(), sa.BigInteger()
# MySQL keeps 64 KiB in TEXT, and needs to know how long a text in an index can be.
TEXT = sa.Text().with_variant(mysql.LONGTEXT(), "mysql")
NUMBER = STATUS = sa.Text().with_variant(sa.VARCHAR(32), "mysql")
PARTICIPANT = sa.Text().with_variant(sa.VARCHAR(255), "mysql")
BIG_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql")
JSON = sa.JSON().with_variant(JSONB(), "postgresql").with_variant(mysql.LONGTEXT(), "mysql")

CHANGED_AT = "When this row last changed: the time of the API response that showed the change."
EXTRA = "JSON object of the API fields that this version of linq-etl does not know."
COUNTS = {
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

MESSAGES_PER_DAY = """
CREATE VIEW messages_per_day AS
WITH counted AS (
    SELECT chat_id, observed_at, message_count,
        lag(message_count) OVER (PARTITION BY chat_id ORDER BY observed_at) AS earlier,
        row_number() OVER (PARTITION BY chat_id ORDER BY observed_at) AS position
    FROM chat_message_counts
), gains AS (
    SELECT c.chat_id, c.observed_at,
        CASE WHEN c.position > 1 THEN c.message_count - c.earlier ELSE c.message_count END AS gain
    FROM counted c
    WHERE c.position > 1 OR EXISTS (
        SELECT 1 FROM chat_events e WHERE e.chat_id = c.chat_id AND e.kind = 'created'
    )
)
SELECT l.phone_number, date(g.observed_at{utc}) AS day, sum(g.gain) AS messages
FROM gains g JOIN chat_phone_numbers l ON l.chat_id = g.chat_id
WHERE g.gain > 0
GROUP BY l.phone_number, date(g.observed_at{utc})
"""
CURRENT_PARTICIPANTS = """
CREATE VIEW current_participants AS
SELECT l.phone_number, n.label, c.id AS chat_id, c.display_name, c.service, c.is_group,
    h.id AS handle_id, h.phone_number AS participant, h.service AS participant_service, h.joined_at
FROM chat_phone_numbers l
JOIN phone_numbers n ON n.phone_number = l.phone_number
JOIN chats c ON c.id = l.chat_id
JOIN chat_handles h ON h.chat_id = c.id
WHERE l.removed_at IS NULL AND c.removed_at IS NULL AND h.removed_at IS NULL
"""


def upgrade() -> None:
    create_chats()
    create_numbers()
    create_run_log()
    create_leases_and_rejected_records()
    create_history()
    postgresql = op.get_bind().dialect.name == "postgresql"
    op.execute(MESSAGES_PER_DAY.format(utc=" AT TIME ZONE 'UTC'" if postgresql else ""))
    op.execute(CURRENT_PARTICIPANTS)


def downgrade() -> None:
    op.execute("DROP VIEW current_participants")
    op.execute("DROP VIEW messages_per_day")
    for table in (
        "chat_events",
        "chat_message_counts",
        "rejected_records",
        "number_leases",
        "sync_run_numbers",
        "sync_runs",
        "chat_phone_numbers",
        "chat_handles",
        "chats",
        "phone_numbers",
    ):
        op.drop_table(table)


# One line per column, however long.
# fmt: off
def create_chats() -> None:
    create(
        "chats",
        "One row per chat. Rows are never deleted.",
        column("id", BIG_KEY, "The API's chat id.", autoincrement=False),
        column("display_name", TEXT, "A group's own name, or the chat's participants joined by commas."),
        column("service", TEXT, "iMessage, SMS, RCS or another service named by the API."),
        column("is_group", sa.Boolean(), "Whether this is a group chat (the API's `group`)."),
        column("message_count", BIG, "Messages in the chat, as last read."),
        column("extra", JSON, EXTRA),
        column("first_seen_at", TIME, "When the chat was first read.", nullable=False),
        column("changed_at", TIME, CHANGED_AT, nullable=False),
        column("removed_at", TIME, "When the API confirmed that the chat no longer exists. Null while it exists."),
        column("digest", BIG, "Internal: hash of the chat and its participants as last written. A chat that is read with the same hash is not compared. Null forces a comparison."),
        key=["id"],
        indexes=[["changed_at"]],
    )
    create(
        "chat_handles",
        "One row per participant of a chat. Rows are never deleted.",
        column("chat_id", BIG, "The chat."),
        column("id", BIG, "The API's handle id."),
        column("phone_number", PARTICIPANT, "The participant's phone number or e-mail address, exactly as the API sent it."),
        column("service", TEXT, "The participant's messaging service."),
        column("joined_at", TIME, "When the participant joined. Null if not known."),
        column("extra", JSON, EXTRA),
        column("first_seen_at", TIME, "When the participant was first read in this chat.", nullable=False),
        column("changed_at", TIME, CHANGED_AT, nullable=False),
        column("removed_at", TIME, "When the chat was first read without this participant. Null while present."),
        key=["chat_id", "id"],
        references={"chat_id": "chats.id"},
        indexes=[["changed_at"], ["phone_number"]],
        sqlite_with_rowid=False,
    )


def create_numbers() -> None:
    create(
        "phone_numbers",
        "One row per phone number that was ever configured.",
        column("phone_number", NUMBER, "E.164 with plus, e.g. +13343284472."),
        column("label", TEXT, "The number's label from the configuration."),
        column("first_seen_at", TIME, "When it was first synced.", nullable=False),
        column("first_loaded_at", TIME, "When its list was first read to the end. Null until then. Chats found by a number's first full read get no `created` event."),
        key=["phone_number"],
    )
    create(
        "chat_phone_numbers",
        "Which configured number lists which chat. A chat can be in several lists.",
        column("phone_number", NUMBER, "The configured number."),
        column("chat_id", BIG, "A chat in this number's list."),
        column("first_seen_at", TIME, "When the chat was first read in this list.", nullable=False),
        column("removed_at", TIME, "When the chat was found to have left this list. Null while it is listed."),
        column("missing_since", TIME, "When the list was first read without the chat although its removal is not confirmed. Null otherwise."),
        key=["phone_number", "chat_id"],
        indexes=[["chat_id"]],
        sqlite_with_rowid=False,
    )


def create_run_log() -> None:
    create(
        "sync_runs",
        "The run log: one row per run, written before its first request.",
        column("id", BIG_KEY, "Ascending: a later run has a higher id."),
        column("command", TEXT, "The command: sync or backfill.", nullable=False),
        column("status", STATUS, "running, succeeded, partial, failed, interrupted (by a signal) or abandoned (its process died).", nullable=False),
        column("started_at", TIME, "Before the first request.", nullable=False),
        column("finished_at", TIME, "Null while the run is in progress."),
        column("version", TEXT, "Version of linq-etl.", nullable=False),
        column("host", TEXT, "Name of the machine.", nullable=False),
        column("owner", TEXT, "Internal: identity of the process, so that a run on the same machine can detect its death.", nullable=False),
        column("lease_expires_at", TIME, "Internal: when the run counts as dead, unless its heartbeat renews this time.", nullable=False),
        column("numbers_total", INTEGER, "Phone numbers to sync.", nullable=False),
        column("numbers_failed", INTEGER, "Phone numbers that failed.", nullable=False),
        *counts(),
        column("error_kind", TEXT, "The kind of error: config, refused, token, unavailable, throttled, database, schema, busy, lease_lost, interrupted or unexpected."),
        column("error_detail", TEXT, "The error as a sentence."),
        key=["id"],
        indexes=[["status"]],
    )
    create(
        "sync_run_numbers",
        "The run log per phone number, and how completely its list was read.",
        column("run_id", BIG_KEY, "The run."),
        column("phone_number", NUMBER, "The configured number."),
        column("status", STATUS, "As in sync_runs, for this number.", nullable=False),
        column("finished_at", TIME, "Null while the number is being synced."),
        column("completeness", STATUS, "proved: exactly the list as it was when the walk ended. consistent: complete, unless chats came and went in pairs between the same two requests. unproved: neither; see reason. Null if the list was not read, or if the budget ended the reading."),
        column("reason", TEXT, "Why the list is unproved or was not read to its end, or why removals were withheld. Begins with budget if the requests ran out."),
        column("first_page", BIG, "The first page of a backfill. Null for a sync."),
        column("passes", INTEGER, "Passes over the list.", nullable=False, server_default="0"),
        column("total_count", BIG, "The API's last count of chats in the list."),
        column("first_total_count", BIG, "The API's first count of chats in the list."),
        column("distinct_ids", BIG, "Different chats seen in the last pass."),
        column("duplicates", BIG, "Chats read again, over all passes."),
        column("shrinkages", BIG, "How often the API's count dropped during the walk."),
        column("missing", BIG, "Stored chats that the walk did not see and whose removal is not confirmed. Null if the walk did not reach the list's end."),
        *counts(),
        column("error_kind", TEXT, "As in sync_runs, for this number."),
        column("error_detail", TEXT, "The error as a sentence."),
        key=["run_id", "phone_number"],
        references={"run_id": "sync_runs.id", "phone_number": "phone_numbers.phone_number"},
        indexes=[["phone_number", "run_id"]],
    )


def create_leases_and_rejected_records() -> None:
    create(
        "number_leases",
        "Internal: which run holds which number.",
        column("phone_number", NUMBER, "The configured number."),
        column("run_id", BIG_KEY, "The only run that may write this number, as long as that run is alive.", nullable=False),
        key=["phone_number"],
        references={"run_id": "sync_runs.id", "phone_number": "phone_numbers.phone_number"},
    )
    create(
        "rejected_records",
        "Records from the API that could not be stored, at most 10,000 per run.",
        column("id", BIG_KEY, "Ascending in the order of storing."),
        column("run_id", BIG_KEY, "Its run.", nullable=False),
        column("phone_number", NUMBER, "The configured number whose list held the record."),
        column("page", BIG, "Its page of the list. Null if it was requested by its id."),
        column("reason", TEXT, "What is wrong with the record, and where.", nullable=False),
        column("payload", TEXT, "The record as the API sent it, as JSON."),
        column("digest", BIG, "Internal: hash of the record, which is stored once per run.", nullable=False),
        key=["id"],
        references={"run_id": "sync_runs.id"},
        indexes=[["run_id", "digest"]],
    )


def create_history() -> None:
    create(
        "chat_message_counts",
        "A chat's message count over time: its first value, then one row per change.",
        column("chat_id", BIG, "The chat."),
        column("observed_at", TIME, "When the count was read."),
        column("message_count", BIG, "The count from then on."),
        column("run_id", BIG_KEY, "The run that read the count.", nullable=False),
        key=["chat_id", "observed_at"],
        sqlite_with_rowid=False,
    )
    create(
        "chat_events",
        "Changes of chats. Chats found by a number's first full read get no `created` event.",
        column("id", BIG_KEY, "Ascending in the order of storing."),
        column("run_id", BIG_KEY, "The run that observed the change.", nullable=False),
        column("observed_at", TIME, "When it was observed.", nullable=False),
        column("chat_id", BIG, "The chat.", nullable=False),
        column("kind", TEXT, "created, renamed, service_changed, group_changed, joined, left, removed or restored.", nullable=False),
        column("old_value", TEXT, "The value before. For left: the participant."),
        column("new_value", TEXT, "The value after. For joined: the participant."),
        key=["id"],
        references={"chat_id": "chats.id"},
        indexes=[["chat_id", "observed_at"], ["observed_at"]],
    )


# fmt: on
def column(
    name: str, kind: sa.types.TypeEngine[Any], comment: str, **options: Any
) -> sa.Column[Any]:
    return sa.Column(name, kind, comment=comment, **options)


def counts() -> list[sa.Column[Any]]:
    return [
        column(name, BIG, comment, nullable=False, server_default="0")
        for name, comment in COUNTS.items()
    ]


def create(
    table: str,
    comment: str,
    *columns: sa.Column[Any],
    key: Sequence[str],
    references: Mapping[str, str] | None = None,
    indexes: Sequence[Sequence[str]] = (),
    **options: Any,
) -> None:
    """Create the table, its constraints and its indexes, each under a name."""
    foreign_keys = [
        sa.ForeignKeyConstraint([name], [parent], name=f"fk_{table}_{name}")
        for name, parent in (references or {}).items()
    ]
    primary_key = sa.PrimaryKeyConstraint(*key, name=f"pk_{table}")
    op.create_table(table, *columns, primary_key, *foreign_keys, comment=comment, **options)
    for names in indexes:
        op.create_index("_".join(["ix", table, *names]), table, names)

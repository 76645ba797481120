"""What happened to chats over time."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

BIG_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

MESSAGES_PER_DAY = """
CREATE VIEW messages_per_day AS
WITH counted AS (
    SELECT chat_id, observed_at, message_count,
        lag(message_count) OVER (PARTITION BY chat_id ORDER BY observed_at) AS before,
        row_number() OVER (PARTITION BY chat_id ORDER BY observed_at) AS position
    FROM chat_message_counts
), gains AS (
    SELECT c.chat_id, c.observed_at,
        CASE WHEN c.position > 1 THEN c.message_count - c.before ELSE c.message_count END AS gain
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
    op.create_table(
        "chat_message_counts",
        sa.Column(
            "chat_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="The chat."
        ),
        sa.Column(
            "observed_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When the count was read.",
        ),
        sa.Column("message_count", sa.BigInteger(), comment="The count from then on."),
        sa.Column("run_id", BIG_KEY, nullable=False, comment="The run that read it."),
        sa.ForeignKeyConstraint(
            ["chat_id"], ["chats.id"], name=op.f("fk_chat_message_counts_chat_id")
        ),
        sa.PrimaryKeyConstraint("chat_id", "observed_at", name=op.f("pk_chat_message_counts")),
        sqlite_with_rowid=False,
        comment="A chat's message count over time: its first value, then one row for each change.",
    )
    op.create_table(
        "chat_events",
        sa.Column("id", BIG_KEY, nullable=False, comment="Counts up."),
        sa.Column("run_id", BIG_KEY, nullable=False, comment="The run that noticed it."),
        sa.Column(
            "observed_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When it was noticed.",
        ),
        sa.Column("chat_id", sa.BigInteger(), nullable=False, comment="The chat."),
        sa.Column(
            "kind",
            sa.Text(),
            nullable=False,
            comment="created, renamed, service_changed, group_changed, joined, left, removed or restored.",
        ),
        sa.Column("old_value", sa.Text(), comment="Before; for left: the participant."),
        sa.Column("new_value", sa.Text(), comment="After; for joined: the participant."),
        sa.ForeignKeyConstraint(["chat_id"], ["chats.id"], name=op.f("fk_chat_events_chat_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_chat_events")),
        comment="What happened to chats since their number was first loaded; the starting stock of a number makes no events.",
    )
    op.create_index(
        op.f("ix_chat_events_chat_id_observed_at"), "chat_events", ["chat_id", "observed_at"]
    )
    op.create_index(op.f("ix_chat_events_observed_at"), "chat_events", ["observed_at"])
    postgresql = op.get_bind().dialect.name == "postgresql"
    utc = " AT TIME ZONE 'UTC'" if postgresql else ""
    op.execute(MESSAGES_PER_DAY.format(utc=utc))
    op.execute(CURRENT_PARTICIPANTS)


def downgrade() -> None:
    op.execute("DROP VIEW current_participants")
    op.execute("DROP VIEW messages_per_day")
    op.drop_table("chat_events")
    op.drop_table("chat_message_counts")

"""What was gained with each message count, since when, and its UTC date."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0009_gains"
down_revision = "0008_api_pace"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql")
UTC_DATE = {
    "mysql": "date({})",
    "postgresql": "({} AT TIME ZONE 'UTC')::date",
    "sqlite": "date({})",
}
DAYS = {
    "mysql": "datediff({}, {})",
    "postgresql": "{} - {}",
    "sqlite": "CAST(julianday({}) - julianday({}) AS INTEGER)",
}

# Before this revision, gains were made since the count before: when else the chat was read is not
# known. A chat's first count is a gain if the chat has a `created` event.
FILL = """
INSERT INTO chat_message_counts (
    chat_id, observed_at, message_count, run_id, gained, gained_since, observed_on, spread_days
)
SELECT chat_id, observed_at, message_count, run_id, gained,
    CASE WHEN gained IS NOT NULL THEN since END,
    {observed_on},
    CASE WHEN gained IS NOT NULL THEN {days} + 1 END
FROM (
    SELECT chat_id, observed_at, message_count, run_id, since,
        CASE WHEN position > 1 AND message_count < earlier THEN 0
            WHEN position > 1 THEN message_count - earlier
            WHEN EXISTS (
                SELECT 1 FROM chat_events e
                WHERE e.chat_id = counted.chat_id AND e.kind = 'created'
            ) THEN message_count END AS gained
    FROM (
        SELECT chat_id, observed_at, message_count, run_id,
            lag(message_count) OVER (PARTITION BY chat_id ORDER BY observed_at) AS earlier,
            lag(observed_at) OVER (PARTITION BY chat_id ORDER BY observed_at) AS since,
            row_number() OVER (PARTITION BY chat_id ORDER BY observed_at) AS position
        FROM earlier_counts
    ) counted
) gains
"""


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    op.execute("DROP VIEW messages_per_day")
    op.execute("CREATE TABLE earlier_counts AS SELECT * FROM chat_message_counts")
    op.drop_table("chat_message_counts")
    create_counts()
    observed_on, since_on = (UTC_DATE[dialect].format(name) for name in ("observed_at", "since"))
    days = DAYS[dialect].format(observed_on, since_on)
    op.execute(FILL.format(observed_on=observed_on, days=days))
    op.drop_table("earlier_counts")
    op.create_index("ix_chat_message_counts_observed_on", "chat_message_counts", ["observed_on"])


# One line per column, however long.
# fmt: off
def create_counts() -> None:
    op.create_table(
        "chat_message_counts",
        sa.Column("chat_id", sa.BigInteger(), nullable=False, comment="The chat."),
        sa.Column("observed_at", TIME, nullable=False, comment="When the count was read."),
        sa.Column("message_count", sa.BigInteger(), comment="The count from then on."),
        sa.Column("run_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False, comment="The run that read the count."),
        sa.Column("gained", sa.BigInteger(), comment="Messages gained since the count before; 0 if the count fell. The first count, for a chat that is new in the list of a number. Null if not known, and during first loads."),
        sa.Column("gained_since", TIME, comment="The messages were gained after this time: the chat had been read since without them, or was not listed. Null if gained is null."),
        sa.Column("observed_on", sa.Date(), nullable=False, comment="The UTC date of observed_at. Filter by it to read a range of days fast."),
        sa.Column("spread_days", sa.Integer(), comment="UTC days from gained_since to observed_at, both counted: 1 if all was gained on observed_on. Null if gained is null."),
        sa.PrimaryKeyConstraint("chat_id", "observed_at", name="pk_chat_message_counts"),
        sqlite_with_rowid=False,
        comment="A chat's message count over time: its first value, then one row per change.",
    )
# fmt: on


VIEW_BEFORE = """
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
SELECT l.phone_number, {day} AS day, sum(g.gain) AS messages
FROM gains g JOIN chat_phone_numbers l ON l.chat_id = g.chat_id
WHERE g.gain > 0
GROUP BY l.phone_number, {day}
"""


def downgrade() -> None:
    op.drop_index("ix_chat_message_counts_observed_on", "chat_message_counts")
    for name in ("gained", "gained_since", "observed_on", "spread_days"):
        op.drop_column("chat_message_counts", name)
    day = UTC_DATE[op.get_bind().dialect.name].format("g.observed_at")
    op.execute(VIEW_BEFORE.format(day=day))

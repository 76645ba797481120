"""The views for analysts and for monitoring, and the data dictionary."""

import sqlalchemy as sa
from alembic import op

revision = "0010_views"
down_revision = "0009_gains"
branch_labels = None
depends_on = None

# As text in SQLite, in the form in which the times are stored.
DAYS_AGO = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f', 'now', '-{} days')",
    "postgresql": "now() - interval '{}' day",
}

# Each of the inner queries reads one entry of an index.
NUMBER_STATUS = """
CREATE VIEW number_status AS
SELECT n.phone_number, n.label, n.run_id, g.finished_at AS last_good_sync, g.completeness,
    g.reason, g.total_count, a.finished_at AS last_attempt_at, a.status AS last_status,
    CASE WHEN a.status NOT IN ('succeeded', 'partial') THEN a.error_kind END AS last_error_kind,
    CASE WHEN a.status NOT IN ('succeeded', 'partial') THEN a.error_detail END
        AS last_error_detail,
    CASE WHEN a.status NOT IN ('succeeded', 'partial') THEN (
        SELECT f.finished_at FROM sync_run_numbers f
        WHERE f.phone_number = n.phone_number AND f.run_id > coalesce(n.run_id, 0)
            AND f.status IN ('failed', 'interrupted', 'abandoned')
            AND (f.error_kind IS NULL OR f.error_kind <> 'busy')
        ORDER BY f.run_id LIMIT 1
    ) END AS failing_since,
    CASE WHEN n.run_id IS NULL THEN NULL ELSE NOT EXISTS (
        SELECT 1 FROM chat_phone_numbers l WHERE l.phone_number = n.phone_number
    ) END AS always_empty
FROM (
    SELECT phone_number, label, last_attempt,
        CASE WHEN proved >= consistent AND proved >= unproved AND proved > 0 THEN proved
            WHEN consistent >= unproved AND consistent > 0 THEN consistent
            WHEN unproved > 0 THEN unproved END AS run_id
    FROM (
        SELECT p.phone_number, p.label,
            (
                SELECT s.run_id FROM sync_run_numbers s
                WHERE s.phone_number = p.phone_number AND s.status <> 'running'
                    AND (s.error_kind IS NULL OR s.error_kind <> 'busy')
                ORDER BY s.run_id DESC LIMIT 1
            ) AS last_attempt,
            coalesce((
                SELECT max(s.run_id) FROM sync_run_numbers s
                WHERE s.phone_number = p.phone_number AND s.completeness = 'proved'
            ), 0) AS proved,
            coalesce((
                SELECT max(s.run_id) FROM sync_run_numbers s
                WHERE s.phone_number = p.phone_number AND s.completeness = 'consistent'
            ), 0) AS consistent,
            coalesce((
                SELECT max(s.run_id) FROM sync_run_numbers s
                WHERE s.phone_number = p.phone_number AND s.completeness = 'unproved'
            ), 0) AS unproved
        FROM phone_numbers p
    ) found
) n
LEFT JOIN sync_run_numbers g ON g.run_id = n.run_id AND g.phone_number = n.phone_number
LEFT JOIN sync_run_numbers a ON a.run_id = n.last_attempt AND a.phone_number = n.phone_number
"""

# SQLite joins in this order where it is written as CROSS JOIN: it begins with the days asked for.
# The spread of the largest gain in one aggregate: a window function would keep a filter by day from
# the index of observed_on in SQLite. Gains are compared up to 10^12, and 0 stands for null.
SPREAD_DAYS = """
nullif(max(
    CASE WHEN c.gained < 1000000000000 THEN c.gained ELSE 1000000000000 END * 100000
    + coalesce(c.spread_days, 0)
) % 100000, 0)
"""

MESSAGES_PER_DAY = f"""
CREATE VIEW messages_per_day AS
SELECT l.phone_number, c.observed_on AS day, sum(c.gained) AS messages,
    {SPREAD_DAYS} AS spread_days
FROM chat_message_counts c
CROSS JOIN chat_phone_numbers l
CROSS JOIN phone_numbers n
WHERE l.chat_id = c.chat_id AND n.phone_number = l.phone_number
    AND c.gained > 0 AND c.observed_at >= l.first_seen_at AND c.observed_at > n.first_loaded_at
    AND (l.removed_at IS NULL OR c.observed_at <= l.removed_at)
GROUP BY l.phone_number, c.observed_on
"""  # noqa: S608

MESSAGES_PER_DAY_TOTAL = f"""
CREATE VIEW messages_per_day_total AS
SELECT c.observed_on AS day, sum(c.gained) AS messages, {SPREAD_DAYS} AS spread_days
FROM chat_message_counts c
WHERE c.gained > 0
GROUP BY c.observed_on
"""  # noqa: S608

CHAT_ACTIVITY = """
CREATE VIEW chat_activity AS
SELECT c.id AS chat_id, c.display_name, c.service, c.is_group, c.message_count, g.last_gain_at,
    g.gained_7_days, g.gained_30_days, c.first_seen_at AS watched_since
FROM (
    SELECT chat_id, max(CASE WHEN gained > 0 THEN observed_at END) AS last_gain_at,
        sum(CASE WHEN gained > 0 AND observed_at > {days_ago_7} THEN gained ELSE 0 END)
            AS gained_7_days,
        sum(CASE WHEN gained > 0 AND observed_at > {days_ago_30} THEN gained ELSE 0 END)
            AS gained_30_days
    FROM chat_message_counts
    GROUP BY chat_id
) g
JOIN chats c ON c.id = g.chat_id
WHERE c.removed_at IS NULL
"""

# All in one aggregate, too: the gain of a count is taken from the row of one participant only.
DAILY_NUMBERS = """
CREATE VIEW daily_numbers AS
SELECT l.phone_number, c.observed_on AS day,
    count(DISTINCT CASE WHEN i.first_seen_at = c.observed_at THEN c.chat_id END) AS new_chats,
    coalesce(sum(CASE WHEN h.id IS NULL OR h.id = (
        SELECT min(f.id) FROM chat_handles f WHERE f.chat_id = c.chat_id
    ) THEN c.gained END), 0) AS messages,
    count(DISTINCT CASE WHEN c.gained > 0 AND h.first_seen_at <= c.observed_at
        AND (h.removed_at IS NULL OR h.removed_at > c.observed_at)
        AND h.phone_number NOT IN (SELECT o.phone_number FROM phone_numbers o)
        THEN h.phone_number END) AS people,
    7000 AS advised_messages
FROM chat_message_counts c
CROSS JOIN chat_phone_numbers l
CROSS JOIN phone_numbers n
CROSS JOIN chats i
LEFT JOIN chat_handles h ON h.chat_id = c.chat_id
WHERE l.chat_id = c.chat_id AND n.phone_number = l.phone_number AND i.id = c.chat_id
    AND c.observed_at >= l.first_seen_at AND c.observed_at > n.first_loaded_at
    AND (l.removed_at IS NULL OR c.observed_at <= l.removed_at)
GROUP BY l.phone_number, c.observed_on
"""

PARTICIPANTS = """
CREATE VIEW participants AS
SELECT h.phone_number AS participant,
    EXISTS (SELECT 1 FROM phone_numbers n WHERE n.phone_number = h.phone_number) AS is_own_number,
    count(DISTINCT h.chat_id) AS chats,
    count(DISTINCT CASE WHEN c.is_group THEN h.chat_id END) AS group_chats,
    count(DISTINCT l.phone_number) AS numbers,
    min(h.first_seen_at) AS first_seen_at
FROM chat_handles h
JOIN chats c ON c.id = h.chat_id
LEFT JOIN chat_phone_numbers l ON l.chat_id = h.chat_id AND l.removed_at IS NULL
WHERE h.removed_at IS NULL AND c.removed_at IS NULL AND h.phone_number IS NOT NULL
GROUP BY h.phone_number
"""

GROUP_SIZES = """
CREATE VIEW group_sizes AS
SELECT people, count(*) AS chats
FROM (
    SELECT c.id, count(DISTINCT h.phone_number) AS people
    FROM chats c
    LEFT JOIN chat_handles h ON h.chat_id = c.id AND h.removed_at IS NULL
        AND NOT EXISTS (SELECT 1 FROM phone_numbers n WHERE n.phone_number = h.phone_number)
    WHERE c.is_group AND c.removed_at IS NULL
    GROUP BY c.id
) sizes
GROUP BY people
"""

SERVICE_MIX = """
CREATE VIEW service_mix AS
SELECT l.phone_number, c.service, count(*) AS chats,
    sum(CASE WHEN c.is_group THEN 1 ELSE 0 END) AS group_chats,
    coalesce(sum(c.message_count), 0) AS messages
FROM chat_phone_numbers l
JOIN chats c ON c.id = l.chat_id
WHERE l.removed_at IS NULL AND c.removed_at IS NULL
GROUP BY l.phone_number, c.service
"""


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    op.create_index(
        "ix_sync_run_numbers_phone_number_completeness_run_id",
        "sync_run_numbers",
        ["phone_number", "completeness", "run_id"],
    )
    op.execute(NUMBER_STATUS)
    op.execute(MESSAGES_PER_DAY)
    op.execute(MESSAGES_PER_DAY_TOTAL)
    ago = {f"days_ago_{days}": DAYS_AGO[dialect].format(days) for days in (7, 30)}
    # Not op.execute, which takes a colon for a parameter.
    op.get_bind().exec_driver_sql(CHAT_ACTIVITY.format(**ago))
    op.execute(DAILY_NUMBERS)
    op.execute(PARTICIPANTS)
    op.execute(GROUP_SIZES)
    op.execute(SERVICE_MIX)
    op.create_table(
        "data_dictionary",
        sa.Column("table_name", sa.Text(), nullable=False, comment="A table or view."),
        sa.Column(
            "column_name",
            sa.Text(),
            nullable=False,
            comment="Its column. Empty in the row about the table itself.",
        ),
        sa.Column("type", sa.Text(), comment="The column's type; table or view for the table."),
        sa.Column("comment", sa.Text(), nullable=False, comment="What it means."),
        sa.PrimaryKeyConstraint("table_name", "column_name", name="pk_data_dictionary"),
        comment="Every table, view and column of linq-etl, and what it means.",
    )


def downgrade() -> None:
    op.drop_table("data_dictionary")
    for view in (
        "service_mix",
        "group_sizes",
        "participants",
        "daily_numbers",
        "chat_activity",
        "messages_per_day_total",
        "messages_per_day",
        "number_status",
    ):
        op.execute(f"DROP VIEW {view}")
    op.drop_index("ix_sync_run_numbers_phone_number_completeness_run_id", "sync_run_numbers")

"""The views for analysts and for monitoring, and the data dictionary."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0010_views"
down_revision = "0009_gains"
branch_labels = None
depends_on = None

# As text in SQLite, in the form in which the times are stored.
DAYS_AGO = {
    "mysql": "utc_timestamp() - INTERVAL {} DAY",
    "postgresql": "now() - interval '{}' day",
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f', 'now', '-{} days')",
}
# MySQL keeps 64 KiB in TEXT, and needs to know how long a text in an index can be.
TEXT = sa.Text().with_variant(mysql.LONGTEXT(), "mysql")
NAME = sa.Text().with_variant(sa.VARCHAR(64), "mysql")

# An index probe for each number and completeness: one max() over them all reads the whole run log.
PROBE = """(
            SELECT max(r.run_id) FROM sync_run_numbers r
            WHERE r.phone_number = n.phone_number AND r.completeness = '{}'
        )"""
# One look-up per column, because a planner that joins may read the whole run log.
COLUMN = """(
        SELECT r.{} FROM sync_run_numbers r
        WHERE r.run_id = l.{} AND r.phone_number = n.phone_number
    ) AS {}"""
NUMBER_STATUS = """
CREATE VIEW number_status AS
WITH latest AS (
    SELECT p.phone_number, max(p.good_run) AS good_run, max(p.last_run) AS last_run
    FROM (
        SELECT n.phone_number, {proved} AS good_run, (
            SELECT max(r.run_id) FROM sync_run_numbers r
            WHERE r.phone_number = n.phone_number AND r.status <> 'running'
                AND coalesce(r.error_kind, '') <> 'busy'
        ) AS last_run
        FROM phone_numbers n
        UNION ALL
        SELECT n.phone_number, {consistent} AS good_run, NULL AS last_run FROM phone_numbers n
        UNION ALL
        SELECT n.phone_number, {unproved} AS good_run, NULL AS last_run FROM phone_numbers n
    ) p
    GROUP BY p.phone_number
)
SELECT n.phone_number, n.label, l.good_run AS run_id, {good_columns},
    l.last_run AS last_run_id, {last_columns}, (
        SELECT r.finished_at FROM sync_run_numbers r
        WHERE r.phone_number = n.phone_number AND r.run_id = (
            SELECT min(f.run_id) FROM sync_run_numbers f
            WHERE f.phone_number = n.phone_number AND f.run_id > coalesce(l.good_run, 0)
                AND f.status IN ('failed', 'abandoned', 'interrupted')
                AND coalesce(f.error_kind, '') <> 'busy'
        ) AND NOT EXISTS (
            SELECT 1 FROM sync_run_numbers g
            WHERE g.phone_number = n.phone_number AND g.run_id = l.last_run
                AND (g.status = 'succeeded' OR g.status = 'partial' AND g.completeness IS NOT NULL)
        )
    ) AS failing_since,
    l.good_run IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM chat_phone_numbers c WHERE c.phone_number = n.phone_number
    ) AS always_empty
FROM phone_numbers n JOIN latest l ON l.phone_number = n.phone_number
"""
GOOD_COLUMNS = {
    "last_good_sync": "finished_at",
    "completeness": "completeness",
    "reason": "reason",
    "total_count": "total_count",
}
LAST_COLUMNS = {
    "last_attempt_at": "finished_at",
    "last_status": "status",
    "last_error_kind": "error_kind",
    "last_error_detail": "error_detail",
}

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
    create_number_status()
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
        sa.Column("table_name", NAME, nullable=False, comment="A table or view."),
        sa.Column(
            "column_name",
            NAME,
            nullable=False,
            comment="Its column. Empty in the row about the table itself.",
        ),
        sa.Column("type", TEXT, comment="The column's type; table or view for the table."),
        sa.Column("comment", TEXT, nullable=False, comment="What it means."),
        sa.PrimaryKeyConstraint("table_name", "column_name", name="pk_data_dictionary"),
        comment="Every table, view and column of linq-etl, and what it means.",
    )


def create_number_status() -> None:
    probes = {each: PROBE.format(each) for each in ("proved", "consistent", "unproved")}
    good, last = look_ups("good_run", GOOD_COLUMNS), look_ups("last_run", LAST_COLUMNS)
    op.execute(NUMBER_STATUS.format(good_columns=good, last_columns=last, **probes))


def look_ups(run: str, columns: dict[str, str]) -> str:
    return ", ".join(COLUMN.format(column, run, name) for name, column in columns.items())


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

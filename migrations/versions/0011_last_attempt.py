"""The view number_status takes for the last attempt what ended last, not what began last.

A run that joins others can claim a number, hours after it began, that a later run failed to sync.
"""

from alembic import op

revision = "0011_last_attempt"
down_revision = "0010_views"
branch_labels = None
depends_on = None

# An index probe for each number and completeness: one max() over them all reads the whole run log.
PROBE = """(
            SELECT {newest} FROM sync_run_numbers r
            WHERE r.phone_number = n.phone_number AND r.completeness = '{completeness}' {first}
        )"""
# One look-up per column, because a planner that joins may read the whole run log.
COLUMN = """(
        SELECT r.{} FROM sync_run_numbers r
        WHERE r.run_id = l.{} AND r.phone_number = n.phone_number
    ) AS {}"""
ENDED = """(
        SELECT r.finished_at FROM sync_run_numbers r
        WHERE r.run_id = b.{} AND r.phone_number = b.phone_number
    )"""
ENDED_LAST = f""", latest AS (
    SELECT b.phone_number, b.good_run, CASE
        WHEN {ENDED.format("good_run")} > {ENDED.format("last_run")} THEN b.good_run
        ELSE b.last_run
    END AS last_run
    FROM begun b
)"""  # noqa: S608
NUMBER_STATUS = """
CREATE VIEW number_status AS
WITH {latest} AS (
    SELECT p.phone_number, max(p.good_run) AS good_run, max(p.last_run) AS last_run
    FROM (
        SELECT n.phone_number, {proved} AS good_run, (
            SELECT {newest} FROM sync_run_numbers r
            WHERE r.phone_number = n.phone_number AND r.status <> 'running'
                AND coalesce(r.error_kind, '') <> 'busy' {first}
        ) AS last_run
        FROM phone_numbers n
        UNION ALL
        SELECT n.phone_number, {consistent} AS good_run, NULL AS last_run FROM phone_numbers n
        UNION ALL
        SELECT n.phone_number, {unproved} AS good_run, NULL AS last_run FROM phone_numbers n
    ) p
    GROUP BY p.phone_number
){ended_last}
SELECT n.phone_number, n.label, l.good_run AS run_id, {good_columns},
    l.last_run AS last_run_id, {last_columns}, (
        SELECT r.finished_at FROM sync_run_numbers r
        WHERE r.phone_number = n.phone_number AND r.run_id = (
            SELECT min(f.run_id) FROM sync_run_numbers f
            WHERE f.phone_number = n.phone_number AND f.run_id > coalesce(l.good_run, 0)
                {unread}AND f.status IN ('failed', 'abandoned', 'interrupted')
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
# MariaDB reads all entries of a number for a max() in a subquery, and for a run after another one.
# An attempt that failed has no completeness, so an index has these entries apart.
PLAIN = {"newest": "max(r.run_id)", "first": "", "unread": ""}
MYSQL = {
    "newest": "r.run_id",
    "first": "ORDER BY r.run_id DESC LIMIT 1",
    "unread": "AND f.completeness IS NULL ",
}
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


def upgrade() -> None:
    create_number_status(latest="begun", ended_last=ENDED_LAST)


def downgrade() -> None:
    create_number_status(latest="latest", ended_last="")


def create_number_status(**parts: str) -> None:
    parts |= MYSQL if op.get_bind().dialect.name == "mysql" else PLAIN
    each_completeness = ("proved", "consistent", "unproved")
    probes = {each: PROBE.format(completeness=each, **parts) for each in each_completeness}
    good, last = look_ups("good_run", GOOD_COLUMNS), look_ups("last_run", LAST_COLUMNS)
    op.execute("DROP VIEW number_status")
    op.execute(NUMBER_STATUS.format(good_columns=good, last_columns=last, **probes, **parts))


def look_ups(run: str, columns: dict[str, str]) -> str:
    return ", ".join(COLUMN.format(column, run, name) for name, column in columns.items())

"""The view number_status, and the index that finds each number's last good sync at once."""

from alembic import op

revision = "0009_number_status"
down_revision = "0008_api_pace"
branch_labels = None
depends_on = None

INDEX = "ix_sync_run_numbers_phone_number_completeness_run_id"
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
        SELECT n.phone_number, {consistent}, 0 FROM phone_numbers n
        UNION ALL
        SELECT n.phone_number, {unproved}, 0 FROM phone_numbers n
    ) p
    GROUP BY p.phone_number
)
SELECT n.phone_number, n.label, l.good_run AS run_id, {good_columns}, {last_columns}, (
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


def upgrade() -> None:
    op.create_index(INDEX, "sync_run_numbers", ["phone_number", "completeness", "run_id"])
    probes = {each: PROBE.format(each) for each in ("proved", "consistent", "unproved")}
    op.execute(
        NUMBER_STATUS.format(
            good_columns=look_ups("good_run", GOOD_COLUMNS),
            last_columns=look_ups("last_run", LAST_COLUMNS),
            **probes,
        )
    )


def downgrade() -> None:
    op.execute("DROP VIEW number_status")
    op.drop_index(INDEX, "sync_run_numbers")


def look_ups(run: str, columns: dict[str, str]) -> str:
    return ", ".join(COLUMN.format(column, run, name) for name, column in columns.items())

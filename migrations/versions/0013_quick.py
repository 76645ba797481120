"""What quick syncs learn of each list and how much they find; number_status tells it."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0013_quick"
down_revision = "0012_mode"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT = sa.Text().with_variant(mysql.LONGTEXT(), "mysql")
SHORT = sa.Text().with_variant(sa.VARCHAR(32), "mysql")
TIME = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql")
KINDS = {
    "messages": "chats with another message count",
    "new": "new chats",
    "names": "renamed chats",
    "participants": "chats with other participants",
}
RECALL: dict[str, tuple[type[sa.BigInteger | sa.Double[float]], str]] = {
    "quick_hits": (
        sa.BigInteger,
        "As in quick_recall, for message counts. Null unless the whole list was read.",
    ),
    "quick_misses": (
        sa.BigInteger,
        "As in quick_recall, for message counts. Null unless the whole list was read.",
    ),
    "quick_recall_lower": (
        sa.Double,
        "The lower bound in quick_recall, for message counts: at least this share of the changes is found by quick readings. Null unless the whole list was read.",
    ),
}
COMMENTS = {
    "completeness": (
        SHORT,
        "proved: exactly the list as it was when the walk ended. consistent: complete, unless chats came and went in pairs between the same two requests. unproved: neither; see reason. Null if the list was not read, or if the budget ended the reading.",
        "proved: exactly the list as it was when the walk ended. consistent: complete, unless chats came and went in pairs between the same two requests. unproved: neither; see reason. quick: only where changes are likely. Null if the list was not read, or if the budget ended the reading.",
    ),
    "reason": (
        TEXT,
        "Why the list is unproved or was not read to its end, or why removals were withheld. Begins with budget if the requests ran out.",
        "Why the list is unproved or was not read to its end, why removals were withheld, or why a quick sync read all of it. Begins with budget if the requests ran out.",
    ),
}
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
NUMBER_STATUS = """
CREATE VIEW number_status AS
WITH begun AS (
    SELECT p.phone_number, max(p.good_run) AS good_run, max(p.complete_run) AS complete_run,
        max(p.last_run) AS last_run
    FROM (
        SELECT n.phone_number, {proved} AS good_run, {proved} AS complete_run, (
            SELECT {newest} FROM sync_run_numbers r
            WHERE r.phone_number = n.phone_number AND r.status <> 'running'
                AND coalesce(r.error_kind, '') <> 'busy' {first}
        ) AS last_run
        FROM phone_numbers n
        UNION ALL
        SELECT n.phone_number, {consistent} AS good_run, {consistent} AS complete_run,
            NULL AS last_run
        FROM phone_numbers n
        UNION ALL
        SELECT n.phone_number, {unproved} AS good_run, NULL AS complete_run, NULL AS last_run
        FROM phone_numbers n
    ) p
    GROUP BY p.phone_number
), latest AS (
    SELECT b.phone_number, b.good_run, b.complete_run, CASE
        WHEN {good_ended} > {last_ended} THEN b.good_run
        ELSE b.last_run
    END AS last_run
    FROM begun b
)
SELECT n.phone_number, n.label, l.good_run AS run_id, {good_columns},
    {columns}l.last_run AS last_run_id, {last_columns}, (
        SELECT r.finished_at FROM sync_run_numbers r
        WHERE r.phone_number = n.phone_number AND r.run_id = (
            SELECT min(f.run_id) FROM sync_run_numbers f
            WHERE f.phone_number = n.phone_number AND f.run_id > CASE
                    WHEN {quick_run} > coalesce(l.good_run, 0) THEN {quick_run}
                    ELSE coalesce(l.good_run, 0)
                END
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
FROM phone_numbers n JOIN latest l ON l.phone_number = n.phone_number{orders}
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
# Short lists have no row, nor has any before its first full walk with this revision.
LEARNED = {
    "columns": """coalesce(
        CASE WHEN o.walk_run_id >= l.good_run THEN o.fresh_as_of END, (
            SELECT s.started_at FROM sync_runs s
            WHERE s.id = l.good_run AND EXISTS (
                SELECT 1 FROM sync_run_numbers r WHERE r.run_id = l.good_run
                    AND r.phone_number = n.phone_number AND r.missing IS NOT NULL
            )
        ), o.fresh_as_of
    ) AS fresh_as_of, {complete}, o.list_order, o.quick_off, {recall}, """,
    "quick_run": "coalesce(o.quick_run_id, 0)",
    "orders": """
LEFT JOIN list_orders o ON o.phone_number = n.phone_number""",
}


def upgrade() -> None:
    create_tables()
    for name, (kind, text) in RECALL.items():
        op.add_column("sync_run_numbers", sa.Column(name, kind(), comment=text))
    for name, (text_type, before, after) in COMMENTS.items():
        comment(name, text_type, before, after)
    create_number_status(quick=True)


def downgrade() -> None:
    create_number_status(quick=False)
    for name, (text_type, before, after) in COMMENTS.items():
        comment(name, text_type, after, before)
    for name in RECALL:
        op.drop_column("sync_run_numbers", name)
    for table in ("quick_recall", "list_walks", "list_orders"):
        op.drop_table(table)


def comment(name: str, kind: sa.types.TypeEngine[str], before: str, after: str) -> None:
    if op.get_bind().dialect.name != "sqlite":  # It has no comments.
        op.alter_column(
            "sync_run_numbers", name, comment=after, existing_comment=before, existing_type=kind
        )


def create_tables() -> None:
    op.create_table(
        "list_orders",
        sa.Column(
            "phone_number",
            SHORT,
            nullable=False,
            comment="The configured number.",
        ),
        sa.Column(
            "list_order",
            SHORT,
            nullable=False,
            comment="How the API orders the list, as measured: recency, id, id-desc or unknown.",
        ),
        sa.Column(
            "quick_off",
            TEXT,
            comment="Why quick syncs read the whole list. Null if they read only where changes are likely.",
        ),
        sa.Column(
            "fresh_as_of",
            TIME,
            comment="When the last reading began that finds the changes: a full walk, or a quick reading of a list whose quick readings are known to find them.",
        ),
        sa.Column(
            "walk_run_id",
            KEY,
            nullable=False,
            comment="The run of the last full walk.",
        ),
        sa.Column(
            "walked_at",
            TIME,
            nullable=False,
            comment="When the last full walk ended.",
        ),
        sa.Column(
            "quick_run_id",
            KEY,
            comment="The run of the last quick reading. Null if there was none since the last full walk.",
        ),
        sa.Column(
            "quick_runs",
            sa.Integer(),
            nullable=False,
            comment="Quick readings since the last full walk.",
        ),
        sa.Column(
            "partial_runs",
            sa.Integer(),
            nullable=False,
            comment="Quick readings among them that a budget ended.",
        ),
        sa.Column(
            "total_count",
            sa.BigInteger(),
            comment="The API's count of chats in the last reading.",
        ),
        sa.Column(
            "per_page",
            sa.Integer(),
            nullable=False,
            comment="Chats on a full page of the list.",
        ),
        sa.Column(
            "head_read_at",
            TIME,
            nullable=False,
            comment="When the first page of the list was last read.",
        ),
        sa.Column(
            "caught",
            TEXT,
            nullable=False,
            comment="Changes that quick readings found since the last full walk, as JSON: by kind, how many by the rule and how many only by an audit page.",
        ),
        sa.Column(
            "page_reads",
            TEXT,
            nullable=False,
            comment="When quick readings with a budget last read each page, as a JSON list of seconds since 1970, null where none did since the last full walk. By id-desc the last page is the first entry.",
        ),
        sa.ForeignKeyConstraint(
            ["phone_number"], ["phone_numbers.phone_number"], name="fk_list_orders_phone_number"
        ),
        sa.PrimaryKeyConstraint("phone_number", name="pk_list_orders"),
        comment="Internal: what quick syncs know of each number's list.",
    )
    op.create_table(
        "list_walks",
        sa.Column(
            "phone_number",
            SHORT,
            nullable=False,
            comment="The configured number.",
        ),
        sa.Column(
            "run_id",
            KEY,
            nullable=False,
            autoincrement=False,
            comment="The run of the full walk.",
        ),
        sa.Column(
            "pages",
            sa.BigInteger(),
            nullable=False,
            comment="Pages of the list.",
        ),
        sa.Column(
            "total_count",
            sa.BigInteger(),
            comment="The API's count of chats in the list.",
        ),
        sa.Column(
            "pairs",
            sa.BigInteger(),
            nullable=False,
            comment="Pairs of neighbours in the list, as read.",
        ),
        sa.Column(
            "ascending",
            sa.BigInteger(),
            nullable=False,
            comment="Pairs whose second chat has the higher id: nearly all in a list by id, nearly none by id-desc, about half otherwise.",
        ),
        sa.Column(
            "changed",
            sa.BigInteger(),
            nullable=False,
            comment="Chats that were new or had changed since they were last read.",
        ),
        sa.Column(
            "deepest_changed",
            sa.BigInteger(),
            comment="The last page with a changed chat. Null if there was none.",
        ),
        sa.Column(
            "deepest_new",
            sa.BigInteger(),
            comment="The last page with a new chat. Null if none.",
        ),
        sa.Column(
            "shares",
            TEXT,
            nullable=False,
            comment="Changed chats by place, as a JSON list: one count for each twentieth of the list.",
        ),
        *kinds(),
        sa.ForeignKeyConstraint(
            ["phone_number"], ["phone_numbers.phone_number"], name="fk_list_walks_phone_number"
        ),
        sa.PrimaryKeyConstraint("phone_number", "run_id", name="pk_list_walks"),
        comment="Where each full walk found the changed chats of a number's list. Walks without changes have no row. Only the newest are kept, as many as decide on quick readings.",
    )
    op.create_table(
        "quick_recall",
        sa.Column(
            "run_id",
            KEY,
            nullable=False,
            autoincrement=False,
            comment="The run of the full walk.",
        ),
        sa.Column(
            "phone_number",
            SHORT,
            nullable=False,
            comment="The configured number.",
        ),
        sa.Column(
            "kind",
            SHORT,
            nullable=False,
            comment="messages, new, names or participants: what had changed.",
        ),
        sa.Column(
            "hits",
            sa.BigInteger(),
            nullable=False,
            comment="Changed chats that quick readings found, or would have found, in the walks that are the evidence: this one and those before it.",
        ),
        sa.Column(
            "misses",
            sa.BigInteger(),
            nullable=False,
            comment="Changed chats that quick readings missed, or would have missed, in these walks.",
        ),
        sa.Column(
            "lower_bound",
            sa.Double(),
            nullable=False,
            comment="The exact one-sided 95 % lower bound (Clopper-Pearson) of the share of hits.",
        ),
        sa.ForeignKeyConstraint(
            ["phone_number"], ["phone_numbers.phone_number"], name="fk_quick_recall_phone_number"
        ),
        sa.PrimaryKeyConstraint("run_id", "phone_number", "kind", name="pk_quick_recall"),
        comment="What share of the changes quick readings find, as each full walk measured it. Message counts decide whether quick readings are used.",
    )


def kinds() -> list[sa.Column[int]]:
    comments = {
        "hits": "Of the {} since the full walk before: those that quick readings found, or one would have found instead of this walk.",
        "misses": "The other {}.",
    }
    return [
        sa.Column(f"{kind}_{name}", sa.BigInteger(), nullable=False, comment=text.format(chats))
        for kind, chats in KINDS.items()
        for name, text in comments.items()
    ]


def create_number_status(*, quick: bool) -> None:
    parts = MYSQL if op.get_bind().dialect.name == "mysql" else PLAIN
    each_completeness = ("proved", "consistent", "unproved")
    probes = {each: PROBE.format(completeness=each, **parts) for each in each_completeness}
    good, last = look_ups("good_run", GOOD_COLUMNS), look_ups("last_run", LAST_COLUMNS)
    learned = LEARNED if quick else {"columns": "", "orders": "", "quick_run": "0"}
    complete = look_ups("complete_run", {"complete_as_of": "finished_at"})
    recall = look_ups("good_run", {name: name for name in RECALL})
    op.execute("DROP VIEW number_status")
    op.execute(
        NUMBER_STATUS.format(
            good_columns=good,
            last_columns=last,
            good_ended=ENDED.format("good_run"),
            last_ended=ENDED.format("last_run"),
            **probes,
            **parts,
            **{
                name: text.format(complete=complete, recall=recall)
                for name, text in learned.items()
            },
        )
    )


def look_ups(run: str, columns: dict[str, str]) -> str:
    return ", ".join(COLUMN.format(column, run, name) for name, column in columns.items())

"""The run log, the leases, and what was rejected."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BIG_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
JSON_TEXT = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "sync_runs",
        sa.Column("id", BIG_KEY, nullable=False, comment="Counts up."),
        sa.Column("command", sa.Text(), nullable=False, comment="sync, backfill…"),
        sa.Column(
            "status",
            sa.Text(),
            nullable=False,
            comment="running, succeeded, partial, failed, interrupted (by a signal) or abandoned (its process died).",
        ),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="Before the first request.",
        ),
        sa.Column("finished_at", sa.DateTime(timezone=True), comment="Null while it runs."),
        sa.Column("version", sa.Text(), nullable=False, comment="Version of linq-etl."),
        sa.Column("host", sa.Text(), nullable=False, comment="Name of the machine it runs on."),
        sa.Column(
            "owner",
            sa.Text(),
            nullable=False,
            comment="Identity of the process, by which another run on that machine sees it has died.",
        ),
        sa.Column(
            "lease_expires_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="Until then its numbers are its own; moved on by a heartbeat while it runs.",
        ),
        sa.Column("numbers_total", sa.Integer(), nullable=False, comment="Numbers it was to sync."),
        sa.Column(
            "numbers_failed", sa.Integer(), nullable=False, comment="Those that were not synced."
        ),
        sa.Column(
            "requests",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="HTTP requests sent, retries included.",
        ),
        sa.Column(
            "retries",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="Requests that were repeated after a transient failure.",
        ),
        sa.Column(
            "throttled",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="Answers 429: the API asked for fewer requests.",
        ),
        sa.Column(
            "pages",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="Pages of the list that were stored.",
        ),
        sa.Column(
            "chats_seen",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="Chats on those pages; one read twice counts twice.",
        ),
        sa.Column(
            "chats_inserted",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="Chats stored for the first time.",
        ),
        sa.Column(
            "chats_updated",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="Chats whose row changed.",
        ),
        sa.Column(
            "chats_unchanged",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="Chats read that were already stored just so; nothing was written.",
        ),
        sa.Column(
            "chats_removed",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="Chats marked as removed.",
        ),
        sa.Column(
            "handles_inserted",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="Participants stored for the first time.",
        ),
        sa.Column(
            "handles_updated",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="Participants whose row changed, those who came back included.",
        ),
        sa.Column(
            "handles_removed",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="Participants marked as removed.",
        ),
        sa.Column(
            "rejected",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="Records that could not be stored; see rejected_records.",
        ),
        sa.Column(
            "texts_cleaned",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="Texts in which NUL or a lone surrogate was replaced by U+FFFD.",
        ),
        sa.Column(
            "error_kind",
            sa.Text(),
            comment="What to do about it, in a word: config, refused, token, unavailable, throttled, database, schema, busy, lease_lost, interrupted or unexpected.",
        ),
        sa.Column("error_detail", sa.Text(), comment="The same as a sentence."),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sync_runs")),
        comment="The run log: one row per run, written before its first request.",
    )
    op.create_index(op.f("ix_sync_runs_status"), "sync_runs", ["status"])
    op.create_table(
        "sync_run_numbers",
        sa.Column("run_id", BIG_KEY, autoincrement=False, nullable=False, comment="The run."),
        sa.Column("phone_number", sa.Text(), nullable=False, comment="The number."),
        sa.Column("status", sa.Text(), nullable=False, comment="As in sync_runs, for this number."),
        sa.Column("finished_at", sa.DateTime(timezone=True), comment="Null while it runs."),
        sa.Column(
            "completeness",
            sa.Text(),
            comment="proved: the list as it was when the walk ended. consistent: read completely, unless chats came and went in pairs between the same two requests. unproved: neither; see reason. Null if it was not read to the end.",
        ),
        sa.Column(
            "reason", sa.Text(), comment="Why it is unproved, or why something was withheld."
        ),
        sa.Column(
            "first_page",
            sa.BigInteger(),
            comment="Where a backfill began to read; null for a sync.",
        ),
        sa.Column(
            "passes", sa.Integer(), nullable=False, server_default="0", comment="Times it was read."
        ),
        sa.Column(
            "total_count", sa.BigInteger(), comment="Length of the list, as the API last said."
        ),
        sa.Column(
            "first_total_count",
            sa.BigInteger(),
            comment="Length of the list, as the API first said.",
        ),
        sa.Column(
            "distinct_ids", sa.BigInteger(), comment="Different chats seen in the last pass."
        ),
        sa.Column(
            "duplicates", sa.BigInteger(), comment="Rows read again, in all passes together."
        ),
        sa.Column(
            "shrinkages",
            sa.BigInteger(),
            comment="Answers that told of a shorter list than before.",
        ),
        sa.Column(
            "missing",
            sa.BigInteger(),
            comment="Chats known from before that were not seen, and whose removal is not confirmed.",
        ),
        sa.Column(
            "requests",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="HTTP requests sent, retries included.",
        ),
        sa.Column(
            "retries",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="Requests that were repeated after a transient failure.",
        ),
        sa.Column(
            "throttled",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="Answers 429: the API asked for fewer requests.",
        ),
        sa.Column(
            "pages",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="Pages of the list that were stored.",
        ),
        sa.Column(
            "chats_seen",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="Chats on those pages; one read twice counts twice.",
        ),
        sa.Column(
            "chats_inserted",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="Chats stored for the first time.",
        ),
        sa.Column(
            "chats_updated",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="Chats whose row changed.",
        ),
        sa.Column(
            "chats_unchanged",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="Chats read that were already stored just so; nothing was written.",
        ),
        sa.Column(
            "chats_removed",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="Chats marked as removed.",
        ),
        sa.Column(
            "handles_inserted",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="Participants stored for the first time.",
        ),
        sa.Column(
            "handles_updated",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="Participants whose row changed, those who came back included.",
        ),
        sa.Column(
            "handles_removed",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="Participants marked as removed.",
        ),
        sa.Column(
            "rejected",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="Records that could not be stored; see rejected_records.",
        ),
        sa.Column(
            "texts_cleaned",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="Texts in which NUL or a lone surrogate was replaced by U+FFFD.",
        ),
        sa.Column("error_kind", sa.Text(), comment="As in sync_runs, for this number."),
        sa.Column("error_detail", sa.Text(), comment="The same as a sentence."),
        sa.ForeignKeyConstraint(
            ["phone_number"],
            ["phone_numbers.phone_number"],
            name=op.f("fk_sync_run_numbers_phone_number"),
        ),
        sa.ForeignKeyConstraint(
            ["run_id"], ["sync_runs.id"], name=op.f("fk_sync_run_numbers_run_id")
        ),
        sa.PrimaryKeyConstraint("run_id", "phone_number", name=op.f("pk_sync_run_numbers")),
        comment="The run log per phone number, and how far to trust its list.",
    )
    op.create_index(
        op.f("ix_sync_run_numbers_phone_number_run_id"),
        "sync_run_numbers",
        ["phone_number", "run_id"],
    )
    op.create_table(
        "number_leases",
        sa.Column("phone_number", sa.Text(), nullable=False, comment="The number."),
        sa.Column(
            "run_id",
            BIG_KEY,
            nullable=False,
            comment="The run that alone may write this number, while that run is alive.",
        ),
        sa.ForeignKeyConstraint(
            ["phone_number"],
            ["phone_numbers.phone_number"],
            name=op.f("fk_number_leases_phone_number"),
        ),
        sa.ForeignKeyConstraint(["run_id"], ["sync_runs.id"], name=op.f("fk_number_leases_run_id")),
        sa.PrimaryKeyConstraint("phone_number", name=op.f("pk_number_leases")),
        comment="Which run holds which number. Internal to linq-etl.",
    )
    op.create_table(
        "rejected_records",
        sa.Column("id", BIG_KEY, nullable=False, comment="Counts up."),
        sa.Column("run_id", BIG_KEY, nullable=False, comment="The run that read it."),
        sa.Column("phone_number", sa.Text(), comment="The number in whose list it was."),
        sa.Column(
            "page", sa.Integer(), comment="The page it was on; null if it was asked for by itself."
        ),
        sa.Column("reason", sa.Text(), nullable=False, comment="What is wrong with it, and where."),
        sa.Column("payload", JSON_TEXT, comment="The record as the API sent it."),
        sa.ForeignKeyConstraint(
            ["run_id"], ["sync_runs.id"], name=op.f("fk_rejected_records_run_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rejected_records")),
        comment="Records that the API sent and that could not be stored.",
    )
    op.create_index(op.f("ix_rejected_records_run_id"), "rejected_records", ["run_id"])


def downgrade() -> None:
    op.drop_table("rejected_records")
    op.drop_table("number_leases")
    op.drop_table("sync_run_numbers")
    op.drop_table("sync_runs")

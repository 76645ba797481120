"""What happened to chats over time."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

BIG_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


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
        sa.ForeignKeyConstraint(
            ["run_id"], ["sync_runs.id"], name=op.f("fk_chat_message_counts_run_id")
        ),
        sa.PrimaryKeyConstraint("chat_id", "observed_at", name=op.f("pk_chat_message_counts")),
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
        sa.ForeignKeyConstraint(["run_id"], ["sync_runs.id"], name=op.f("fk_chat_events_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_chat_events")),
        comment="What happened to chats since their number was first loaded; the starting stock of a number makes no events.",
    )
    op.create_index(
        op.f("ix_chat_events_chat_id_observed_at"), "chat_events", ["chat_id", "observed_at"]
    )
    op.create_index(op.f("ix_chat_events_observed_at"), "chat_events", ["observed_at"])


def downgrade() -> None:
    op.drop_table("chat_events")
    op.drop_table("chat_message_counts")

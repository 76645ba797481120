"""Chats, their participants, and which configured number lists them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BIG_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
JSON_TEXT = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "phone_numbers",
        sa.Column(
            "phone_number", sa.Text(), nullable=False, comment="E.164 with plus, e.g. +13343284472."
        ),
        sa.Column("label", sa.Text(), comment="The name given to it in the configuration."),
        sa.Column(
            "first_seen_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When it was first synced.",
        ),
        sa.Column(
            "first_loaded_at",
            sa.DateTime(timezone=True),
            comment="When its list had been read to the end for the first time; null until then. Chats found before this are the starting stock, not news.",
        ),
        sa.PrimaryKeyConstraint("phone_number", name=op.f("pk_phone_numbers")),
        comment="Every phone number that was ever configured here.",
    )
    op.create_table(
        "chats",
        sa.Column("id", BIG_KEY, autoincrement=False, nullable=False, comment="The API's chat id."),
        sa.Column(
            "display_name",
            sa.Text(),
            comment="A group's own name, else its participants joined with commas.",
        ),
        sa.Column("service", sa.Text(), comment="iMessage, SMS, RCS or whatever the API says."),
        sa.Column(
            "is_group", sa.Boolean(), comment="Whether this is a group chat (the API's `group`)."
        ),
        sa.Column("message_count", sa.BigInteger(), comment="Messages in the chat, as last read."),
        sa.Column(
            "extra", JSON_TEXT, comment="Fields that the API sends and this version does not know."
        ),
        sa.Column(
            "first_seen_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When it was first read.",
        ),
        sa.Column(
            "changed_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When this row last changed: the time of the API answer that showed the change.",
        ),
        sa.Column(
            "removed_at",
            sa.DateTime(timezone=True),
            comment="When the API confirmed that it is gone; null while it exists.",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_chats")),
        comment="One row per chat. Rows are never deleted.",
    )
    op.create_index(op.f("ix_chats_changed_at"), "chats", ["changed_at"])
    op.create_table(
        "chat_handles",
        sa.Column(
            "chat_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="The chat."
        ),
        sa.Column(
            "id",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="The API's handle id.",
        ),
        sa.Column(
            "phone_number",
            sa.Text(),
            comment="The participant's phone number or e-mail address, exactly as the API sent it.",
        ),
        sa.Column("service", sa.Text(), comment="The participant's messaging service."),
        sa.Column(
            "joined_at",
            sa.DateTime(timezone=True),
            comment="When the participant joined; null if not said.",
        ),
        sa.Column(
            "extra", JSON_TEXT, comment="Fields that the API sends and this version does not know."
        ),
        sa.Column(
            "first_seen_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When it was first read.",
        ),
        sa.Column(
            "changed_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When this row last changed: the time of the API answer that showed the change.",
        ),
        sa.Column(
            "removed_at",
            sa.DateTime(timezone=True),
            comment="When the chat was first read without this participant; null while present.",
        ),
        sa.ForeignKeyConstraint(["chat_id"], ["chats.id"], name=op.f("fk_chat_handles_chat_id")),
        sa.PrimaryKeyConstraint("chat_id", "id", name=op.f("pk_chat_handles")),
        sqlite_with_rowid=False,
        comment="One row per participant of a chat. Rows are never deleted.",
    )
    op.create_index(op.f("ix_chat_handles_changed_at"), "chat_handles", ["changed_at"])
    op.create_index(
        op.f("ix_chat_handles_phone_number"),
        "chat_handles",
        ["phone_number"],
        postgresql_using="hash",
    )
    op.create_table(
        "chat_phone_numbers",
        sa.Column("phone_number", sa.Text(), nullable=False, comment="The configured number."),
        sa.Column(
            "chat_id",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="A chat in this number's list.",
        ),
        sa.Column(
            "first_seen_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When it was first listed there.",
        ),
        sa.Column(
            "removed_at",
            sa.DateTime(timezone=True),
            comment="When it was found to be listed there no longer; null while it is.",
        ),
        sa.Column(
            "missing_since",
            sa.DateTime(timezone=True),
            comment="Since when the list has been read without it although the API does not call it gone; null while it is seen there.",
        ),
        sa.ForeignKeyConstraint(
            ["chat_id"], ["chats.id"], name=op.f("fk_chat_phone_numbers_chat_id")
        ),
        sa.ForeignKeyConstraint(
            ["phone_number"],
            ["phone_numbers.phone_number"],
            name=op.f("fk_chat_phone_numbers_phone_number"),
        ),
        sa.PrimaryKeyConstraint("phone_number", "chat_id", name=op.f("pk_chat_phone_numbers")),
        sqlite_with_rowid=False,
        comment="Which configured number lists which chat. A chat can be in several lists.",
    )
    op.create_index(op.f("ix_chat_phone_numbers_chat_id"), "chat_phone_numbers", ["chat_id"])


def downgrade() -> None:
    op.drop_table("chat_phone_numbers")
    op.drop_table("chat_handles")
    op.drop_table("chats")
    op.drop_table("phone_numbers")

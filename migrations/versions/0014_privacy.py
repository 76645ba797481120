"""How participants are stored, who was forgotten, and hashes of chats' names."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0014_privacy"
down_revision = "0013_quick"
branch_labels = None
depends_on = None

TEXT = sa.Text().with_variant(mysql.LONGTEXT(), "mysql")
PARTICIPANT = sa.Text().with_variant(sa.VARCHAR(255), "mysql")
COMMENTS = [
    (
        "chats",
        "display_name",
        TEXT,
        "A group's own name, or the chat's participants joined by commas.",
        " Where participants are hashed, a group's own name or null; where they are dropped, null.",
    ),
    (
        "chat_handles",
        "phone_number",
        PARTICIPANT,
        "The participant's phone number or e-mail address, exactly as the API sent it.",
        " Where participants are hashed, its keyed hash, the same in each chat; where they are dropped, null. A configured number is never hashed or dropped.",
    ),
    (
        "rejected_records",
        "payload",
        TEXT,
        "The record as the API sent it, as JSON.",
        " Where participants are hashed or dropped, or if it names someone who was forgotten, without its texts and numbers.",
    ),
]
TABLE_COMMENTS = {
    "chats": "One row per chat. Rows are never deleted",
    "chat_handles": "One row per participant of a chat. Rows are never deleted",
}
TIME = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql")


def upgrade() -> None:
    op.create_table(
        "privacy",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False, comment="Always 1."),
        sa.Column(
            "participants",
            sa.Text().with_variant(sa.VARCHAR(32), "mysql"),
            nullable=False,
            comment="How participants are stored: plain, hashed or dropped.",
        ),
        sa.Column(
            "key_fingerprint",
            sa.Text().with_variant(sa.VARCHAR(64), "mysql"),
            comment="Hash of the privacy key, from which the key cannot be derived. Null if none was needed yet.",
        ),
        sa.Column(
            "generation",
            sa.BigInteger(),
            nullable=False,
            comment="How often people were forgotten, so that a run in progress notices it.",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_privacy"),
        comment="Internal: what is stored of people. Without a row, participants are plain.",
    )
    op.create_table(
        "forgotten",
        sa.Column(
            "mark",
            sa.Text().with_variant(sa.VARCHAR(64), "mysql"),
            nullable=False,
            comment="Keyed hash of a participant who was forgotten.",
        ),
        sa.Column("forgotten_at", TIME, nullable=False, comment="When."),
        sa.PrimaryKeyConstraint("mark", name="pk_forgotten"),
        comment="Internal: people whom the command forget erased, and whom no sync stores again.",
    )
    op.create_table(
        "chat_name_hashes",
        sa.Column(
            "chat_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="The chat."
        ),
        sa.Column(
            "name_hash",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="Keyed hash of the name of a one-to-one chat, or of a part of a group's name.",
        ),
        sa.Column("is_group", sa.Boolean(), comment="Whether it is a part of a group's name."),
        sa.PrimaryKeyConstraint("chat_id", "name_hash", name="pk_chat_name_hashes"),
        comment="Internal: where participants are hashed, tells whether a group's name holds the name of a person.",
        sqlite_with_rowid=False,
    )
    op.create_index("ix_chat_name_hashes_name_hash", "chat_name_hashes", ["name_hash"])

    comment_on_tables(", except by forget.", is_new=True)


def comment_on_tables(end: str, *, is_new: bool) -> None:
    if op.get_bind().dialect.name == "sqlite":
        return
    for table, column, kind, before, added in COMMENTS:
        old, new = (before, before + added) if is_new else (before + added, before)
        op.alter_column(table, column, existing_type=kind, existing_comment=old, comment=new)
    for table, comment in TABLE_COMMENTS.items():
        op.create_table_comment(table, comment + end)


def downgrade() -> None:
    op.drop_table("chat_name_hashes")
    op.drop_table("forgotten")
    op.drop_table("privacy")
    comment_on_tables(".", is_new=False)

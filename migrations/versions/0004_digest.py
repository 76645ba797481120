"""A hash of each chat as it was last written, so that what is read again need not be compared."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "chats",
        sa.Column(
            "digest",
            sa.BigInteger(),
            comment="Internal: a hash of what the API said of the chat and its participants when they were last written. A chat that is read with the same hash is not compared; null: it is.",
        ),
    )


def downgrade() -> None:
    op.drop_column("chats", "digest")

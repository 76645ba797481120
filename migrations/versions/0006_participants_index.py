"""PostgreSQL's index of participants takes as long for the millionth row of one value as for the first.

A hash index walks all rows of a value before it adds one, and a number may take part in all its chats.
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

NAME = "ix_chat_handles_phone_number"


def upgrade() -> None:
    make_anew("spgist")


def downgrade() -> None:
    make_anew("hash")


def make_anew(method: str) -> None:
    """SQLite has one kind of index, and keeps it."""
    if op.get_bind().dialect.name == "postgresql":
        op.drop_index(op.f(NAME), "chat_handles")
        op.create_index(op.f(NAME), "chat_handles", ["phone_number"], postgresql_using=method)

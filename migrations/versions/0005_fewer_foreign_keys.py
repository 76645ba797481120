"""No foreign keys where each row is written in one transaction with what it refers to.

PostgreSQL checks them row by row, which took longer than all the rest of writing these tables.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

FOREIGN_KEYS = (
    ("chat_phone_numbers", "chat_id", "chats", "id"),
    ("chat_phone_numbers", "phone_number", "phone_numbers", "phone_number"),
    ("chat_message_counts", "chat_id", "chats", "id"),
)


@contextmanager
def views_let_alone() -> Iterator[None]:
    """SQLite makes a table anew to alter it, and must not mind that views miss it meanwhile."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    if sqlite:
        op.execute("PRAGMA legacy_alter_table = ON")
    yield
    if sqlite:
        op.execute("PRAGMA legacy_alter_table = OFF")


def upgrade() -> None:
    with views_let_alone():
        for table, column, _, _ in FOREIGN_KEYS:
            kwargs = {"sqlite_with_rowid": False}
            with op.batch_alter_table(table, table_kwargs=kwargs) as batch:
                batch.drop_constraint(op.f(f"fk_{table}_{column}"), type_="foreignkey")


def downgrade() -> None:
    with views_let_alone():
        for table, column, parent, key in FOREIGN_KEYS:
            kwargs = {"sqlite_with_rowid": False}
            with op.batch_alter_table(table, table_kwargs=kwargs) as batch:
                batch.create_foreign_key(op.f(f"fk_{table}_{column}"), parent, [column], [key])

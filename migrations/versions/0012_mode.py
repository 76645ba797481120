"""Whether a run reads its lists in full, and whether it writes data."""

import sqlalchemy as sa
from alembic import op

revision = "0012_mode"
down_revision = "0011_last_attempt"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "sync_runs",
        sa.Column(
            "mode",
            sa.Text().with_variant(sa.VARCHAR(32), "mysql"),
            nullable=False,
            server_default="full",
            comment="full: lists are read to their end, or as far as a backfill was asked to. quick: read only where changes are likely. dry-run: as full, but no data is written; the counts are what a sync would have written.",
        ),
    )


def downgrade() -> None:
    op.drop_column("sync_runs", "mode")

"""The request rate that the API last allowed, by token."""

import sqlalchemy as sa
from alembic import op

revision = "0008_api_pace"
down_revision = "0007_run_fences"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_pace",
        sa.Column(
            "token", sa.Text(), nullable=False, comment="Fingerprint of the token, not the token."
        ),
        sa.Column(
            "requests_per_second",
            sa.Float(),
            nullable=False,
            comment="The rate that the API last allowed.",
        ),
        sa.Column(
            "observed_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When the rate was observed.",
        ),
        sa.PrimaryKeyConstraint("token", name="pk_api_pace"),
        comment="Internal: where the next run's request rate starts.",
    )


def downgrade() -> None:
    op.drop_table("api_pace")

"""The rate that the API allows each token, with which the next run begins."""

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
            "fingerprint",
            sa.Text(),
            nullable=False,
            comment="Hash of api.base_url and the token, from which the token cannot be derived.",
        ),
        sa.Column(
            "requests_per_second",
            sa.Double(),
            nullable=False,
            comment="What the API allowed the token at the end of the run.",
        ),
        sa.Column(
            "observed_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="The end of the last run that observed it.",
        ),
        sa.PrimaryKeyConstraint("fingerprint", name="pk_api_pace"),
        comment="Internal: the rate with which the next run begins; runs of the last week count.",
    )


def downgrade() -> None:
    op.drop_table("api_pace")

"""What is known of each token: its rate, and whether it reaches the configured numbers."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0008_api_pace"
down_revision = "0007_run_fences"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql")


def upgrade() -> None:
    op.create_table(
        "api_pace",
        sa.Column(
            "fingerprint",
            sa.Text().with_variant(sa.VARCHAR(32), "mysql"),
            nullable=False,
            comment="Hash of api.base_url and the token, from which the token cannot be derived.",
        ),
        sa.Column(
            "requests_per_second",
            sa.Double(),
            comment="What the API allowed the token at the end of a run. Null if it never throttled.",
        ),
        sa.Column(
            "observed_at",
            TIME,
            comment="The end of the last run that observed the rate.",
        ),
        sa.Column(
            "numbers_listed_at",
            TIME,
            comment="When the API was last asked which numbers the token reaches.",
        ),
        sa.PrimaryKeyConstraint("fingerprint", name="pk_api_pace"),
        comment="Internal: what is known of a token. The next run begins with its rate.",
    )

    op.add_column(
        "phone_numbers",
        sa.Column(
            "unreached_since",
            TIME,
            comment="Since when List Phone Numbers does not name this number for its token. Null if it does, or if that is not known.",
        ),
    )


def downgrade() -> None:
    op.drop_column("phone_numbers", "unreached_since")
    op.drop_table("api_pace")

"""A fence for each run, which each of its batches moves: a closed run cannot write any more."""

import sqlalchemy as sa
from alembic import op

revision = "0007_run_fences"
down_revision = "0006_baseline"
branch_labels = None
depends_on = None

BIG_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    fences = op.create_table(
        "run_fences",
        sa.Column(
            "run_id",
            BIG_KEY,
            autoincrement=False,
            nullable=False,
            comment="A run that is not closed; 0 is the lock that lets one run write at a time.",
        ),
        sa.Column(
            "fence",
            sa.BigInteger(),
            nullable=False,
            comment="Batches that the run has committed.",
        ),
        sa.PrimaryKeyConstraint("run_id", name="pk_run_fences"),
        comment="Internal: each batch moves its run's fence, which fails once the run is closed.",
    )
    op.bulk_insert(fences, [{"run_id": 0, "fence": 0}])


def downgrade() -> None:
    op.drop_table("run_fences")

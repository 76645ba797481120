"""${message}.

Rules: one change, about 30 lines, a working downgrade, named constraints, a comment on every new
table and column; it must run on SQLite and PostgreSQL, on a database with data.
"""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}

"""${message}.

Rules (delete them): one change in about 30 lines; a working downgrade; a name for every constraint;
a comment on every new table and column, as in etl/db/tables/; names copied, not imported.
It must run on SQLite and PostgreSQL with rows in the tables: add a test to tests/db/test_schema.py.
SQLite adds and drops columns with op.add_column and op.drop_column. A batch operation recreates
the table, which fails while a view uses it or rows of another table refer to it.
The revision id is the file's name, at most 32 characters, and REVISION in etl/db/tables/base.py.
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

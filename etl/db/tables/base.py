"""What all tables share."""

from typing import Any, Final

from sqlalchemy import Column, MetaData, Table

# A later migration can drop only a constraint with a name; SQLite gives none by itself.
metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

# Characters at most, for the databases whose indexes need to know.
NUMBER_LENGTH: Final = 32  # of a configured phone number
PARTICIPANT_LENGTH: Final = 255  # as the decoder allows
STATUS_LENGTH: Final = 32

# Not Alembic's default name, which another project in the same database may use.
VERSION_TABLE: Final = "linq_etl_alembic_version"

# The newest migration: it results in these tables.
REVISION: Final = "0014_privacy"


def is_internal(item: Table | Column[Any]) -> bool:
    """Whether a table or column is for linq-etl alone, as its comment says to analysts."""
    return (item.comment or "").startswith("Internal:")
